"""Change how a module computes, not what: blocks compiled one by one, group norms in the precision of their input."""

import torch
from accelerate.utils.other import compile_regions_deepspeed, has_repeated_blocks, is_repeated_blocks
from torch import Tensor, nn
from torch.nn.functional import group_norm


def compile_in_place(module: nn.Module) -> None:
    """Compile a module at its first call; parameters keep their names.

    Blocks of one class that repeat, as those of a UNet, a VQGAN or a PixelCNN, are compiled one by one, and what is
    around them is not: that takes a fraction of the time, and blocks of one shape are compiled once.
    """
    if not has_repeated_blocks(module):
        module.compile()
        return
    blocks = sum(len(part) for part in module.modules() if is_repeated_blocks(part))
    dynamo = torch._dynamo.config
    # Blocks of one class share a limit, and each shape counts, in training and in evaluation.
    dynamo.recompile_limit = max(dynamo.recompile_limit, 2 * blocks)
    compile_regions_deepspeed(module)  # in place; nothing in it is DeepSpeed's


class InputPrecisionGroupNorm(nn.GroupNorm):
    """A group norm whose result has the precision of its input under autocast; sums are float32 in the kernel."""

    def forward(self, hidden: Tensor) -> Tensor:
        """Normalise features (B, C, ...)."""
        with torch.autocast(hidden.device.type, enabled=False):
            weight, bias = (None if value is None else value.to(hidden.dtype) for value in (self.weight, self.bias))
            return group_norm(hidden, self.num_groups, weight, bias, self.eps)


def keep_norms_in_input_precision(module: nn.Module) -> None:
    """Let all group norms of a module compute in the precision of their input, in place.

    CUDA's autocast gives them float32 results, which doubles the bytes that a network in bfloat16 moves.
    """
    for part in module.modules():
        if type(part) is nn.GroupNorm:
            part.__class__ = InputPrecisionGroupNorm
