"""Exponential moving average (EMA) of a module's parameters."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from arcvq.runs.trained_module import sharded_as, unsharded


class Average:
    """The exponential moving average of a module's parameters.

    After t steps the decay is min(decay, (1 + t) / (10 + t)), so that the average soon forgets the first steps.

    Args:
        module: in training. If each process has a shard of it (FSDP), it also has a shard of the average.
        decay: weight of the old average in each step.

    Attributes:
        tensors: the averages, in the order of the parameters.
    """

    def __init__(self, module: nn.Module, decay: float):
        self._module = module
        self._decay = decay
        self._steps = 0
        self.tensors = [parameter.detach().clone() for parameter in module.parameters()]
        # Of the parameters in the averages after this step, unless it is skipped.
        self._shares = {average.dtype: average.new_zeros(()) for average in self.tensors}

    def begin_step(self) -> None:
        """Begin a step: compute its decay."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps)) if self._steps else 0.0
        self._steps += 1
        for share in self._shares.values():
            share.fill_(1 - decay)

    @torch.no_grad()
    def update(self, updated: Tensor) -> None:
        """Update the average at the end of a step. `updated`, a bool scalar, says whether the parameters changed."""
        by_dtype: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = {}
        for average, parameter in zip(self.tensors, self._module.parameters(), strict=True):
            averages, parameters = by_dtype.setdefault(average.dtype, ([], []))
            averages.append(average)
            parameters.append(parameter)
        for dtype, (averages, parameters) in by_dtype.items():
            share = self._shares[dtype] * updated  # on the device: the host does not wait for `updated`
            if share.device.type == "cpu" or isinstance(averages[0], DTensor):
                for average, parameter in zip(averages, parameters, strict=True):
                    average.lerp_(parameter, share)
            else:
                _interpolate_together(averages, parameters, share)

    def load_into(self, module: nn.Module) -> None:
        """Load the averages into a copy of the module, and set it to eval mode; every process calls this."""
        for parameter, average in zip(module.parameters(), self.tensors, strict=True):
            parameter.data.copy_(unsharded(average))
        module.eval()

    def state(self) -> dict[str, Tensor]:
        """Return the unsharded averages by parameter name; every process calls this."""
        names = (name for name, _ in self._module.named_parameters())
        return {name: unsharded(tensor).contiguous() for name, tensor in zip(names, self.tensors, strict=True)}

    def begin(self, step: int) -> None:
        """Start the average at the current parameters, after `step` steps without an average."""
        self.tensors = [parameter.detach().clone() for parameter in self._module.parameters()]
        self._steps = step

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """Restore averages by parameter name, as they were after `step` steps."""
        names = (name for name, _ in self._module.named_parameters())
        shards = zip(names, self.tensors, strict=True)
        self.tensors = [sharded_as(state[name].to(shard.device), shard) for name, shard in shards]
        self._steps = step


def _interpolate_together(averages: list[Tensor], parameters: list[Tensor], share: Tensor) -> None:
    """Move averages towards the parameters by a share, a scalar, in place: three kernels for all of them.

    An average that equals its parameter stays exactly, as with lerp_: the sum of both parts, each rounded, would drift
    by rounding / share. torch._foreach_lerp_ takes no share that is on the device.
    """
    ways = torch._foreach_sub(parameters, averages)
    torch._foreach_mul_(ways, share)
    torch._foreach_add_(averages, ways)
