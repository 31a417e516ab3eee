"""The contract between encoder and decoder: encoder output -> latents -> codes -> decoder input, and named losses.

    images          -> encoder output  (B, encoder_channels, h, w)    a latent and, where the method has it, its spread
    encoder output  -> latents         (B, latent_channels, h', w')   before quantisation: the tensors that priors model
    latents         -> codes           (B, h', w') int64; with `depth` codes per token (B, h', w', depth)
    codes           -> decoder input   (B, codebook_dim, h, w)

h' = h / downsampling. `tables.py` has what all quantizers with one table share; most are made of it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

import torch
from diffusers.utils import BaseOutput
from einops import rearrange
from torch import Tensor, nn

from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.straight_through import straight_through
from tokenizer.functional.usage import code_counts, perplexity, usage
from tokenizer.functional.vectors import at_least_float32, unit_vectors


@dataclass
class QuantizerOutput(BaseOutput):
    """What a quantizer gives.

    Attributes:
        quantized: (B, D, h, w), what the decoder takes, with a gradient to what the encoder gave. Not to be changed in
            place: the backward pass reads it.
        codes: (B, h', w') int64 in [0, K), or (B, h', w', depth); none without codes.
        losses: named scalars, not weighted; the weights are `Quantizer.loss_weights`.
        counts: (K,) int64, how often each code was used in this batch; none without codes.
        sampled: (B, D, h, w), in the training of some methods: another one that the images are decoded from as well.
    """

    # All but the first have defaults, as accelerate and diffusers expect of an output.
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
    """Stands between encoder and decoder, as the module's docstring says, and names the losses that train it.

    A subclass defines `quantize`, `embed`, `assign_latents` and `loss_weights`, and what of the rest differs in its
    method. Everything here is computed in float32 at least, whatever the autocast. `step` counts the completed
    generator updates and is saved.

    Attributes:
        codebook_size: K.
        codebook_dim: D, the channels of what the decoder takes.
        depth: codes of a token; 0: the method has none.
        downsampling: latent tokens along each side of the decoder's input, for one token.
        values_per_token: values of the image for each token of the decoder's input: its channels times the squared
            downsampling of the network, which the tokenizer sets.
    """

    depth: int = 1
    downsampling: int = 1
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
        self._noise_of: tuple[int, int] | None = None
        self.register_buffer("step", torch.zeros((), dtype=torch.int64))

    @property
    def latent_channels(self) -> int:
        """Channels of the latents."""
        return self.codebook_dim

    @property
    def encoder_channels(self) -> int:
        """Channels of what the encoder gives."""
        return self.latent_channels

    @abstractmethod
    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        """`forward`, of an encoder output in float32 at least and without autocast."""

    @abstractmethod
    def assign_latents(self, latents: Tensor) -> Tensor:
        """`encode`, of latents in float32 at least and without autocast."""

    @abstractmethod
    def embed(self, codes: Tensor) -> Tensor:
        """`lookup`, without autocast."""

    @abstractmethod
    def loss_weights(self) -> dict[str, float | Tensor]:
        """The weight of each of the `losses` at the present `step`."""

    def latents(self, encoder_output: Tensor) -> Tensor:
        """What the encoder gives -> latents. Here they are one thing."""
        return encoder_output

    def encode(self, latents: Tensor) -> Tensor:
        """Latents (B, latent_channels, h', w') -> codes (B, h', w') int64, or (B, h', w', depth)."""
        with torch.autocast(latents.device.type, enabled=False):
            return self.assign_latents(at_least_float32(latents, latents))

    def lookup(self, codes: Tensor) -> Tensor:
        """Codes (B, h', w'), or (B, h', w', depth) -> what the decoder takes, (B, D, h, w).

        Raises:
            ValueError: codes of another shape.
        """
        if self.depth and (codes.ndim != 3 + (self.depth > 1) or (self.depth > 1 and codes.shape[-1] != self.depth)):
            expected = "(B, h, w)" if self.depth == 1 else f"(B, h, w, {self.depth})"
            raise ValueError(f"expected codes {expected}, got {tuple(codes.shape)}")
        with torch.autocast(codes.device.type, enabled=False):
            return self.embed(codes)

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Latents -> what the decoder takes, `lookup(encode(latents))`, with a straight-through gradient to them."""
        return straight_through(self.lookup(self.encode(latents)), latents)

    def forward(self, encoder_output: Tensor) -> QuantizerOutput:
        """What the encoder gives -> what the decoder takes, codes, losses, counts."""
        with torch.autocast(encoder_output.device.type, enabled=False):
            output = self.quantize(at_least_float32(encoder_output, encoder_output))
            output.quantized = output.quantized.to(encoder_output.dtype)
            if output.sampled is not None:
                output.sampled = output.sampled.to(encoder_output.dtype)
            return output

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raises ValueError where `tokens` of a batch on each of the processes are too few to train on; none are."""

    def set_total_steps(self, steps: int) -> None:
        """To be called before a training of as many steps, where a schedule of the method ends with the training."""

    def seed_noise(self, seed: int, first_image: int) -> None:
        """Makes the noise of the coming batches a function of the seed and of the images' places in the whole batch.

        To be called before every forward pass of a training whose batches are split, with the place of its first
        image; any split then draws alike. Otherwise the noise comes from the global random state.
        """
        self._noise_of = (seed, first_image)

    @torch.compiler.disable  # a compiled one would be compiled anew for every seed
    def noise(self, encoder_output: Tensor) -> ImageNoise:
        """The source of noise for a batch; asked for again, it gives the same noise again if there is a seed."""
        return ImageNoise(len(encoder_output), encoder_output.device, *(self._noise_of or ()))

    @property
    def update_seed(self) -> int:
        """Of what `after_update` draws, the same on all processes: the noise's seed, or else the updates so far."""
        return self._noise_of[0] if self._noise_of else int(self.step)

    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """To be called once after every completed generator update, in training only, by all processes.

        Args:
            encoder_output: what the encoder gave for this process's share of the batch, all its parts, (B, C, h, w).
            codes: its codes.
        """
        self.step += 1

    def diagnostics(self) -> dict[str, Tensor]:
        """Named scalars that tell how the table is doing at the present `step`, for the log."""
        return {}

    def counts_of(self, codes: Tensor) -> Tensor:
        """How often each code occurs, (K,) int64."""
        return code_counts(codes, self.codebook_size)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "Quantizer":
        """Moves to another device or type, but never below float32, as `.half()` of the whole model would ask for."""

        def moved(tensor: Tensor) -> Tensor:
            result = fn(tensor)
            return tensor.to(result.device) if result.is_floating_point() and result.element_size() < 4 else result

        return super()._apply(moved, recurse)


def tokens_of(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> (B h w, C)."""
    return rearrange(latents, "b c h w -> (b h w) c")


def unit_latents(latents: Tensor) -> Tensor:
    """(B, C, h, w) -> each token at length 1, in float32 at least; a zero token stays zero."""
    return unit_vectors(at_least_float32(latents, latents).movedim(1, -1)).movedim(-1, 1)


def grid_of(tokens: Tensor, latents: Tensor) -> Tensor:
    """(B h w, ...) -> (B, h, w, ...) of these latents (B, C, h, w)."""
    batch, _, height, width = latents.shape
    return tokens.reshape(batch, height, width, *tokens.shape[1:])


def maps_of(tokens: Tensor, latents: Tensor) -> Tensor:
    """(B h w, C) -> (B, C, h, w) of these latents (B, ..., h, w)."""
    return rearrange(grid_of(tokens, latents), "b h w c -> b c h w")
