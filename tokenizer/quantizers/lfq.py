"""Look-up free quantization (LFQ, MAGVIT-v2, Yu et al. 2023, arXiv 2310.05737): a code is the signs of its channels."""

from tokenizer.quantizers.signs import SignQuantizer


class LFQQuantizer(SignQuantizer):
    """Each channel becomes +1 or -1; entropies keep channels away from 0 and codes in use.

        q = sign(z); code = sum_d 2^(d-1) [z_d > 0]; quantized = z + sg(q - z)
        losses: beta ||z - sg(q)||^2 + w_token E[H(q(. | z))] - w_codebook H(E[q(. | z)])

    The losses and q(c | z), a softmax over all codes of -|z - c|^2 / T, are those of `SignQuantizer`. Up to 2^18 codes
    the second entropy is exact; above, as published, it is approximated by groups of channels.

    Args:
        codebook_size: K, the number of codes, 2^D.
        codebook_dim: D, the number of channels.
        beta: weight of the commitment loss.
        token_entropy_weight: weight of the tokens' mean entropy.
        codebook_entropy_weight: weight of the entropy of the mean distribution, which is maximised.
        entropy_temperature: T. At the default a channel at 1 is decided, with odds of e^8, and between -1 and 1 it has
            a gradient. Public implementations take 0.01, at which it has one only within about 0.01 of 0.
        entropy_channels: most channels of a group in that entropy.

    Raises:
        ValueError: K is not 2^D or above 2^30, a temperature of 0, or no channel in a group.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        beta: float = 0.25,
        token_entropy_weight: float = 0.1,
        codebook_entropy_weight: float = 0.1,
        entropy_temperature: float = 0.5,
        entropy_channels: int = 18,
    ):
        super().__init__(
            codebook_size,
            codebook_dim,
            1.0,
            beta,
            token_entropy_weight,
            codebook_entropy_weight,
            entropy_temperature,
            entropy_channels,
        )
