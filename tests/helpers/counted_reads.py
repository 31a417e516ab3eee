"""CUDA tensors without a GPU whose values may be read: all are 0, and the reads are counted."""

import torch
from fake_cuda import READS, FakeCuda, HostWaits
from torch._subclasses.fake_tensor import FakeTensor
from torch.utils._pytree import tree_leaves

aten = torch.ops.aten


class CountedReads(FakeCuda):
    """As `FakeCuda`, where a read returns zeros instead of an error.

    Attributes:
        reads: how often the host has waited for the device.

    Raises:
        HostWaits: the read's shape is itself a value on the device, as of nonzero().
    """

    def __init__(self):
        super().__init__()
        self.reads = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        """Answers a read with zeros."""
        on_cuda = next((leaf for leaf in tree_leaves(args) if isinstance(leaf, FakeTensor)), None)
        to = (kwargs or {}).get("device")
        if on_cuda is None or not (function in READS or (to is not None and torch.device(to).type == "cpu")):
            return super().__torch_dispatch__(function, types, args, kwargs)
        self.reads += 1
        if function is aten._local_scalar_dense.default:
            return torch.zeros((), dtype=on_cuda.dtype).item()
        if function is aten._to_copy.default:
            return torch.zeros(on_cuda.shape, dtype=kwargs.get("dtype") or on_cuda.dtype)
        raise HostWaits(f"{function} reads from the device")
