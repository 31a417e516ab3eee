"""ArcVQPixelCNNPipeline: class labels -> codes (PixelCNN) -> images (tokenizer)."""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from pipelines.class_labels import ClassConditionalPipeline, check_id2label
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
                position; the codes it returns replace the present ones.

        Raises:
            ValueError: labels, generators or an option that do not fit, before anything is sampled.
        """
        labels = self.check_labels(class_labels, self.prior.config.num_classes)
        generator = self.check_generators(generator, len(labels))
        self.check_output_type(output_type)
        if not temperature > 0:
            raise ValueError(f"temperature must be above 0, got {temperature}")
        if top_k is not None and top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {top_k}")
        if top_p is not None and not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {top_p}")

        def on_position(position: int, codes: Tensor) -> Tensor:
            if callback_on_step_end is None:
                return codes
            return (callback_on_step_end(self, position, position, {"codes": codes}) or {}).get("codes", codes)

        generators = generator if isinstance(generator, list) else [generator] * len(labels)
        codes = self.prior.sample(labels, generators, temperature, top_k, top_p, self.progress_bar, on_position)
        output = self.to_output(self.vqvae.decode_codes(codes), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)
