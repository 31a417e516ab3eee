"""The average of a module's parameters over its training."""

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from arcvq.runs.trained_module import sharded_as, whole


class Average:
    """The exponential moving average of a module's parameters.

    After t steps the decay is (1 + t) / (10 + t), where that is lower, so that the beginning is soon forgotten.

    Args:
        module: in training; each process may have a shard of it (FSDP), and then has one of the average.
        decay: of the average.

    Attributes:
        tensors: the averages, in the order of the parameters.
    """

    def __init__(self, module: nn.Module, decay: float):
        self._module = module
        self._decay = decay
        self._steps = 0
        self.tensors = [parameter.detach().clone() for parameter in module.parameters()]

    @torch.no_grad()
    def update(self, updated: Tensor) -> None:
        """Takes in the parameters as they are after a step, if they were `updated`, a bool scalar."""
        decay = min(self._decay, (1 + self._steps) / (10 + self._steps)) if self._steps else 0.0
        self._steps += 1
        shares = {  # on the device, so that the host need not know
            dtype: torch.full((), 1 - decay, dtype=dtype, device=updated.device) * updated
            for dtype in {average.dtype for average in self.tensors}
        }
        for average, parameter in zip(self.tensors, self._module.parameters(), strict=True):
            average.lerp_(parameter, shares[average.dtype])

    def load_into(self, module: nn.Module) -> None:
        """Loads the averages into a copy of the module, and puts it in eval mode. To be called by every process."""
        for parameter, average in zip(module.parameters(), self.tensors, strict=True):
            parameter.data.copy_(whole(average))
        module.eval()

    def state(self) -> dict[str, Tensor]:
        """The averages by their parameters' names, whole. To be called by every process."""
        names = (name for name, _ in self._module.named_parameters())
        return {name: whole(tensor).contiguous() for name, tensor in zip(names, self.tensors, strict=True)}

    def begin(self, step: int) -> None:
        """Takes the parameters as they are for the averages, after so many steps of training without any."""
        self.tensors = [parameter.detach().clone() for parameter in self._module.parameters()]
        self._steps = step

    def load_state(self, state: Mapping[str, Tensor], step: int) -> None:
        """Takes up averages by their parameters' names, as they were after so many steps."""
        names = (name for name, _ in self._module.named_parameters())
        shards = zip(names, self.tensors, strict=True)
        self.tensors = [sharded_as(state[name].to(shard.device), shard) for name, shard in shards]
        self._steps = step
