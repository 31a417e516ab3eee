"""Count the bytes and floating point operations that a work needs, and the least time for them on a device.

Bytes: the sizes of all tensors that the operations of one eager run read and write, operation by operation. Views and
allocations count nothing; a tensor that several operations read counts for each of them, though a cache may hold it;
what `expand` repeats counts once. FLOPs: those of convolutions, matrix products and attention by the formulas
of torch.utils.flop_counter, by the kind of arithmetic. All other arithmetic is bounded by its bytes.
"""

import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

aten = torch.ops.aten

_ALLOCATIONS = (
    aten.empty,
    aten.empty_like,
    aten.empty_strided,
    aten.new_empty,
    aten.new_empty_strided,
    aten.empty_permuted,
    aten.lift_fresh,
)
_CONVOLUTIONS = ("convolution", "conv2d")


class CountedWork(TorchDispatchMode):
    """Count what the operations within the context need.

    Attributes:
        operations: number of operations that are neither views nor allocations.
        bytes: bytes that they read and write.
        flops: floating point operations by the kind of arithmetic: bf16 (float16 too), tf32, float32 or
            another type.
    """

    def __init__(self):
        super().__init__()
        self.operations = 0
        self.bytes = 0
        self.flops: Counter[str] = Counter()

    def __torch_dispatch__(
        self, operator: Any, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        results = operator(*args, **kwargs)
        packet = operator.overloadpacket if hasattr(operator, "overloadpacket") else None
        if packet is None or operator.is_view or packet in _ALLOCATIONS:
            return results
        self.operations += 1
        self.bytes += sum(map(_memory_of, _read(args, kwargs))) + sum(
            map(_memory_of, _written(operator, args, results))
        )
        if packet in flop_registry:
            self.flops[_kind(str(packet), args)] += flop_registry[packet](*args, **kwargs, out_val=results)
        return results

    def needs(self) -> dict[str, Any]:
        """Return operations, bytes and FLOPs as plain values."""
        return {"operations": self.operations, "bytes": self.bytes, "flops": dict(self.flops)}


def needs_of(work: Callable[[], object]) -> dict[str, Any]:
    """Run a work once, eagerly, and count what it needs: `operations`, `bytes` and `flops` by kind."""
    with CountedWork() as counted:
        work()
    return counted.needs()


def beside_limit(figure: dict[str, Any], limits: dict[str, Any] | None) -> dict[str, Any]:
    """Add to a figure with `seconds` and `needs` the least time of its bytes and FLOPs, and its time over that.

    Args:
        figure: a result; one without `needs` is returned as it is.
        limits: `bytes_per_s`, and `flops_per_s` by kind of arithmetic; None where they were not measured.

    Returns:
        The figure with `limit`: `least_s_by_bytes`, `least_s_by_flops`, `seconds`, the larger of the two, and
        `time_over_limit`.
    """
    if "needs" not in figure or limits is None:
        return figure
    rates, needs = limits["flops_per_s"], figure["needs"]
    by_bytes = needs["bytes"] / limits["bytes_per_s"]
    # A type without a rate of its own, as float64, counts with the fastest: the limit stays a lower bound.
    by_flops = sum(flops / rates.get(kind, max(rates.values())) for kind, flops in needs["flops"].items())
    least = max(by_bytes, by_flops)
    limit = {"least_s_by_bytes": by_bytes, "least_s_by_flops": by_flops, "seconds": least}
    return figure | {"limit": limit | {"time_over_limit": figure["seconds"] / least}}


def _read(args: tuple, kwargs: dict[str, Any]) -> list[Tensor]:
    """Return the tensors among an operation's arguments, but for the ones that it only writes."""
    inputs = {name: value for name, value in kwargs.items() if name != "out"}
    return [leaf for leaf in tree_leaves((args, inputs)) if isinstance(leaf, Tensor)]


def _written(operator: Any, args: tuple, results: Any) -> list[Tensor]:
    """Return an operation's results, and the arguments that it writes without returning them."""
    written = [leaf for leaf in tree_leaves(results) if isinstance(leaf, Tensor)]
    known = {id(tensor) for tensor in written}
    for argument, value in zip(operator._schema.arguments, args, strict=False):
        if argument.alias_info is not None and argument.alias_info.is_write:
            of_value = [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
            written += [tensor for tensor in of_value if id(tensor) not in known]
    return written


def _memory_of(tensor: Tensor) -> int:
    """Return the bytes of a tensor's elements; those that expanding has repeated count once."""
    return tensor.itemsize * math.prod(
        size for size, stride in zip(tensor.shape, tensor.stride(), strict=True) if stride
    )


def _kind(name: str, args: tuple) -> str:
    """Return the kind of arithmetic of a convolution or matrix product."""
    first = next(leaf for leaf in tree_leaves(args) if isinstance(leaf, Tensor))
    dtype = first.dtype
    if dtype is torch.float32 and first.device.type == "cuda":
        is_convolution = any(part in name for part in _CONVOLUTIONS)
        backend = torch.backends.cudnn if is_convolution else torch.backends.cuda.matmul
        return "tf32" if backend.allow_tf32 else "float32"
    half = dtype in (torch.bfloat16, torch.float16)  # tensor cores take both at one rate
    return "bf16" if half else str(dtype).removeprefix("torch.")
