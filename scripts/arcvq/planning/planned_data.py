"""The data of a training, as far as it is known before the first image is read: sizes, and no contents."""

import math
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor

from arcvq.cli.configs import CONFIGS, config_names, find_config
from arcvq.cli.safe_yaml import read_yaml
from arcvq.runs.results import check_images, find_tokenizer
from arcvq.runs.trained_module import on_device
from arcvq.training.latent_cache import EncodedData, LatentsConfig
from arcvq.training.tokenizer import make_parser, make_tokenizer
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig
from tokenizer.data.facts import DatasetInfo, dataset_info
from tokenizer.data.in_memory import bytes_held
from tokenizer.loading.model_folder import read_model_config

_CPU = torch.device("cpu")


@dataclass(frozen=True)
class PlannedImages:
    """The images of a tokenizer's training.

    Args:
        config: the options of the data.

    Raises:
        DataError: options that cannot work, or no data set of this name is known.
    """

    config: DataConfig

    def __post_init__(self):
        _ = self.info  # what is unknown is an error now

    @cached_property
    def info(self) -> DatasetInfo:
        """The train split."""
        return dataset_info(self.config)

    @property
    def source(self) -> str:
        """Name the data that a training reads."""
        return f"images of {self.info.name}"

    @property
    def bytes_per_epoch(self) -> int:
        """Bytes that an epoch reads."""
        return self.info.encoded_bytes

    @property
    def bytes_held(self) -> int:
        """Bytes of the data set in memory; 0 where it stays on disk."""
        return bytes_held(self.info, self.config)

    @property
    def decodes_in_steps(self) -> bool:
        """Whether images are decoded while the training makes its steps."""
        return not self.bytes_held

    def as_training_data(self) -> DatasetInfo:
        """Return the data that the training's `set_up` takes."""
        return self.info

    def batches(self, number: int, accumulation: int) -> list[dict[str, Tensor]]:
        """Make the one batch of a step of `number` images, whose parts the training makes itself."""
        return [{"images": _empty_images(self.info, number)}]


class _UnscaledData(EncodedData):
    """Encoded data without contents, and so without a scale."""

    latent_scale = 1.0


@dataclass(frozen=True)
class PlannedEncodedData:
    """A tokenizer and a data set as its latents and codes.

    Args:
        place: the tokenizer's folder or that of its run; or, where it is yet to be trained, the config file of its
            training, or the run folder which the training of a file in configs/ writes.
        data: the options of the images.
        latents: where latents and codes come from.

    Raises:
        ValueError: no such tokenizer is known, or it takes other images.
    """

    place: str
    data: DataConfig
    latents: LatentsConfig
    bytes_held = 0

    def __post_init__(self):
        self.latents.check(self.data)
        check_images(self._sizes, self.info)

    @cached_property
    def info(self) -> DatasetInfo:
        """The train split."""
        return dataset_info(self.data)

    @cached_property
    def _sizes(self) -> VQTokenizer:
        """The tokenizer on the meta device, without weights."""
        with torch.device("meta"):
            if Path(self.place).is_dir():
                return VQTokenizer.from_config(read_model_config(VQTokenizer, find_tokenizer(self.place)))
            config = make_parser().parse([f"--config={_config_of(self.place)}"])
            return make_tokenizer(config, dataset_info(config.data))

    @property
    def source(self) -> str:
        """Name the data that a training reads."""
        return f"{'latents and codes' if self.latents.mode == 'cache' else 'images'} of {self.data.name}"

    @property
    def bytes_per_epoch(self) -> int:
        """Bytes that an epoch reads, in which each image occurs in one orientation."""
        if self.latents.mode == "on_the_fly":
            return self.info.encoded_bytes
        values, codes = math.prod(self._sizes.latent_shape), math.prod(self._sizes.code_shape)
        return len(self.info) * (values * getattr(torch, self.latents.dtype).itemsize + codes * 4)

    @property
    def decodes_in_steps(self) -> bool:
        """Whether images are decoded while the training makes its steps."""
        return self.latents.mode == "on_the_fly"

    def as_training_data(self) -> EncodedData:
        """Return the data that the training's `set_up` takes; the tokenizer has random weights."""
        return _UnscaledData(
            tokenizer=VQTokenizer.from_config(self._sizes.config).eval().requires_grad_(False),
            train=self.info,
            held_out={},
            statistics=torch.empty(0, 3),
            class_names=[str(label) for label in range(self.info.num_classes)],
            fingerprints={},
        )

    def batches(self, number: int, accumulation: int) -> list[dict[str, Tensor]]:
        """Make the batches of a step of `number` images: as many as the step has parts."""
        batch = {"labels": torch.zeros(number, dtype=torch.int64)}
        if self.latents.mode == "on_the_fly":
            batch["images"] = _empty_images(self.info, number)
        else:
            batch["latents"] = on_device(torch.empty(number, *self._sizes.latent_shape), _CPU)
            batch["codes"] = torch.zeros(number, *self._sizes.code_shape, dtype=torch.int64)
        parts = zip(*(tensor.chunk(accumulation) for tensor in batch.values()), strict=True)
        return [dict(zip(batch, part, strict=True)) for part in parts]


def _empty_images(info: DatasetInfo, number: int) -> Tensor:
    return on_device(torch.empty(number, info.channels, info.image_size, info.image_size), _CPU)


def _config_of(place: str) -> Path:
    """Find the config file `place`, or that of the training which writes the run folder `place`."""
    if place.endswith(".yaml"):
        return find_config(place)
    defaults = make_parser().get_defaults().run
    for file in (CONFIGS / name for name in config_names()):
        text, run = file.read_text("utf-8"), read_yaml(file).get("run", {})
        written = Path(run.get("output_dir", defaults.output_dir), run.get("name", defaults.name))
        if "scripts/train_tokenizer.py" in text.splitlines()[0] and written == Path(place):
            return file
    raise ValueError(
        f"tokenizer {place!r} is neither a folder nor the config file of a tokenizer's training, and no file of "
        "configs/ trains it; name one of these"
    )
