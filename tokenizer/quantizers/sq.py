"""The Gaussian stochastic quantizer of SQ-VAE (Takida et al. 2022): codes are sampled with a learned variance."""

import math
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.functional import embedding, log_softmax

from tokenizer.functional.float64 import real_dtype
from tokenizer.functional.soft_assignment import code_logits, likeliest, relaxed_one_hot
from tokenizer.functional.straight_through import straight_through
from tokenizer.functional.vectors import at_least_float32
from tokenizer.quantizers.base import QuantizerOutput, grid_of, maps_of, tokens_of
from tokenizer.quantizers.tables import TableInit, TableQuantizer

# Lower bound of a variance, as published.
_SMALLEST_VARIANCE = 1e-10
# Lower bound of a temperature, which float32 would round to 0 after some millions of updates.
_SMALLEST_TEMPERATURE = 1e-6


class SQQuantizer(TableQuantizer):
    """Stochastic assignment with variance = exp(encoder's log variance) + exp(a learned scalar).

        q(k | z) ~ exp(-||z - e_k||^2 / (2 variance)); quantized = relaxed sample of e in training, else the likeliest
        row
        losses: -H(q) + ||z - quantized||^2 / (2 variance)

    A relaxed sample is the mean of the rows, weighted by a relaxed one-hot sample. It is differentiable, so the method
    has no straight-through gradient and no commitment loss. Codes and counts are the likeliest codes, not the sampled
    ones. Train it with `loss.pixel` log_mse, the likelihood of the images under the best variance.

    Losses, summed over an image's tokens in nats, means over images:
        entropy: sum_k p_k log p_k, the negative entropy.
        distance: |z - q|^2 / (2 variance), with q the decoder input.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        variance: how the encoder's log variance is parametrised, the paper's gaussian_1 to gaussian_4: `scalar`,
            constant 0; `image`, one per image, the mean over its tokens of an additional channel; `position`, one per
            token, an additional channel; `dimension`, D per token, D additional channels. With `dimension` the
            likeliest code depends on them, so they are part of the latents: the last D of 2 D channels.
        initial_variance: initial value of the learned scalar's exponential. Published: 20 for CIFAR-10, 10 for MNIST.
        temperature_decay: the samples' temperature is exp(-temperature_decay t) at step t.
        init: initialisation of the table: see `initial_table`.

    Raises:
        ValueError: an initial variance that is not positive and finite.
    """

    rates_per_step = ("temperature_decay",)

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        variance: Literal["scalar", "image", "position", "dimension"] = "scalar",
        initial_variance: float = 20.0,
        temperature_decay: float = 1e-5,
        init: TableInit = "normal",
    ):
        super().__init__(codebook_size, codebook_dim)
        if not 0 < initial_variance < math.inf:
            raise ValueError(f"initial_variance must be above 0 and finite, got {initial_variance}")
        self.variance = variance
        self.temperature_decay = temperature_decay
        self.learn_table(init)
        self.log_variance = nn.Parameter(torch.full((), math.log(initial_variance)))

    @property
    def latent_channels(self) -> int:
        """D; 2 D if the assignment depends on the variance of each dimension."""
        return self.codebook_dim * (2 if self.variance == "dimension" else 1)

    @property
    def encoder_channels(self) -> int:
        """D, plus the channels of the log variance."""
        more = {"scalar": 0, "image": 1, "position": 1, "dimension": self.codebook_dim}
        return self.codebook_dim + more[self.variance]

    @property
    def temperature(self) -> Tensor:
        """Temperature of the relaxed samples at the current step, a scalar."""
        step = self.step.to(real_dtype(self.step.device))
        return torch.exp(-self.temperature_decay * step).clamp(min=_SMALLEST_TEMPERATURE)

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Extract the first D channels; all 2 D if the assignment depends on the variance of each dimension."""
        return encoder_output[:, : self.latent_channels]

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Find the likeliest code: (N, latent_channels), (K, D) -> (N,) int64."""
        means, log_variance = tokens[:, : self.codebook_dim], tokens[:, self.codebook_dim :]
        # A variance shared by all dimensions does not change the likeliest code.
        precision = self._precision(log_variance) if self.variance == "dimension" else torch.ones_like(means[:, :1])
        return likeliest(means, precision, at_least_float32(codebook, means))

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Look up the likeliest code, with a straight-through gradient to the first D channels of the latents."""
        return straight_through(self.lookup(self.encode(latents)), latents[:, : self.codebook_dim])

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        means, log_variance = encoder_output[:, : self.codebook_dim], encoder_output[:, self.codebook_dim :]
        if self.variance == "scalar":
            log_variance = torch.zeros_like(means[:, :1])
        elif self.variance == "image":
            log_variance = log_variance.mean(dim=(2, 3), keepdim=True).expand_as(means[:, :1])
        tokens, precision = tokens_of(means), self._precision(tokens_of(log_variance))  # (N, D), (N, 1) or (N, D)
        codebook = at_least_float32(self.codebook, tokens)
        logits = code_logits(tokens, precision, codebook)  # (N, K)
        if self.training:
            codes = logits.argmax(dim=1)  # (N,)
            gumbel = (
                self.noise(encoder_output)
                .gumbel(logits.view(len(encoder_output), -1, self.codebook_size))
                .view_as(logits)
            )
            rows = quantized = relaxed_one_hot(logits, gumbel, self.temperature) @ codebook
        else:
            codes = self.assign(tokens_of(self.latents(encoder_output)), codebook)
            rows = embedding(codes, codebook)
            quantized = straight_through(rows, tokens)
        log_p = log_softmax(logits, dim=1)
        losses = {
            "entropy": (log_p.exp() * log_p).sum() / len(encoder_output),
            "distance": (precision * (tokens - rows).square()).sum() / (2 * len(encoder_output)),
        }
        return QuantizerOutput(
            maps_of(quantized, encoder_output), grid_of(codes, encoder_output), losses, self.counts_of(codes)
        )

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 and 1: together with log_mse the losses add up to nats."""
        return {"entropy": 1.0, "distance": 1.0}

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the temperature and the learned part of the variance."""
        return {"temperature": self.temperature, "learned_variance": self.log_variance.detach().exp()}

    def _precision(self, log_variance: Tensor) -> Tensor:
        """Compute 1 / max(exp(log_variance) + exp(learned), 1e-10), in log space to avoid overflow; same shape."""
        total = torch.logaddexp(log_variance, at_least_float32(self.log_variance, log_variance))
        return total.clamp(min=math.log(_SMALLEST_VARIANCE)).neg().exp()
