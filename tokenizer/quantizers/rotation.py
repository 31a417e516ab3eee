"""The vanilla vector quantizer with the rotation trick (Fifty et al. 2024, arXiv 2410.06424) for its gradient."""

from dataclasses import replace

import torch
from torch import Tensor

from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import QuantizerOutput
from tokenizer.quantizers.vq import VQQuantizer


class RotationQuantizer(VQQuantizer):
    """Rows and losses are those of `VQQuantizer`, and so are its arguments. Only what reaches the encoder differs.

    Straight through, all latents of a row's cell get the row's gradient as it is. Here it is turned by the rotation
    that takes the row's direction to the latent's, and scaled by |row| / |latent|: the angle between gradient and row
    becomes that between gradient and latent, so that latents of a cell may be pushed apart.
    """

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        output = super().quantize(encoder_output)
        rows = output.quantized.detach()
        return replace(output, quantized=straight_through(rows, rotated(encoder_output, rows)))


def rotated(latents: Tensor, rows: Tensor) -> Tensor:
    """The latents turned and scaled onto the rows, both (B, D, h, w), by a linear map that is constant to the gradient.

    With directions a of the latent and b of the row and r that of a + b: |row| / |latent| (I - 2 r r^T + 2 b a^T), the
    rotation in the plane of both. Where there is none, of a latent or a row that is zero, or one that points away from
    the other, the map is the identity.
    """
    with torch.no_grad():
        lengths = [torch.linalg.vector_norm(these, dim=1, keepdim=True) for these in (latents, rows)]
        a, b = (these / length for these, length in zip((latents, rows), lengths, strict=True))
        between = a + b
        span = torch.linalg.vector_norm(between, dim=1, keepdim=True)
        scale, r = lengths[1] / lengths[0], between / span
        exists = (span > 1e-6) & scale.isfinite() & (scale > 0)
        a, b, r = (torch.where(exists, direction, 0.0) for direction in (a, b, r))
        scale = torch.where(exists, scale, 1.0)
    along_r, along_a = ((direction * latents).sum(dim=1, keepdim=True) for direction in (r, a))
    return scale * (latents - 2 * along_r * r + 2 * along_a * b)
