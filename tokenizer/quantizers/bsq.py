"""Binary spherical quantization (BSQ, Zhao et al. 2024, arXiv 2406.07548): signs of a unit vector, of length 1."""

from torch import Tensor

from tokenizer.quantizers.base import unit_latents
from tokenizer.quantizers.signs import SignQuantizer


class BSQQuantizer(SignQuantizer):
    """Latents on the unit sphere; each channel becomes +1 / sqrt(D) or -1 / sqrt(D), so that codes lie on it too.

        u = z / ||z||; q = sign(u) / sqrt(D); code = sum_d 2^(d-1) [u_d > 0]; quantized = u + sg(q - u)
        losses: w_token E[H(q(. | u))] - w_codebook sum_d H(E[q(c_d | u)]) + beta ||u - sg(q)||^2

    The losses and q(c | u), a softmax over all codes of -|u - c|^2 / T, are those of `SignQuantizer`. As in the public
    configuration, the second entropy is approximated by that of each channel alone, and there is no commitment loss:
    on the sphere the distance of a latent to its code is at most sqrt(2 - 2 / sqrt(D)). A zero latent stays zero and
    gets code 0.

    Args:
        codebook_size: K, the number of codes, 2^D.
        codebook_dim: D, the number of channels.
        beta: weight of the commitment loss.
        token_entropy_weight: weight of the tokens' mean entropy.
        codebook_entropy_weight: weight of the entropy of the mean distribution, which is maximised.
        entropy_temperature: T. At the default no channel is decided: at |u_d| = 1 / sqrt(D) its odds are e^(4 / D).
        entropy_channels: most channels of a group in that entropy.

    Raises:
        ValueError: K is not 2^D or above 2^30, a temperature of 0, or no channel in a group.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        beta: float = 0.0,
        token_entropy_weight: float = 0.1,
        codebook_entropy_weight: float = 0.1,
        entropy_temperature: float = 1.0,
        entropy_channels: int = 1,
    ):
        super().__init__(
            codebook_size,
            codebook_dim,
            codebook_dim**-0.5,
            beta,
            token_entropy_weight,
            codebook_entropy_weight,
            entropy_temperature,
            entropy_channels,
        )

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Normalise the encoder output to length 1, in float32 at least; the method uses directions only."""
        return unit_latents(encoder_output)
