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
        id2label: class id -> name, for every class; None: those of the pipeline that the prior comes from, or else the
            numbers. They are noted on the prior, and go with it where a pipeline is made of another's components.

    Raises:
        TypeError: a component of another class.
        ValueError: a prior with another number of codes or another grid than the tokenizer, or a tokenizer that has
            no codes, or several for each token; names that are not those of all classes.
    """

    model_cpu_offload_seq = "prior->vqvae"
    _callback_tensor_inputs = ("codes",)
    _prior = "prior"
    _carried = ("id2label",)

    def __init__(self, vqvae: VQTokenizer, prior: PixelCNN, id2label: dict | None = None):
        super().__init__()
        components = {"vqvae": vqvae, "prior": prior}
        classes = self.check_components(components)
        said = settled(prior, "id2label", id2label)
        options = {"id2label": check_id2label(said, classes)}
        self.register(components, options, options if said is not None else ())
        self._compiled = False

    @classmethod
    def _fitting_classes(cls, components: Mapping[str, Any]) -> int:
        prior, vqvae = components["prior"], components["vqvae"]
        theirs = (prior.config.codebook_size, *prior.config.grid_size)
        ours = (vqvae.config.codebook_size, *code_grid(vqvae))
        if theirs != ours:
            raise ValueError(f"the prior models (K, h, w) = {theirs}, the tokenizer has {ours}")
        return prior.config.num_classes

    def optimize(self, compile: bool = False) -> "ArcVQPixelCNNPipeline":
        """Makes the sampling faster, in place.

        Args:
            compile: a position's step through torch.compile, at the first call for each number of images.
        """
        self._compiled = compile
        return self

    def check_sampling(self, temperature: float, top_k: int | None, top_p: float | None, guidance_scale: float) -> None:
        """Raises TypeError or ValueError for options of the call that cannot work; they are those of `__call__`."""
        self.prior.check_sampler(CodeSampler(guidance_scale, temperature, top_k, top_p))

    @torch.no_grad()
    def bits_per_dimension(self, images: Tensor, class_labels: int | Sequence[int] | Tensor) -> Tensor:
        """Compute the prior's code length of each image, in bits per pixel and channel, (B,) float32.

        It is a rate and no likelihood of the pixels, of which the tokenizer loses some.

        Args:
            images: (B, C, H, W) in [-1, 1].
            class_labels: class ids, one per image.

        Raises:
            TypeError: images that are no tensor.
            ValueError: labels that do not fit, or a prior in training mode that has dropout.
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
        """Samples one image per class label.

        Several threads may call one pipeline at once, each with generators of its own, unless it is offloaded.

        Args:
            class_labels: class ids, one per image.
            temperature: divides the logits, > 0; below 1 is safer, above 1 more varied.
            top_k: only the k most likely codes.
            top_p: only the smallest set of codes that holds the probability p.
            generator: one per image (a batch then equals its singles), or one.
            output_type: `pil`, `np` (B, H, W, C) in [0, 1] or `pt` (B, C, H, W) in [0, 1].
            return_dict: False returns `(images,)`.
            callback_on_step_end: called as f(pipeline, position, position, {"codes": codes (B, h, w)}) after every
                position; of the codes it returns, in a dict as well, that of this position replaces the one that was
                drawn. It may return None.
            guidance_scale: s in u + s (c - u) of the logits; 1 is no guidance, others cost twice and need a prior
                trained with label dropout.
            codes: (B, h, w) int64 to be completed, -1 where one is to be drawn: `vqvae.encode_codes(images)` with its
                lower rows at -1 completes images.
            callback_on_step_end_tensor_inputs: names of what the callback is given, `codes` or nothing.

        Raises:
            TypeError: an option of another type, or a component that has been replaced by another thing.
            ValueError: labels, generators or an option that do not fit. Either comes before anything is sampled, but
                for what a callback returns, and for images that are not finite, which of type `pt` are NaN.
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
        """The codes a callback gave, if at this position they are codes. Raises ValueError for others."""
        if codes is not drawn:
            here, last = codes.flatten(1)[:, position], self.prior.config.codebook_size - 1
            if here.min() < 0 or here.max() > last:
                found = f"{here.min().item()} to {here.max().item()} at position {position}"
                raise ValueError(f"callback_on_step_end has returned codes {found}; return codes 0 to {last}")
        return codes
