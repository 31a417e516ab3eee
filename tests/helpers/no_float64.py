"""A device without float64, as Apple's is: CPU tensors that say that they are on mps, and refuse that type.

Without Metal torch accepts no tensor on mps. For torch itself these are on a device meta:7, while those without values
are on meta; Python's code sees mps.
"""

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode, return_and_correct_aliasing
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
DEVICE = torch.device("mps", 0)
_INSIDE = torch.device("meta", 7)
_REFUSED = (torch.float64, torch.complex128)
_COPIES = (aten.copy_.default, aten._to_copy.default)


class HasNoFloat64(TypeError):
    """A float64 tensor was asked for on the device."""


class _OnDevice(Tensor):
    """A tensor on the device; `held` has its values, on the CPU."""

    device = property(lambda self: DEVICE)
    is_meta = property(lambda self: False)
    __torch_function__ = torch._C._disabled_torch_function_impl

    @staticmethod
    def __new__(cls, held):
        """Take over the shape of the values."""
        layout = {"strides": held.stride(), "storage_offset": held.storage_offset(), "layout": held.layout}
        return Tensor._make_wrapper_subclass(cls, held.size(), dtype=held.dtype, device=_INSIDE, **layout)

    def __init__(self, held):
        self.held = held

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        """Run a call outside of the mode too, as a result outlives it."""
        return _run(function, args, kwargs or {})

    def __deepcopy__(self, memo):
        """Copy the values, as torch does for the devices that it knows."""
        if id(self) not in memo:
            copy = _OnDevice(self.held.clone()).requires_grad_(self.requires_grad)
            copy._is_param = getattr(self, "_is_param", False)
            memo[id(self)] = copy
        return memo[id(self)]

    def __repr__(self, **options):
        """Show the values."""
        return f"on {DEVICE}: {self.held!r}"


class NoFloat64:
    """Context in which tensors can be made on, and moved to, a device `mps` that has no float64.

    Raises:
        HasNoFloat64: a float64 or complex128 tensor would lie on the device, or be made in one step of one that does.
        RuntimeError: a call mixes tensors of the device with others that are no scalars.
    """

    def __enter__(self):
        """Catch torch's functions, whose device may be named, and what they call."""
        self._modes = (_Functions(), _Calls())
        for mode in self._modes:
            mode.__enter__()
        return self

    def __exit__(self, *error):
        """Leave both."""
        for mode in reversed(self._modes):
            mode.__exit__(*error)


class _Functions(TorchFunctionMode):
    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is Tensor.tolist and isinstance(args[0], _OnDevice):
            return args[0].held.tolist()  # torch refuses it for any subclass
        if function is torch.device:
            return function(*args, **(kwargs or {}))
        return function(*tree_map(_inside, args), **tree_map(_inside, kwargs or {}))


class _Calls(TorchDispatchMode):
    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        return _run(function, args, kwargs or {})


def _inside(leaf):
    is_device = isinstance(leaf, torch.device) or (isinstance(leaf, str) and leaf.partition(":")[0] == DEVICE.type)
    return _INSIDE if is_device and torch.device(leaf).type == DEVICE.type else leaf


def _run(function, args, kwargs):
    leaves = tree_leaves((args, kwargs))
    from_device = any(isinstance(leaf, _OnDevice) for leaf in leaves)
    asked = kwargs.get("device")
    to_device = from_device if asked is None else asked == _INSIDE
    if not from_device and not to_device:
        return function(*args, **kwargs)
    others = [leaf for leaf in leaves if isinstance(leaf, Tensor) and not isinstance(leaf, _OnDevice) and leaf.ndim]
    if from_device and others and function not in _COPIES and "index" not in str(function):
        raise RuntimeError(f"{function} mixes tensors of {DEVICE} and of the CPU")
    # Metal converts a tensor before it copies it, so that the type must exist there for either direction.
    if from_device and kwargs.get("dtype") in _REFUSED:
        raise HasNoFloat64(f"{function} makes {kwargs['dtype']} of a tensor on {DEVICE}")
    held_args, held_kwargs = tree_map(lambda leaf: leaf.held if isinstance(leaf, _OnDevice) else leaf, (args, kwargs))
    if "device" in held_kwargs or function is aten._to_copy.default:
        held_kwargs["device"] = torch.device("cpu")
    result = function(*held_args, **held_kwargs)
    if not to_device:
        return result
    made = tree_map(_refuse_or_wrap, result)
    return return_and_correct_aliasing(function, args, kwargs, made) if from_device else made


def _refuse_or_wrap(leaf):
    if isinstance(leaf, Tensor) and leaf.dtype in _REFUSED:
        raise HasNoFloat64(f"a tensor {tuple(leaf.shape)} of {leaf.dtype} would be on {DEVICE}")
    return _OnDevice(leaf) if isinstance(leaf, Tensor) else leaf
