"""A device without float64, such as Apple's GPUs: while the mode is entered, the CPU plays it."""

import unittest.mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from tokenizer.functional import real_dtype


class Float64Refused(TorchDispatchMode):
    """Refuses every operation that takes or gives a float64 tensor; `real_dtype` knows that there are none.

    Raises:
        TypeError: an operation on float64.
    """

    def __enter__(self):
        """Tells `real_dtype`."""
        self._patch = unittest.mock.patch.object(real_dtype, "WITHOUT_FLOAT64", {"cpu"})
        self._patch.start()
        return super().__enter__()

    def __exit__(self, *error):
        """Puts back what `__enter__` replaced."""
        super().__exit__(*error)
        self._patch.stop()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Makes a call, and looks at its tensors."""
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves((args, kwargs, result)):
            if isinstance(leaf, torch.Tensor) and leaf.dtype == torch.float64:
                raise TypeError(f"{function} on float64, which the device does not have")
        return result
