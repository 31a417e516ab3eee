"""Layers that keep damage in its place (NUWA-LIP, Ni et al. 2022, arXiv 2202.05009): features and mask => features.

A mask m (B, 1, H, W) is 1 where an image is defective, and 0 elsewhere. What a layer outputs where the mask is 0 comes
from intact inputs alone; where it is 1, from all of them:

    convolution: (W x + b) m' + (W (x (1 - m)) + b) (1 - m'), m of the input and m' of the output
    norm:        N(x) m + N_m(x (1 - m)) (1 - m), N_m with the statistics of the intact values of a group
    attention:   an intact query sees intact keys alone, a defective one sees all

No mask stands for one of ones. The layers bear the names of diffusers' ones, so that their weights fit.
"""

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import group_norm, scaled_dot_product_attention, silu

from tokenizer.functional.vectors import at_least_float32

# Groups of every norm, fixed in the paper.
GROUPS = 32
# Added to variances and to numbers of intact values.
_EPSILON = 1e-6


class MaskedConv2d(nn.Conv2d):
    """A convolution whose outputs at intact places do not see defective inputs."""

    def forward(self, features: Tensor, mask: Tensor | None = None, outer: Tensor | None = None) -> Tensor:
        """Convolve features (B, C, H, W) with their mask (B, 1, H, W); `outer` is that of the output, if another."""
        whole = super().forward(features)
        if mask is None:
            return whole
        outer = mask if outer is None else outer
        return torch.where(outer > 0, whole, super().forward(features * (1 - mask)))


class MaskedGroupNorm(nn.GroupNorm):
    """A group norm of unbiased variance, whose outputs at intact places are of intact values' mean and variance."""

    def __init__(self, channels: int):
        super().__init__(GROUPS, channels, eps=_EPSILON)

    def forward(self, features: Tensor, mask: Tensor | None = None) -> Tensor:
        """Normalise features (B, C, H, W) with their mask (B, 1, H, W)."""
        values = at_least_float32(features, features)
        weight, bias = (at_least_float32(parameter, values) for parameter in (self.weight, self.bias))
        number = values[0].numel() // self.num_groups
        # With the variance v of n values, v n / (n - 1) + eps = (v + eps (n - 1) / n) n / (n - 1).
        share = (number - 1) / number
        with torch.autocast(features.device.type, enabled=False):
            whole = group_norm(values, self.num_groups, weight * share**0.5, bias, self.eps * share)
            if mask is not None:
                whole = torch.where(mask > 0, whole, self._of_intact(values, mask, weight, bias))
        return whole.to(features.dtype)

    def _of_intact(self, values: Tensor, mask: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        """Normalise by the statistics of a group's intact values; with none or one of them, only finite."""
        groups = rearrange(values * (1 - mask), "b (g c) h w -> b g c h w", g=self.num_groups)
        defective = mask[:, None].to(values.dtype)  # (B, 1, 1, H, W)
        number = groups[0, 0].numel()
        lost = defective.sum(dim=(2, 3, 4), keepdim=True) * groups.shape[2]
        over = {"dim": (2, 3, 4), "keepdim": True}
        mean = groups.mean(**over) * (number / (number - lost + self.eps))
        filled = groups + mean * defective  # the mean in the place of defective values adds nothing to the variance
        variance = (filled - filled.mean(**over)).square().sum(**over) / (number - lost - 1 + self.eps)
        normalised = (groups - mean) * (variance.clamp(min=0) + self.eps).rsqrt()
        normalised = rearrange(normalised, "b g c h w -> b (g c) h w")
        return normalised * weight[:, None, None] + bias[:, None, None]


class MaskedResidualBlock(nn.Module):
    """Two masked convolutions after norms, beside the input; a 1 x 1 convolution where the width changes."""

    def __init__(self, inputs: int, outputs: int):
        super().__init__()
        self.norm1, self.conv1 = MaskedGroupNorm(inputs), MaskedConv2d(inputs, outputs, 3, padding=1)
        self.norm2, self.conv2 = MaskedGroupNorm(outputs), MaskedConv2d(outputs, outputs, 3, padding=1)
        self.conv_shortcut = nn.Conv2d(inputs, outputs, 1) if inputs != outputs else nn.Identity()

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Transform features (B, C, H, W) with their mask (B, 1, H, W)."""
        hidden = self.conv1(silu(self.norm1(features, mask)), mask)
        hidden = self.conv2(silu(self.norm2(hidden, mask)), mask)
        return self.conv_shortcut(features) + hidden


class MaskedAttention(nn.Module):
    """Attention of one head over all places, in which intact queries do not see defective keys."""

    def __init__(self, channels: int):
        super().__init__()
        self.group_norm = MaskedGroupNorm(channels)
        self.to_q, self.to_k, self.to_v = (nn.Linear(channels, channels) for _ in range(3))
        self.to_out = nn.ModuleList([nn.Linear(channels, channels)])

    def forward(self, features: Tensor, mask: Tensor | None) -> Tensor:
        """Transform features (B, C, H, W) with their mask (B, 1, H, W)."""
        tokens = rearrange(self.group_norm(features, mask), "b c h w -> b (h w) c")
        seen = None
        if mask is not None:
            defective = rearrange(mask > 0, "b 1 h w -> b (h w)")
            seen = defective[:, :, None] | ~defective[:, None, :]  # (B, queries, keys)
        found = scaled_dot_product_attention(self.to_q(tokens), self.to_k(tokens), self.to_v(tokens), attn_mask=seen)
        found = self.to_out[0](found)
        return features + rearrange(found, "b (h w) c -> b c h w", h=features.shape[2])
