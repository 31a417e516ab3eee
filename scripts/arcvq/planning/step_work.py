"""Count the arithmetic and the memory traffic of a training step, and estimate from them the time that a GPU takes."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry


@dataclass(frozen=True)
class Accelerator:
    """What a GPU reaches in practice, below the figures of its data sheet.

    Attributes:
        name: its name.
        flops: floating-point operations a second of convolutions and matrix products, by precision.
        bandwidth: bytes a second.
    """

    name: str
    flops: dict[str, float]
    bandwidth: float


# float32: convolutions as TF32, PyTorch's default.
H100 = Accelerator("H100", {"no": 180e12, "bf16": 350e12, "fp16": 350e12}, 2.6e12)


class StepWork(TorchDispatchMode):
    """Counts the work of what runs in it, also on tensors without memory.

    Attributes:
        flops: floating-point operations of convolutions and matrix products.
        bytes: bytes that operators read and write, each operator by itself, as without a compiler.
    """

    def __init__(self):
        super().__init__()
        self.flops = 0
        self.bytes = 0

    def __torch_dispatch__(
        self, operator: Callable, types: Any, args: tuple = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        result = operator(*args, **kwargs)
        asks = operator.namespace == "prim" or "empty" in operator.overloadpacket.__name__  # moves no data
        if not operator.is_view and not asks:
            tensors = {id(leaf): leaf for leaf in tree_leaves((args, kwargs, result)) if isinstance(leaf, Tensor)}
            # An expanded tensor is larger than its storage, which alone is read.
            self.bytes += sum(min(tensor.nbytes, tensor.untyped_storage().nbytes()) for tensor in tensors.values())
        count = flop_registry.get(operator.overloadpacket)
        if count is not None:
            self.flops += count(*args, **kwargs, out_val=result)
        return result

    def seconds_on(self, accelerator: Accelerator, precision: str) -> float:
        """Estimate the time on an accelerator: the longer one of arithmetic and traffic, which overlap."""
        return max(self.flops / accelerator.flops[precision], self.bytes / accelerator.bandwidth)
