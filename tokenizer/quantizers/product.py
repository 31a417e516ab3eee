"""Several codes per token, one for each part of its channels: product quantization and MoVQ's multichannel codes.

Product quantization (Jégou et al. 2011) has a table for each part; the multichannel representation of MoVQ (Zheng et
al. 2022, arXiv 2209.09002) has one table for all of them.
"""

from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor, nn

from tokenizer.quantizers.base import Quantizer, QuantizerOutput

# The quantizers with one table and one code per token.
Base = Literal["arc", "arc_vae", "cosine", "cvq", "ema", "fc", "ibq", "lc", "rotation", "simvq", "sq", "vaevq", "vq"]


class ProductQuantizer(Quantizer):
    """`groups` codes per token: latents are split along the channels into equal chunks, each quantised by `base`.

        z = (z_1, ..., z_g); k_i = the base quantizer's code of z_i; quantized = (q_1, ..., q_g)
        losses: the base quantizer's, means over the groups

    The encoder output is split into g parts, and the base quantizer takes the latents, and whatever else its method
    needs, from each part. A shared table sees the chunks of an image as images of their own, so its statistics,
    anchors and top-k are taken over all chunks of the batch. A loss that a base quantizer sums over an image (those of
    sq, `kl` of vaevq and arc_vae) is one of a chunk, averaged.

    Codes are (B, h, w, g) in [0, K), or (B, h, w) for one group. With tables of their own, code k of group i is row
    i K + k of `codebook` and of `counts`, so that usage and perplexity are those of g K codes.

    Args:
        codebook_size: K, the number of codes of each table.
        codebook_dim: D, the channels of the decoder's input; a code has D / g.
        base: name of the quantizer of a chunk, one with a single table.
        groups: g, the number of chunks.
        shared: whether one table quantises all chunks, as in MoVQ; else each has its own, as in product quantization.
        base_options: options of the base quantizer by name; those not given keep its defaults.

    Attributes:
        bases: the quantizers of the chunks; one alone with `shared`.

    Raises:
        ValueError: no group, channels that cannot be split into so many, or an option that the base quantizer refuses.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        base: Base = "vq",
        groups: int = 4,
        shared: bool = False,
        base_options: dict[str, Any] | None = None,
    ):
        # Not at the top: the registry imports this module.
        from tokenizer.quantizers import make_quantizer

        super().__init__(codebook_size, codebook_dim)
        if groups < 1:
            raise ValueError(f"product.groups must be at least 1, got {groups}")
        if codebook_dim % groups:
            raise ValueError(
                f"{codebook_dim} channels cannot be split into product.groups {groups} chunks; set model.codebook_dim "
                "to a multiple of model.quantizer_options.groups"
            )
        self.depth = groups
        self.shared = shared
        self.bases = nn.ModuleList(
            make_quantizer(base, codebook_size, codebook_dim // groups, base_options or {})
            for _ in range(1 if shared else groups)
        )
        self.decodes = self.bases[0].decodes

    @property
    def latent_channels(self) -> int:
        """Channels of the latents, those of all chunks."""
        return self.depth * self.bases[0].latent_channels

    @property
    def encoder_channels(self) -> int:
        """Channels of the encoder output, those of all chunks."""
        return self.depth * self.bases[0].encoder_channels

    @property
    def codebook_rows(self) -> int:
        """K for a shared table, g K for tables of their own."""
        return len(self.bases) * self.codebook_size

    @property
    def codebook(self) -> Tensor:
        """The tables one below the other, (`codebook_rows`, D / g)."""
        return torch.cat([base.codebook for base in self.bases])

    def rows_of(self, codes: Tensor) -> Tensor:
        """Find the rows of `codebook` of codes (B, h, w, g), or (B, h, w) for one group: equal shape."""
        if len(self.bases) == 1:
            return codes
        return codes + self.codebook_size * torch.arange(self.depth, device=codes.device)

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Extract the latents of each chunk."""
        parts = zip(self.bases, self._chunks(encoder_output), strict=True)
        return self._joined([base.latents(part) for base, part in parts])

    def assign_latents(self, latents: Tensor) -> Tensor:
        parts = zip(self.bases, self._chunks(latents), strict=True)
        return self._joined_codes([base.assign_latents(part) for base, part in parts])

    def embed(self, codes: Tensor) -> Tensor:
        parts = zip(self.bases, self._chunks_of_codes(codes), strict=True)
        return self._joined([base.embed(part) for base, part in parts])

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Map latents to the decoder input, chunk by chunk with the base quantizer's gradient."""
        parts = zip(self.bases, self._chunks(latents), strict=True)
        return self._joined([base.quantize_latents(part) for base, part in parts])

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        parts = zip(self.bases, self._chunks(encoder_output), strict=True)
        outputs = [base.quantize(part) for base, part in parts]
        return QuantizerOutput(
            self._joined([output.quantized for output in outputs]),
            self._joined_codes([output.codes for output in outputs]),
            _means([output.losses for output in outputs]),
            torch.cat([output.counts for output in outputs]),
            None if outputs[0].sampled is None else self._joined([output.sampled for output in outputs]),
        )

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return the weights of the base quantizer."""
        return self.bases[0].loss_weights()

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raise ValueError if a table sees too few chunks to train on."""
        self.bases[0].check_batch(tokens * self.depth // len(self.bases), processes)

    def set_total_steps(self, steps: int) -> None:
        """Set the length of the training for each table."""
        for base in self.bases:
            base.set_total_steps(steps)

    def seed_noise(self, seed: int, first_image: int) -> None:
        """Seed the noise of the coming batches: each chunk of an image has its own, in any split of the batch."""
        for index, base in enumerate(self.bases):
            if self.shared:
                base.seed_noise(seed, first_image * self.depth)
            else:
                base.seed_noise(seed * self.depth + index, first_image)

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Update the state of each table, and count the update."""
        parts = zip(self.bases, self._chunks(encoder_output), self._chunks_of_codes(codes), strict=True)
        for base, part, part_codes in parts:
            base.after_update(part, part_codes)
        super().after_update(encoder_output, codes)

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the means of the tables' diagnostics."""
        return _means([base.diagnostics() for base in self.bases])

    def _chunks(self, maps: Tensor) -> list[Tensor]:
        """Split maps (B, g C, h, w) into what each base quantizer takes: g of (B, C, h, w), or one (B g, C, h, w).

        The chunks of an image follow each other, so that a split of the batch splits the stack alike.
        """
        if self.shared:
            return [rearrange(maps, "b (g c) h w -> (b g) c h w", g=self.depth)]
        return list(maps.chunk(self.depth, dim=1))

    def _joined(self, parts: list[Tensor]) -> Tensor:
        """Join maps again: the inverse of `_chunks`."""
        if self.shared:
            return rearrange(parts[0], "(b g) c h w -> b (g c) h w", g=self.depth)
        return torch.cat(parts, dim=1)

    def _chunks_of_codes(self, codes: Tensor) -> list[Tensor]:
        """Split codes (B, h, w, g), or (B, h, w) for one group, as `_chunks` splits maps: without channels."""
        if self.depth == 1:
            return [codes]
        return [rearrange(codes, "b h w g -> (b g) h w")] if self.shared else list(codes.unbind(dim=-1))

    def _joined_codes(self, parts: list[Tensor]) -> Tensor:
        """Join codes again: the inverse of `_chunks_of_codes`."""
        if self.depth == 1:
            return parts[0]
        if self.shared:
            return rearrange(parts[0], "(b g) h w -> b h w g", g=self.depth)
        return torch.stack(parts, dim=-1)


def _means(scalars: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    """Average scalars of several quantizers by their names."""
    if len(scalars) == 1:
        return scalars[0]
    return {name: torch.stack([one[name] for one in scalars]).mean() for name in scalars[0]}
