"""The vanilla vector quantizer with the rotation trick (Fifty et al. 2024, arXiv 2410.06424) as its gradient."""

from dataclasses import replace

import torch
from torch import Tensor

from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import QuantizerOutput
from tokenizer.quantizers.vq import VQQuantizer


class RotationQuantizer(VQQuantizer):
    """`VQQuantizer` with another gradient to the encoder; rows, losses and arguments are the same.

        k = argmin_k ||z - e_k||; quantized = sg(||e_k|| / ||z|| R) z, R the rotation from z's direction to e_k's
        losses: ||sg(z) - e_k||^2 + beta ||z - sg(e_k)||^2

    With a straight-through gradient, all latents of a code get the code's gradient unchanged. Here it is rotated back
    from the code's direction to the latent's and scaled by |e_k| / |z|: the angle between gradient and code becomes the
    angle between gradient and latent, so that latents of one code can be pushed apart.
    """

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        output = super().quantize(encoder_output)
        return replace(output, quantized=rotated_through(encoder_output, output.quantized.detach()))


def rotated_through(latents: Tensor, rows: Tensor) -> Tensor:
    """Return the rows exactly, with a gradient to the latents through the map of `rotated`; both (B, D, h, w)."""
    return straight_through(rows, rotated(latents, rows))


def rotated(latents: Tensor, rows: Tensor) -> Tensor:
    """Rotate and scale the latents onto the rows, both (B, D, h, w), by a linear map that is constant in the gradient.

    With directions a of the latent, b of the row, and r of a + b, the map is |row| / |latent| (I - 2 r r^T + 2 b a^T),
    the rotation in the plane of both. If either vector is zero, or they point in opposite directions, the map is the
    identity.
    """
    with torch.no_grad():
        lengths = [torch.linalg.vector_norm(vectors, dim=1, keepdim=True) for vectors in (latents, rows)]
        a, b = (vectors / length for vectors, length in zip((latents, rows), lengths, strict=True))
        between = a + b
        span = torch.linalg.vector_norm(between, dim=1, keepdim=True)
        scale, r = lengths[1] / lengths[0], between / span
        exists = (span > 1e-6) & scale.isfinite() & (scale > 0)
        a, b, r = (torch.where(exists, direction, 0.0) for direction in (a, b, r))
        scale = torch.where(exists, scale, 1.0)
    along_r, along_a = ((direction * latents).sum(dim=1, keepdim=True) for direction in (r, a))
    return scale * (latents - 2 * along_r * r + 2 * along_a * b)
