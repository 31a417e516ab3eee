"""Quantizers whose codes are the signs of log2 K channels: there is no table, and nothing is looked up."""

import torch
from torch import Tensor

from tokenizer.functional.distributed import all_reduce_sum, global_count
from tokenizer.functional.sign_entropy import entropies, mean_distributions, sign_logits, token_entropies
from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import Quantizer, QuantizerOutput, tokens_of

# Codes are counted one by one: 2^30 counts are 8 GiB.
_MOST_CHANNELS = 30


class SignQuantizer(Quantizer):
    """A code is the list of D = log2 K signs, channel 1 its lowest bit; 0 counts as negative.

        q = s sign(z); code = sum_d 2^(d-1) [z_d > 0]; quantized = z + sg(q - z)
        q(c | z) ~ exp(-|z - c|^2 / T), over all codes c of {-s, s}^D
        losses: ||z - sg(q)||^2, the mean of H(q(. | z)), and H of the mean of q(. | z), which is maximised

    A loss of weight 0 is not computed.

    Losses:
        commitment: |z - sg q|^2, the mean over tokens and channels.
        token_entropy: mean entropy of the tokens' distributions, exact, in nats: small if no channel is close to 0.
        codebook_entropy: entropy of the mean distribution over the tokens of all processes, in nats: log K if all codes
            are used alike. Its weight is negative. If D is more than entropy_channels, it is the sum of the entropies
            of groups of channels, an upper bound: it does not see that groups depend on each other.

    Args:
        codebook_size: K, the number of codes, 2^D.
        codebook_dim: D, the number of channels.
        size: s, the magnitude of each channel of the decoder input.
        beta: weight of the commitment loss.
        token_entropy_weight: weight of token_entropy.
        codebook_entropy_weight: weight of codebook_entropy, which is subtracted.
        entropy_temperature: T.
        entropy_channels: most channels of a group. Memory grows with 2^channels, and with 2^(channels / 2) per token.

    Raises:
        ValueError: K is not 2^D or above 2^30, a temperature of 0, or no channel in a group.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        size: float,
        beta: float,
        token_entropy_weight: float,
        codebook_entropy_weight: float,
        entropy_temperature: float,
        entropy_channels: int,
    ):
        super().__init__(codebook_size, codebook_dim)
        channels = max(1, (codebook_size - 1).bit_length())  # those of the next power of 2
        if channels > _MOST_CHANNELS:
            raise ValueError(
                f"codebook_size {codebook_size} is too large to count its codes; set model.codebook_size to at most "
                f"{2**_MOST_CHANNELS}"
            )
        if codebook_dim != channels or codebook_size != 2**channels:
            raise ValueError(
                f"codebook_size {codebook_size} with codebook_dim {codebook_dim}: the signs of D channels are 2^D "
                f"codes; set model.codebook_size to {2**channels} and model.codebook_dim to {channels}"
            )
        if not entropy_temperature > 0:
            raise ValueError(f"entropy_temperature must be above 0, got {entropy_temperature}")
        if entropy_channels < 1:
            raise ValueError(f"entropy_channels must be at least 1, got {entropy_channels}")
        self.size = size
        self.beta = beta
        self.token_entropy_weight = token_entropy_weight
        self.codebook_entropy_weight = codebook_entropy_weight
        self.entropy_temperature = entropy_temperature
        self.entropy_channels = entropy_channels
        self.register_buffer("_one", torch.ones(()), persistent=False)  # the dtype of the rows
        self.register_buffer("_places", 2 ** torch.arange(codebook_dim).view(-1, 1, 1), persistent=False)

    @property
    def codebook(self) -> Tensor:
        """All codes' rows (K, D)."""
        codes = torch.arange(self.codebook_size, device=self._places.device)
        return tokens_of(self.embed(codes.view(1, 1, -1)))

    def assign_latents(self, latents: Tensor) -> Tensor:
        return self._codes(latents > 0)

    def embed(self, codes: Tensor) -> Tensor:
        return self._rows((codes[:, None] & self._places) > 0)

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        latents = self.latents(encoder_output)
        positive = latents > 0
        rows, codes = self._rows(positive), self._codes(positive)
        losses = {}
        if self.beta:
            losses["commitment"] = (latents - rows).square().mean()
        if self.token_entropy_weight or self.codebook_entropy_weight:
            losses |= self._entropy_losses(sign_logits(tokens_of(latents), self.size, self.entropy_temperature))
        return QuantizerOutput(straight_through(rows, latents), codes, losses, self.counts_of(codes))

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return beta, token_entropy_weight, and minus codebook_entropy_weight, for those that are not 0."""
        weights = {
            "commitment": self.beta,
            "token_entropy": self.token_entropy_weight,
            "codebook_entropy": -self.codebook_entropy_weight,
        }
        return {name: weight for name, weight in weights.items() if weight}

    def _entropy_losses(self, logits: Tensor) -> dict[str, Tensor]:
        """Compute the entropies that have a weight, from the log odds of the signs (N, D)."""
        losses = {}
        if self.token_entropy_weight:
            losses["token_entropy"] = token_entropies(logits).mean()
        if self.codebook_entropy_weight:
            mean = mean_distributions(logits, self.entropy_channels)
            if self.training:
                # The value is the mean over all processes, the gradient that of this process's tokens; averaged over
                # the processes, as by DistributedDataParallel, it is the gradient of the global batch.
                mean = straight_through(all_reduce_sum(mean * len(logits)) / global_count(logits), mean)
            losses["codebook_entropy"] = entropies(mean).sum()
        return losses

    def _rows(self, positive: Tensor) -> Tensor:
        """Return the rows of signs (B, D, h, w)."""
        size = self._one * self.size
        return torch.where(positive, size, -size)

    def _codes(self, positive: Tensor) -> Tensor:
        """Return the codes (B, h, w) int64 of signs (B, D, h, w)."""
        return (positive * self._places).sum(dim=1)
