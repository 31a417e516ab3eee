"""Base of both pipelines: check class labels and generators, load from a folder or the Hub, convert the output."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from torch import Tensor

from pipelines.call_arguments import check_component, check_finite, check_scheduler
from pipelines.carried_options import CarryingPipeline
from pipelines.safe_folder import check_pipeline_folder, component_classes
from priors.number_arguments import as_whole_number, described
from priors.unet import CompleteUNet2DModel
from tokenizer.loading.model_folder import local_folder
from tokenizer.loading.result_folders import result_folder
from tokenizer.loading.safe_mixin import only_safetensors

# A decoder's activations are about a hundred times its images: 16 images of 256 px take a few GB.
DECODED_AT_ONCE = 2**20


class ClassConditionalPipeline(CarryingPipeline):
    """Base of the class-conditional pipelines; a subclass registers `vqvae`, its prior, and `id2label`."""

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | Path, **kwargs: Any) -> "ClassConditionalPipeline":
        """Load a folder written by `save_pretrained`, or a Hub id, whose files are fetched first.

        Args:
            pretrained_model_name_or_path: the folder, the run folder around it, or a Hub id such as `name/model`.
            kwargs: arguments of `DiffusionPipeline.from_pretrained`; `revision`, `token`, `cache_dir`, `force_download`
                and `local_files_only` concern the Hub. Components and options replace the folder's; a prior brings its
                own options along.

        Raises:
            ValueError: the folder does not hold this pipeline or its weights. Nothing in it is executed.
        """
        hub = {
            name: kwargs.pop(name)
            for name in ("revision", "token", "cache_dir", "force_download", "local_files_only")
            if name in kwargs
        }
        # diffusers finds component classes outside of its own library only for local folders.
        patterns = ["*.json", "*.safetensors", "*/*.json", "*/*.safetensors"]
        folder = result_folder(local_folder(pretrained_model_name_or_path, patterns, **hub), "pipeline", cls.__name__)
        only_safetensors(kwargs)
        check_pipeline_folder(cls, folder, kwargs.keys())
        try:
            return super().from_pretrained(folder, **kwargs)
        except (OSError, LookupError) as error:  # missing files, or files that diffusers cannot read
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(f"{folder} cannot be loaded: {reason}") from error

    @classmethod
    def extract_init_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> tuple[dict[str, Any], ...]:
        """Load the UNet as a `CompleteUNet2DModel`, also through `DiffusionPipeline.from_pretrained`.

        diffusers would read pickles for a UNet2DModel, and leave missing weights at random.
        """
        arguments, unused, hidden = super().extract_init_dict(config_dict, **kwargs)
        if tuple(arguments.get("unet") or ()) == ("diffusers", "UNet2DModel"):
            arguments["unet"] = (CompleteUNet2DModel.__module__, CompleteUNet2DModel.__name__)
        return arguments, unused, hidden

    @classmethod
    def check_components(cls, components: Mapping[str, Any]) -> int:
        """Check the components of a pipeline, and return its number of classes.

        Raises:
            TypeError: a component of another class.
            ValueError: components that do not fit each other, or a scheduler of another process than diffusion.
        """
        for name, classes in component_classes(cls).items():
            check_component(name, components[name], classes)
        if "scheduler" in components:
            check_scheduler(components["scheduler"])
        return cls._fitting_classes(components)

    @classmethod
    def _fitting_classes(cls, components: Mapping[str, Any]) -> int:
        """Return the prior's number of classes; raise ValueError if tokenizer and prior do not fit each other."""
        raise NotImplementedError

    def check_ready(self) -> int:
        """Check components that may have been replaced, as `check_components` does; return the number of classes."""
        classes = self.check_components({name: getattr(self, name) for name in component_classes(type(self))})
        if len(self.config.id2label) != classes:
            raise ValueError(
                f"id2label names {len(self.config.id2label)} classes, the {self._prior} has {classes}; "
                f"make the pipeline with {type(self).__name__}.from_pipe(pipe, id2label=...)"
            )
        return classes

    @property
    def class_names(self) -> dict[int, str]:
        """Class id -> name. The folder's JSON stores the ids as text; here they are integers."""
        return {int(label): name for label, name in (self.config.id2label or {}).items()}

    def get_label_ids(self, names: str | Sequence[str]) -> list[int]:
        """Return the class ids of class names; of a name with commas, as in ImageNet, each part is a name too.

        Raises:
            TypeError: the names are no text.
            ValueError: a name of no class of this pipeline, or of several.
        """
        names = [names] if isinstance(names, str) else names
        if not isinstance(names, Sequence | np.ndarray) or not all(isinstance(name, str) for name in names):
            raise TypeError(f"names must be class names, got {described(names)}; ids need no get_label_ids")
        whole, parts = defaultdict(list), defaultdict(list)
        for label, name in self.class_names.items():
            whole[name.strip()].append(label)
            for part in dict.fromkeys(part.strip() for part in name.split(",")):
                parts[part].append(label)
        ids_by_name = [whole.get(name) or parts.get(name, []) for name in names]  # whole names come before synonyms
        for name, ids in zip(names, ids_by_name, strict=True):
            if not ids:
                shown = ", ".join(list(self.class_names.values())[:10])
                raise ValueError(
                    f"unknown class {described(name)}; the pipeline has {len(self.class_names)}: {shown}, ..."
                )
            if len(ids) > 1:
                raise ValueError(
                    f"{described(name)} names several classes, {ids}; pass the id of the one that is meant"
                )
        return [ids[0] for ids in ids_by_name]

    def check_labels(self, class_labels: int | Sequence[int] | Tensor, num_classes: int) -> Tensor:
        """Convert class ids to (B,) int64 on the pipeline's device.

        Raises:
            ValueError: no label, a label that is no integer, or a label outside [0, num_classes).
        """
        wrong = (
            f"class_labels must be one or more integers, got {described(class_labels)}; "
            "get_label_ids gives those of class names"
        )
        labels = _whole_numbers(class_labels)
        if not labels:
            raise ValueError(wrong)
        if outside := [label for label in labels if not 0 <= label < num_classes]:
            raise ValueError(f"class label {outside[0]} is out of range: the classes are 0 to {num_classes - 1}")
        return torch.tensor(labels).to(self._execution_device)

    def check_generators(
        self, generator: torch.Generator | Sequence[torch.Generator] | None, num_images: int
    ) -> torch.Generator | list[torch.Generator] | None:
        """Return one generator for all images, a list of one per image, or None.

        Raises:
            ValueError: a list whose length is not the number of images.
        """
        if generator is None or isinstance(generator, torch.Generator):
            return generator
        if not isinstance(generator, Sequence) or not all(isinstance(item, torch.Generator) for item in generator):
            raise ValueError(
                f"generator is a torch.Generator or a list of them, got {described(generator)}; "
                "torch.Generator().manual_seed(seed) makes one"
            )
        if len(generator) != num_images:
            raise ValueError(f"{num_images} images need {num_images} generators, or a single one, got {len(generator)}")
        return list(generator)

    def in_slices(self, decode: Callable[[Tensor], Tensor], batch: Tensor) -> Tensor:
        """Decode a batch of codes or latents into images, at most DECODED_AT_ONCE pixels at a time."""
        images = max(1, DECODED_AT_ONCE // self.vqvae.config.image_size**2)
        return torch.cat([decode(part) for part in batch.split(images)])

    @staticmethod
    def to_output(images: Tensor, output_type: str) -> Any:
        """Convert images (B, C, H, W) about [-1, 1] to the output type.

        pil: PIL images; np: NHWC numpy array; pt: NCHW tensor; both float32 in [0, 1].

        Raises:
            ValueError: images with NaN or infinity; not for torch arrays, which would need to synchronise with the
                device.
        """
        images = images.float().nan_to_num(torch.nan, torch.nan, torch.nan)  # clamp would turn infinity into white
        images = (images / 2 + 0.5).clamp(0, 1)
        if output_type == "pt":
            return images
        array: np.ndarray = images.cpu().permute(0, 2, 3, 1).numpy()
        check_finite(array)
        return array if output_type == "np" else VaeImageProcessor.numpy_to_pil(array)


def _whole_numbers(value: Any) -> list[int] | None:
    """Convert one integer, or a sequence of them, of Python, numpy or torch to a list; None for anything else."""
    if isinstance(value, Tensor):
        if value.is_meta or value.is_nested or value.is_quantized or value.layout != torch.strided:
            return None
        value = value.detach().cpu().numpy() if value.dtype != torch.bfloat16 else None
    elif hasattr(value, "__array__"):  # also pandas
        value = np.asarray(value)
    if isinstance(value, np.ndarray) and value.dtype != object:
        return np.atleast_1d(value).tolist() if value.dtype.kind in "iu" and value.ndim < 2 else None
    if isinstance(value, Sequence | np.ndarray) and not isinstance(value, str | bytes | bytearray):
        try:
            return [as_whole_number("a label", item) for item in value]
        except TypeError:
            return None
    return [value] if isinstance(value, int) and not isinstance(value, bool) else None


def check_id2label(id2label: Mapping[int | str, str] | None, num_classes: int) -> dict[int, str]:
    """Check that id2label names the classes 0 to `num_classes` - 1; without names, the ids are the names."""
    if id2label is not None and not isinstance(id2label, Mapping):
        raise ValueError(f"id2label maps class ids to names, got {id2label!r:.80}")
    names = {}
    for label, name in (id2label or {}).items():
        number = int(label) if isinstance(label, str) and label.strip().isdecimal() else label
        if isinstance(number, bool) or not isinstance(number, int | np.integer) or int(number) in names:
            reason = f"got {described(label)}" + (" twice" if number in names else "")
            raise ValueError(f"id2label must name the classes 0 to {num_classes - 1}, each once, by id: {reason}")
        if not isinstance(name, str | int | np.integer) or isinstance(name, bool):
            raise ValueError(f"id2label must give class {number} a name, got {described(name)}")
        names[int(number)] = str(name)
    if names and sorted(names) != list(range(num_classes)):
        raise ValueError(f"id2label must name the classes 0 to {num_classes - 1}, got {sorted(names)[:5]} ...")
    return names or {label: str(label) for label in range(num_classes)}
