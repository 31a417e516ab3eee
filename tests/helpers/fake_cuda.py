"""CUDA tensors without a GPU: shapes and devices are right, there are no values, and reading one is an error."""

import sys
import unittest.mock
from collections import Counter
from contextlib import ExitStack

import torch
from places import ROOT
from python_autograd import python_autograd
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


READS = (
    aten._local_scalar_dense.default,
    aten.nonzero.default,
    aten._linalg_check_errors.default,
    aten.equal.default,
    aten.masked_select.default,
    aten.unique_dim.default,
    aten._unique2.default,
)
# Neither of these starts a kernel, nor does a view.
ALLOCATIONS = {"empty", "empty_like", "empty_strided", "new_empty", "new_empty_strided", "lift_fresh", "device"}


class HostWaits(AssertionError):
    """A value was read from the device: the host would wait there for all that is queued."""


class FakeCuda(TorchDispatchMode):
    """While it is entered tensors on the CPU are real, those on CUDA have no values.

    Backward passes, autocast, events and pinned memory work as they do with a GPU.

    Attributes:
        refuses_copies: whether a copy from the CPU, which the host waits for, is an error too.
        launches: kernels that were launched, by the line of the project that asks for them.

    Raises:
        HostWaits: the value of a CUDA tensor is asked for, as by item(), bool(), nonzero() or cpu().
    """

    def __init__(self):
        super().__init__()
        self.refuses_copies = False
        self.launches = Counter()
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)
        self._pinned = set()

    def __enter__(self):
        """Without a driver, PyTorch must not look for one."""
        self._patches = ExitStack()
        swap_tensors, memo = torch.utils.swap_tensors, self._fake.fake_tensor_converter.tensor_memo

        def swap(before, after):  # neither may have weak references
            memo.clear()
            swap_tensors(before, after)

        self._patches.enter_context(unittest.mock.patch.object(torch.utils, "swap_tensors", swap))
        self._patches.enter_context(unittest.mock.patch.object(FakeTensor, "__deepcopy__", _copy, create=True))
        # PyTorch's own functions take many tensors in one kernel only where they know the type of the tensors.
        foreach = torch.utils._foreach_utils
        types = [*foreach._foreach_supported_types, FakeTensor]
        self._patches.enter_context(unittest.mock.patch.object(foreach, "_foreach_supported_types", types))
        if not torch.cuda.is_available():
            for owner, name, value in (
                (torch.cuda, "_lazy_init", lambda: None),
                (torch.cuda, "Event", _Event),
                (torch.cuda, "is_bf16_supported", lambda *_, **__: True),
                (torch.cuda.amp.common, "amp_definitely_not_available", lambda: False),
            ):
                self._patches.enter_context(unittest.mock.patch.object(owner, name, value))
            self._patches.enter_context(python_autograd())
        self._patches.enter_context(_RefusesConstants(self))
        return super().__enter__()

    def __exit__(self, *error):
        """Puts back what `__enter__` replaced."""
        super().__exit__(*error)
        self._patches.close()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Runs a call for real, or for its shapes alone where CUDA is involved."""
        kwargs = kwargs or {}
        leaves = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, torch.Tensor)]
        on_cuda = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        to = next((torch.device(leaf).type for leaf in [kwargs.get("device")] if leaf is not None), None)
        if kwargs.get("pin_memory") and to != "cuda":
            made = function(*args, **kwargs | {"pin_memory": False}).zero_()
            self._pinned.add(id(made.untyped_storage()))
            return made
        if on_cuda and function in READS:
            raise HostWaits(f"{function} reads from the device")
        if on_cuda and function is aten.copy_.default and not isinstance(args[0], FakeTensor):
            if not (id(args[0].untyped_storage()) in self._pinned and _is_queued(args, kwargs)):
                raise HostWaits(f"{function} copies from the device, and waits until it has")
            return args[0]
        if on_cuda and to == "cpu":
            raise HostWaits(f"{function} copies from the device, and waits until it has")
        if self.refuses_copies and (on_cuda or to == "cuda") and function is not torch.ops.prim.device.default:
            self._refuse_copies(function, leaves, args, kwargs)
        if not on_cuda and to != "cuda":
            return function(*args, **kwargs)
        if not function.is_view and function.overloadpacket.__name__ not in ALLOCATIONS:
            self.launches[_line()] += 1
        with self._fake:
            return function(*args, **kwargs)

    def _refuse_copies(self, function, leaves, args, kwargs):
        """A tensor of the CPU among those of CUDA is copied; a scalar goes with the launch, as a number does."""
        copied = [
            leaf
            for leaf in leaves
            if not isinstance(leaf, FakeTensor)
            and (leaf.ndim or function in (aten._to_copy.default, aten.copy_.default))
            and not (id(leaf.untyped_storage()) in self._pinned and _is_queued(args, kwargs))
        ]
        if copied:
            raise HostWaits(f"{function} copies to the device, and waits until it has")


def _is_queued(args, kwargs):
    """Whether a copy is non_blocking."""
    return kwargs.get("non_blocking", args[2] if len(args) > 2 else False)


def _line():
    """The innermost line of the project on the stack, as path:number."""
    frame = sys._getframe(2)
    while frame is not None:
        path = frame.f_code.co_filename
        if path.startswith(str(ROOT)) and "/tests/" not in path and "/.venv" not in path:
            return f"{path.removeprefix(f'{ROOT}/')}:{frame.f_lineno}"
        frame = frame.f_back
    return "torch"


def _copy(tensor, memo):
    """Copies a parameter or a buffer, as `copy.deepcopy` does."""
    copy = tensor.detach().clone()
    if isinstance(tensor, torch.nn.Parameter):
        copy = torch.nn.Parameter(copy, tensor.requires_grad)
    memo[id(tensor)] = copy
    return copy


class _RefusesConstants(TorchFunctionMode):
    """torch.tensor(value, device="cuda") fills a tensor on the CPU, and waits until it is copied."""

    def __init__(self, mode):
        super().__init__()
        self._mode = mode

    def __torch_function__(self, function, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if function in (torch.tensor, torch.as_tensor) and torch.device(kwargs.get("device") or "cpu").type == "cuda":
            if self._mode.refuses_copies:
                raise HostWaits("torch.tensor(..., device) copies to the device, and waits until it has")
            return function(*args, **kwargs | {"device": "cpu"}).to(kwargs["device"])
        return function(*args, **kwargs)


class _Event:
    """Stands for torch.cuda.Event."""

    def __init__(self, *args, **kwargs):
        pass

    def record(self, *args):
        pass

    def synchronize(self):
        pass
