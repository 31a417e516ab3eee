"""The contract between encoder and decoder: encoder output -> latents -> codes -> decoder input, and named losses.

    images          -> encoder output  (B, encoder_channels, h, w)    latents and, in some methods, their spread
    encoder output  -> latents         (B, latent_channels, h', w')   before quantisation: the tensors that priors model
    latents         -> codes           (B, h', w') int64; with `depth` codes per token (B, h', w', depth)
    codes           -> decoder input   (B, codebook_dim, h, w)

h' = h / downsampling. Most quantizers have one table of codes and derive from `tables.TableQuantizer`.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from tokenizer.functional.noise import ImageNoise, noise_key
from tokenizer.functional.straight_through import straight_through
from tokenizer.functional.usage import code_counts, perplexity, usage
from tokenizer.functional.vectors import at_least_float32, unit_vectors


@dataclass
class QuantizerOutput(BaseOutput):
    """Output of a quantizer.

    Attributes:
        quantized: (B, D, h, w), the decoder input, with a gradient to the encoder output. Do not modify it in place:
            the backward pass reads it.
        codes: (B, h', w') int64 in [0, K), or (B, h', w', depth); None for continuous methods.
        losses: named scalars, unweighted; `Quantizer.loss_weights` gives the weights.
        counts: (K,) int64, how often each row of the codebook occurs in this batch (g K rows with g tables); None for
            continuous methods.
        sampled: (B, D, h, w), a second decoder input that some methods train on in addition; else None.
    """

    # accelerate and diffusers expect defaults for all fields of an output but the first.
    quantized: Tensor
    codes: Tensor = None
    losses: dict[str, Tensor] = None
    counts: Tensor = None
    sampled: Tensor = None

    @property
    def usage(self) -> Tensor:
        """Share of the codes used in this batch."""
        return usage(self.counts)

    @property
    def perplexity(self) -> Tensor:
        """Perplexity of the codes in this batch."""
        return perplexity(self.counts)


class Quantizer(nn.Module, ABC):
    """A layer between encoder and decoder with its own losses; see the module's docstring for the shapes.

    A subclass defines `quantize`, `embed`, `assign_latents` and `loss_weights`, and overrides what its method changes.
    All computations run in float32 at least, whatever the autocast. `step` counts the completed generator updates and
    is saved with the weights.

    Attributes:
        codebook_size: K.
        codebook_dim: D, the channels of the decoder input.
        depth: codes per token; 0 for continuous methods.
        downsampling: positions of the decoder input along each side per latent token.
        decodes: decoder inputs per image in training, `quantized` and perhaps `sampled`.
        rates_per_step: options that are rates of a schedule per update; a training of half the length goes through the
            same schedule with twice the rates.
        values_per_token: image values per position of the decoder input: image channels times the network's squared
            downsampling. The tokenizer sets it.
    """

    depth: int = 1
    downsampling: int = 1
    decodes: int = 1
    rates_per_step: tuple[str, ...] = ()
    values_per_token: int = 1
    codebook: Tensor
    step: Tensor

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        if codebook_size < 1 or codebook_dim < 1:
            raise ValueError(
                f"codebook_size {codebook_size} x codebook_dim {codebook_dim}: "
                "a codebook needs at least one row and one column"
            )
        self.codebook_size = codebook_size
        self.codebook_dim = codebook_dim
        # Tensors, because code compiled for an integer would be compiled anew for each.
        self._noise_of: tuple[Tensor, Tensor] | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.codebook_dim

    @property
    def encoder_channels(self) -> int:
        """Channels of the encoder output."""
        return self.latent_channels

    @property
    def codebook_rows(self) -> int:
        """Rows of `codebook`, and length of `counts`: K, unless several tables have K rows each."""
        return self.codebook_size

    @abstractmethod
    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        """Compute `forward` for an encoder output in float32 at least, outside autocast."""

    @abstractmethod
    def assign_latents(self, latents: Tensor) -> Tensor:
        """Compute `encode` for latents in float32 at least, outside autocast."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """Compute `lookup` outside autocast."""

    @abstractmethod
    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return the weight of each of the `losses` at the current `step`."""

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Extract the latents from the encoder output; by default they are the same tensor."""
        return encoder_output

    def encode(self, latents: Tensor) -> Tensor:
        """Assign codes to latents: (B, latent_channels, h', w') -> (B, h', w') int64, or (B, h', w', depth)."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.assign_latents(at_least_float32(latents, latents))

    def lookup(self, codes: Tensor) -> Tensor:
        """Look up codes (B, h', w'), or (B, h', w', depth): the decoder input (B, D, h, w).

        Raises:
            ValueError: codes of another shape.
        """
        if self.depth and (codes.ndim != 3 + (self.depth > 1) or (self.depth > 1 and codes.shape[-1] != self.depth)):
            expected = "(B, h, w)" if self.depth == 1 else f"(B, h, w, {self.depth})"
            raise ValueError(f"expected codes {expected}, got {tuple(codes.shape)}")
        with torch.autocast(codes.device.type, enabled=False):
            return self.embed(codes)

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Map latents to the decoder input, `lookup(encode(latents))`, with a straight-through gradient."""
        return straight_through(self.lookup(self.encode(latents)), latents)

    def forward(self, encoder_output: Tensor) -> QuantizerOutput:
        """Quantise an encoder output (B, encoder_channels, h, w): decoder input, codes, losses and counts."""
        with torch.autocast(encoder_output.device.type, enabled=False):
            output = self.quantize(at_least_float32(encoder_output, encoder_output))
            output.quantized = output.quantized.to(encoder_output.dtype)
            if output.sampled is not None:
                output.sampled = output.sampled.to(encoder_output.dtype)
            return output

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raise ValueError if `tokens` per process are too few to train on; by default any number will do."""

    def set_total_steps(self, steps: int) -> None:
        """Set the length of the training, for methods with a schedule that ends with it; call it before training."""

    def seed_noise(self, seed: int, first_image: int) -> None:
        """Seed the noise of the coming batches with `seed` and the images' indices in the global batch.

        If a training splits its batches, call this before every forward pass with the part's offset in the global
        batch: any split then draws the same noise. Otherwise the noise comes from the global random state.
        """
        self._noise_of = noise_key(seed), torch.tensor(first_image)

    def noise(self, encoder_output: Tensor) -> ImageNoise:
        """Create the noise source of a batch; with a seed, every call gives the same noise."""
        return ImageNoise(len(encoder_output), encoder_output.device, *(self._noise_of or ()))

    def update_noise(self, rows: int) -> ImageNoise:
        """Create a source of `rows` rows of noise for `after_update`, equal on all processes.

        It is seeded by the noise's seed, or else by the step.
        """
        key = self.step if self._noise_of is None else self._noise_of[0]
        return ImageNoise(rows, self.step.device, key, first_image=-rows)  # no image of a batch has such an index

    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Update state after an optimizer step of the generator; all processes must call it, in training only.

        Args:
            encoder_output: (B, C, h, w), of this process's share of the batch, all micro-batches.
            codes: their codes.
        """
        self.step += 1

    def diagnostics(self) -> dict[str, Tensor]:
        """Return named scalars for the log that describe the state of the table at the current `step`."""
        return {}

    def counts_of(self, codes: Tensor) -> Tensor:
        """Count how often each row of the codebook occurs, (`codebook_rows`,) int64."""
        return code_counts(self.rows_of(codes), self.codebook_rows)

    def rows_of(self, codes: Tensor) -> Tensor:
        """Find the rows of `codebook` that codes stand for, in the shape of the codes: with one table, the codes."""
        return codes

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantizer":
        """Move to another device or dtype, but keep at least float32, even if the whole model is cast by `.half()`."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.is_floating_point() and result.element_size() < 4 else result

        return super()._apply(moved, recurse)


def tokens_of(latents: Tensor) -> Tensor:
    """Flatten maps (B, C, h, w) into tokens (B h w, C)."""
    return rearrange(latents, "b c h w -> (b h w) c")


def unit_latents(latents: Tensor) -> Tensor:
    """Normalise each token of (B, C, h, w) to length 1, in float32 at least; a zero token stays zero."""
    return unit_vectors(at_least_float32(latents, latents).movedim(1, -1)).movedim(-1, 1)


def grid_of(tokens: Tensor, latents: Tensor) -> Tensor:
    """Arrange tokens (B h w, ...) on the grid (B, h, w, ...) of `latents` (B, C, h, w)."""
    batch, _, height, width = latents.shape
    return tokens.reshape(batch, height, width, *tokens.shape[1:])


def maps_of(tokens: Tensor, latents: Tensor) -> Tensor:
    """Arrange tokens (B h w, C) as maps (B, C, h, w) on the grid of `latents` (B, ..., h, w)."""
    return rearrange(grid_of(tokens, latents), "b h w c -> b c h w")
