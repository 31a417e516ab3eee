"""ArcVQPixelCNNPipeline: class labels -> codes (PixelCNN) -> images (tokenizer)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from pipelines.class_labels import ClassConditionalPipeline, check_id2label
from priors.code_choice import CodeChoice
from priors.pixelcnn import PixelCNN, code_grid
from tokenizer.model import VQTokenizer


class ArcVQPixelCNNPipeline(ClassConditionalPipeline):
    """Class-conditional PixelCNN over the codes of a tokenizer.

    Args:
        vqvae: the tokenizer.
        prior: the PixelCNN over its code grid.
        id2label: class id -> name, for every class.

    Raises:
        ValueError: a prior with another number of codes or another grid than the tokenizer, or a tokenizer that has
            no codes, or several for each token.
    """

    model_cpu_offload_seq = "prior->vqvae"

    def __init__(self, vqvae: VQTokenizer, prior: PixelCNN, id2label: dict | None = None):
        super().__init__()
        theirs = (prior.config.codebook_size, *prior.config.grid_size)
        ours = (vqvae.config.codebook_size, *code_grid(vqvae))
        if theirs != ours:
            raise ValueError(f"the prior models (K, h, w) = {theirs}, the tokenizer has {ours}")
        self.register_modules(vqvae=vqvae, prior=prior)
        self.register_to_config(id2label=check_id2label(id2label, prior.config.num_classes))
        self._compiled = False

    def optimize(self, compile: bool = False) -> "ArcVQPixelCNNPipeline":
        """Makes the sampling faster, in place.

        Args:
            compile: a position's step through torch.compile, at the first call for each number of images.
        """
        self._compiled = compile
        return self

    def check_sampling(self, temperature: float, top_k: int | None, top_p: float | None, guidance_scale: float) -> None:
        """Raises ValueError for options of the call that cannot work; they are those of `__call__`."""
        self.prior.check_choice(CodeChoice(guidance_scale, temperature, top_k, top_p))

    @torch.no_grad()
    def bits_per_dimension(self, images: Tensor, class_labels: int | Sequence[int] | Tensor) -> Tensor:
        """What the prior asks for an image's codes, in bits per pixel and channel, (B,) float32.

        It is a rate and no likelihood of the pixels, of which the tokenizer loses some.

        Args:
            images: (B, C, H, W) in [-1, 1].
            class_labels: class ids, one per image.
        """
        labels = self.check_labels(class_labels, self.prior.config.num_classes)
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images need as many class_labels, got {len(labels)}")
        codes = self.vqvae.encode_codes(images.to(self._execution_device, self.vqvae.dtype))
        return self.prior.bits_per_code(codes, labels) * codes[0].numel() / images[0].numel()

    @torch.no_grad()
    def __call__(
        self,
        class_labels: int | Sequence[int] | Tensor,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        generator: torch.Generator | Sequence[torch.Generator] | None = None,
        output_type: str = "pil",
        return_dict: bool = True,
        callback_on_step_end: Callable[["ArcVQPixelCNNPipeline", int, int, dict[str, Tensor]], dict] | None = None,
        guidance_scale: float = 1.0,
        codes: Tensor | None = None,
    ) -> ImagePipelineOutput | tuple[Any]:
        """Samples one image per class label.

        Args:
            class_labels: class ids, one per image.
            temperature: divides the logits, > 0; below 1 is safer, above 1 more varied.
            top_k: only the k most likely codes.
            top_p: only the smallest set of codes that holds the probability p.
            generator: one per image (a batch then equals its singles), or one.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1] or `pt` (B, C, H, W) in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: called as f(pipeline, position, position, {"codes": codes (B, h, w)}) after every
                position; of the codes it returns, that of this position replaces the one that was drawn.
            guidance_scale: s in u + s (c - u) of the logits; 1 is no guidance, others cost twice and need a prior
                trained with label dropout.
            codes: (B, h, w) int64 to be completed, -1 where one is to be drawn: `vqvae.encode_codes(images)` with its
                lower rows at -1 completes images.

        Raises:
            ValueError: labels, generators or an option that do not fit, before anything is sampled.
        """
        labels = self.check_labels(class_labels, self.prior.config.num_classes)
        generator = self.check_generators(generator, len(labels))
        self.check_output_type(output_type)

        def on_position(position: int, codes: Tensor) -> Tensor:
            return (callback_on_step_end(self, position, position, {"codes": codes}) or {}).get("codes", codes)

        codes = self.prior.sample(
            labels,
            generator if isinstance(generator, list) else [generator] * len(labels),
            temperature,
            top_k,
            top_p,
            self.progress_bar,
            None if callback_on_step_end is None else on_position,
            guidance_scale,
            codes,
            compile=self._compiled,
        )
        output = self.to_output(self.in_slices(self.vqvae.decode_codes, codes), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)
