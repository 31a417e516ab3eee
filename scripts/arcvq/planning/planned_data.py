"""What a prior is trained on, as far as it is known before there is any of it: a tokenizer's sizes, a data set's."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch
from torch import Tensor, nn

from arcvq.cli.configs import CONFIGS
from arcvq.cli.safe_yaml import read_yaml
from arcvq.planning.dry_training import DryRun, DryTraining
from arcvq.runs.results import check_images, find_tokenizer
from arcvq.runs.trained_module import on_device
from arcvq.training.latent_cache import LatentsConfig
from arcvq.training.tokenizer import make_parser
from priors.latents import encode_images
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig
from tokenizer.data.facts import DatasetInfo, dataset_info
from tokenizer.loading.model_folder import read_model_config


@dataclass(frozen=True)
class PlannedEncodedData:
    """In the place of `encoding.EncodedData`, for a dry run: tensors have its sizes, and no contents.

    Args:
        place: the tokenizer's folder or that of its run; or, where it is yet to be trained, the config file of its
            training, or the run folder which the training of a file in configs/ writes.
        data: the images.
        latents: where latents and codes come from.

    Raises:
        ValueError: there is no such tokenizer, or it is one of other images.
    """

    place: str
    data: DataConfig
    latents: LatentsConfig
    latent_scale = 1.0
    fingerprints = {}  # noqa: RUF012 (nothing is resumed)

    def __post_init__(self):
        self.latents.check(self.data)
        check_images(self._sizes, self.train)

    @cached_property
    def train(self) -> DatasetInfo:
        """The images."""
        return dataset_info(self.data)

    @cached_property
    def _sizes(self) -> VQTokenizer:
        """The tokenizer without any weights."""
        with torch.device("meta"):
            if Path(self.place).is_dir():
                return VQTokenizer.from_config(read_model_config(VQTokenizer, find_tokenizer(self.place)))
            config = make_parser().parse([f"--config={_config_of(self.place)}"])
            images = dataset_info(config.data)
            sizes = {"in_channels": images.channels, "image_size": images.image_size}
            return VQTokenizer(**sizes, **config.model.as_dict())

    @cached_property
    def tokenizer(self) -> VQTokenizer:
        """The tokenizer with random weights, as it encodes."""
        return VQTokenizer.from_config(self._sizes.config).eval().requires_grad_(False)

    @property
    def class_names(self) -> list[str]:
        """As many as there are classes."""
        return [str(label) for label in range(self.train.num_classes)]

    @property
    def bytes_per_epoch(self) -> int:
        """What is read in an epoch, in which each image is seen in one orientation."""
        if self.latents.mode == "on_the_fly":
            return self.train.encoded_bytes
        values, codes = math.prod(self._sizes.latent_shape), math.prod(self._sizes.code_shape)
        return len(self.train) * (values * getattr(torch, self.latents.dtype).itemsize + codes * 4)

    def dry_training(
        self,
        run: DryRun,
        loss: Callable[[dict[str, Tensor]], Tensor],
        parts: dict[str, nn.Module],
        averaged: nn.Module,
    ) -> DryTraining:
        """The training of a prior with this loss of a batch of latents, codes and labels."""
        batch = self._batch(run.images_here)

        def step() -> None:
            pieces = zip(*(tensor.chunk(run.optim.accumulation) for tensor in batch.values()), strict=True)
            for piece in pieces:
                run.update(loss(self.encode(dict(zip(batch, piece, strict=True)))))

        return DryTraining(
            step,
            parts,
            batch=list(batch.values()),
            frozen={"tokenizer": self.tokenizer},
            averaged=[averaged],
            tokens_per_image=math.prod(self._sizes.latent_shape[1:]),
            source=f"{'latents and codes' if self.latents.mode == 'cache' else 'images'} of {self.data.name}",
            bytes_per_epoch=self.bytes_per_epoch,
        )

    def _batch(self, count: int) -> dict[str, Tensor]:
        """A batch as training gets it."""
        labels = torch.zeros(count, dtype=torch.int64)
        if self.latents.mode == "on_the_fly":
            size = self.train.image_size
            images = torch.empty(count, self.train.channels, size, size)
            return {"images": on_device(images, images.device), "labels": labels}
        dim, height, width = self._sizes.latent_shape
        codes = torch.zeros(count, *self._sizes.code_shape, dtype=torch.int64)
        latents = torch.empty(count, dim, height, width)
        return {"latents": on_device(latents, latents.device), "codes": codes, "labels": labels}

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch as latents, codes and labels."""
        if "images" not in batch:
            return batch
        return encode_images(self.tokenizer, batch["images"]) | {"labels": batch["labels"]}


def _config_of(place: str) -> Path:
    """The config file `place`, or that of the training which writes the run folder `place`."""
    if Path(place).suffix == ".yaml" and Path(place).is_file():
        return Path(place)
    defaults = make_parser().get_defaults().run
    for file in sorted(set(CONFIGS.glob("*/*.yaml")) - set(CONFIGS.glob("accelerate/*"))):
        text, run = file.read_text(), read_yaml(file).get("run", {})
        written = Path(run.get("output_dir", defaults.output_dir), run.get("name", defaults.name))
        if "scripts/train_tokenizer.py" in text.splitlines()[0] and written == Path(place):
            return file
    raise ValueError(
        f"tokenizer {place!r} is neither a folder nor the config file of a tokenizer's training, and no file of "
        "configs/ trains it; name one of these"
    )
