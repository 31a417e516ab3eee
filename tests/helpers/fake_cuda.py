"""CUDA tensors without a GPU: shapes and devices are right, there are no values, and reading one is an error."""

import unittest.mock

import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


READS = (aten._local_scalar_dense.default, aten.nonzero.default, aten._linalg_check_errors.default)


class HostWaits(AssertionError):
    """A value was read from the device: the host would wait there for all that is queued."""


class FakeCuda(TorchDispatchMode):
    """While it is entered tensors on the CPU are real, those on CUDA have no values.

    Attributes:
        refuses_copies: whether a copy from the CPU, which the host waits for, is an error too.

    Raises:
        HostWaits: the value of a CUDA tensor is asked for, as by item(), bool(), nonzero() or cpu().
    """

    def __init__(self):
        super().__init__()
        self.refuses_copies = False
        self._fake = FakeTensorMode(allow_non_fake_inputs=True)

    def __enter__(self):
        """Without a driver, PyTorch must not look for one."""
        if not torch.cuda.is_available():
            self._patch = unittest.mock.patch.object(torch.cuda, "_lazy_init", lambda: None)
            self._patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        """Puts back what `__enter__` replaced."""
        super().__exit__(*error)
        if not torch.cuda.is_available():
            self._patch.stop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Runs a call for real, or for its shapes alone where CUDA is involved."""
        kwargs = kwargs or {}
        leaves = tree_leaves((args, kwargs))
        on_cuda = any(isinstance(leaf, FakeTensor) for leaf in leaves)
        to = next((torch.device(leaf).type for leaf in [kwargs.get("device")] if leaf is not None), None)
        if on_cuda and (to == "cpu" or function in READS):
            raise HostWaits(f"{function} reads from the device")
        if self.refuses_copies and to == "cuda" and not on_cuda and function is aten._to_copy.default:
            raise HostWaits(f"{function} copies to the device, and waits until it has")
        if not on_cuda and to != "cuda":
            return function(*args, **kwargs)
        with self._fake:
            return function(*args, **kwargs)
