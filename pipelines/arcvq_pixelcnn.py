"""ArcVQPixelCNNPipeline: class labels -> codes (PixelCNN) -> images (tokenizer)."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from diffusers import ImagePipelineOutput
from torch import Tensor

from pipelines.call_arguments import check_callback, check_evaluating, check_output_type, replaced
from pipelines.carried_options import settled
from pipelines.class_conditional import ClassConditionalPipeline, check_id2label
from priors.code_sampling import CodeSampler
from priors.number_arguments import described
from priors.pixelcnn import PixelCNN, code_grid
from tokenizer.model import VQTokenizer


class ArcVQPixelCNNPipeline(ClassConditionalPipeline):
    """Class-conditional PixelCNN over the codes of a tokenizer.

    Args:
        vqvae: the tokenizer.
        prior: the PixelCNN over its code grid.
        id2label: class id -> name, for every class; None: the names noted on the prior, else the ids. They are noted on
            the prior, and go with it if a pipeline is built from another's components.

    Raises:
        TypeError: a component of another class.
        ValueError: a prior with another number of codes or another grid than the tokenizer, a tokenizer without codes
            or with several per token, or names that do not cover the classes.
    """

    model_cpu_offload_seq = "prior->vqvae"
    _callback_tensor_inputs = ("codes",)
    _prior = "prior"
    _carried = ("id2label",)

    def __init__(self, vqvae: VQTokenizer, prior: PixelCNN, id2label: dict | None = None):
        super().__init__()
        components = {"vqvae": vqvae, "prior": prior}
        classes = self.check_components(components)
        names = settled(prior, "id2label", id2label)
        options = {"id2label": check_id2label(names, classes)}
        self.register(components, options, options if names is not None else ())
        self._compiled = False

    @classmethod
    def _fitting_classes(cls, components: Mapping[str, Any]) -> int:
        prior, vqvae = components["prior"], components["vqvae"]
        modelled = (prior.config.codebook_size, *prior.config.grid_size)
        given = (vqvae.config.codebook_size, *code_grid(vqvae))
        if modelled != given:
            raise ValueError(f"the prior models (K, h, w) = {modelled}, the tokenizer has {given}")
        return prior.config.num_classes

    def optimize(self, compile: bool = False) -> "ArcVQPixelCNNPipeline":
        """Make the sampling faster, in place.

        Args:
            compile: compile a position's step with torch.compile, at the first call for each number of images.
        """
        self._compiled = compile
        return self

    def check_sampling(self, temperature: float, top_k: int | None, top_p: float | None, guidance_scale: float) -> None:
        """Check options of `__call__`; raise TypeError or ValueError for those that cannot work."""
        self.prior.check_sampler(CodeSampler(guidance_scale, temperature, top_k, top_p))

    @torch.no_grad()
    def bits_per_dimension(self, images: Tensor, class_labels: int | Sequence[int] | Tensor) -> Tensor:
        """Compute the prior's code length of each image, in bits per pixel and channel, (B,) float32.

        It is a rate, not a likelihood of the pixels, because the tokenizer is lossy.

        Args:
            images: (B, C, H, W) in [-1, 1].
            class_labels: class ids, one per image.

        Raises:
            TypeError: images that are no tensor.
            ValueError: labels that do not fit, or a prior in training mode with dropout.
        """
        labels = self.check_labels(class_labels, self.check_ready())
        if not isinstance(images, Tensor):
            raise TypeError(f"images must be a Tensor (B, C, H, W) in [-1, 1], got {described(images)}")
        if len(labels) != len(images):
            raise ValueError(f"{len(images)} images need as many class_labels, got {len(labels)}")
        check_evaluating("prior", self.prior)
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
        callback_on_step_end_tensor_inputs: Sequence[str] = ("codes",),
    ) -> ImagePipelineOutput | tuple[Any]:
        """Sample one image per class label.

        Several threads may call one pipeline at once, each with its own generators, unless it is offloaded.

        Args:
            class_labels: class ids, one per image.
            temperature: divides the logits, > 0; below 1 is safer, above 1 more varied.
            top_k: keep the k most likely codes.
            top_p: keep the smallest set of codes whose probability reaches p.
            generator: one per image (a batch then equals single calls), or one for all.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1] or `pt` (B, C, H, W) in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: called as f(pipeline, position, position, {"codes": codes (B, h, w)}) after every
                position; the code at this position in the dict that it returns replaces the drawn one. It may return
                None.
            guidance_scale: s in u + s (c - u) of the logits; 1 is no guidance, other values cost twice and need a prior
                trained with label dropout.
            codes: (B, h, w) int64 to complete, -1 for each code to draw: `vqvae.encode_codes(images)` with its lower
                rows set to -1 completes images.
            callback_on_step_end_tensor_inputs: names of the tensors for the callback, `codes` or nothing.

        Raises:
            TypeError: an option of another type, or a replaced component of another class.
            ValueError: labels, generators or an option that do not fit. All these errors come before sampling. During
                sampling: an unusable result of a callback, or images that are not finite (for `pt` they are NaN
                instead).
        """
        labels = self.check_labels(class_labels, self.check_ready())
        generator = self.check_generators(generator, len(labels))
        check_output_type(output_type)
        check_callback(callback_on_step_end, callback_on_step_end_tensor_inputs, self._callback_tensor_inputs)

        def called_back(position: int, codes: Tensor) -> Tensor:
            given = {"codes": codes} if callback_on_step_end_tensor_inputs else {}
            returned = callback_on_step_end(self, position, position, given)
            return self._checked(replaced("codes", returned, codes, self._callback_tensor_inputs), codes, position)

        codes = self.prior.sample(
            labels,
            generator if isinstance(generator, list) else [generator] * len(labels),
            temperature,
            top_k,
            top_p,
            self.progress_bar,
            None if callback_on_step_end is None else called_back,
            guidance_scale,
            codes,
            compile=self._compiled,
        )
        output = self.to_output(self.in_slices(self.vqvae.decode_codes, codes), output_type)
        self.maybe_free_model_hooks()
        return ImagePipelineOutput(images=output) if return_dict else (output,)

    def _checked(self, codes: Tensor, drawn: Tensor, position: int) -> Tensor:
        """Check the code that a callback returned at this position; raise ValueError if it is none."""
        if codes is not drawn:
            returned, last = codes.flatten(1)[:, position], self.prior.config.codebook_size - 1
            if returned.min() < 0 or returned.max() > last:
                values = f"{returned.min().item()} to {returned.max().item()} at position {position}"
                raise ValueError(f"callback_on_step_end has returned codes {values}; return codes 0 to {last}")
        return codes
