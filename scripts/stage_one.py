"""What the second stage starts from: a trained tokenizer found on disk, and a data set as its latents and codes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from chunks import Chunks, Measure, sharing_weights
from run_record import ARTEFACTS, read_settings
from torch import Tensor

from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from pipelines.class_labels import ClassConditionalPipeline
from priors.latents import (
    SHARD_FORMAT,
    EncodedDataset,
    encode_images,
    encode_shard,
    latent_scale,
    tokenizer_fingerprint,
)
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, ImageDataset, load_images

# Images of a shard, 67 MB of ImageNet's latents: what an encoding that is killed loses, times its threads.
SHARD = 512

# Held-out images that a prior's loss is measured on, evenly spaced over the split.
HELD_OUT = 512

# Images that the latents' scale is measured on where none are stored, evenly spaced over the split.
SCALE_SAMPLE = 4096

PIPELINES: dict[str, type[ClassConditionalPipeline]] = {
    pipeline.__name__: pipeline for pipeline in (ArcVQLDMPipeline, ArcVQPixelCNNPipeline)
}


@dataclass(frozen=True)
class LatentsConfig:
    """Where a prior's latents and codes come from.

    Args:
        mode: `cache`: the train split is encoded once, by all processes, and kept on disk under runs' output_dir, where
            a killed encoding goes on; `on_the_fly`: each batch of images, with its crops and flips, is encoded when it
            is trained on, nothing is kept.
        dtype: of the cached latents. ImageNet's at 32 x 32 x 16 take 84 GB in float32, twice that with data.flip (both
            orientations are kept), half of it in float16; its codes 5 GB more, 10 GB with data.flip.
    """

    mode: Literal["cache", "on_the_fly"] = "cache"
    dtype: Literal["float32", "float16"] = "float32"

    def check(self) -> None:
        """Raises ValueError for options that do not go together."""
        if self.mode == "on_the_fly" and self.dtype != "float32":
            raise ValueError(f"latents.dtype {self.dtype} is for the cache; leave it out, or set latents.mode cache")


@dataclass(frozen=True)
class StageOne:
    """A tokenizer and a data set seen through it.

    Attributes:
        train: the train split: encoded from the cache, or as images.
        held_out: latents, codes and labels of up to 512 images of the test split, in memory.
        moments: of the latents of the train split, or of a sample of it: (shards, 3), see `latent_scale`.
        fingerprints: of the tokenizer and of the train split's images.
    """

    tokenizer: VQTokenizer
    train: EncodedDataset | ImageDataset
    held_out: dict[str, Tensor]
    moments: Tensor
    class_names: list[str]
    fingerprints: dict[str, str]

    @property
    def latent_scale(self) -> float:
        """1 / standard deviation of the train split's latents. ValueError where they are all equal."""
        return latent_scale(self.moments)

    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """A batch of `train` as latents, codes and labels: what comes from the cache is that already."""
        if "images" not in batch:
            return batch
        return encode_images(self.tokenizer, batch["images"]) | {"labels": batch["labels"]}


def encode_splits(
    tokenizer: VQTokenizer, data: DataConfig, latents: LatentsConfig, cache_dir: Path, device: torch.device
) -> StageOne:
    """The tokenizer on the device, and both splits through it; all processes encode what is not cached, together.

    Raises:
        ValueError: images that are not the tokenizer's, latents that cannot be stored, options that do not go together.
    """
    latents.check()
    tokenizer = tokenizer.to(device).eval().requires_grad_(False)
    images = {split: load_images(data, split) for split in ("train", "test")}
    check_images(tokenizer, images["train"])
    fingerprint = tokenizer_fingerprint(tokenizer)

    def shards(split: str, indices: Sequence[int], flips: bool, dtype: str, only: str | None = None) -> Chunks:
        """The shards about some images of a split, computed where they are not there; or one tensor of each."""
        settings = {
            "format": SHARD_FORMAT,
            "tokenizer": fingerprint,
            "data": images[split].fingerprint(),
            "images": [len(indices), len(images[split])],
            "flips": flips,
            "dtype": dtype,
            "only": only,
        }
        chunks = Chunks(cache_dir, f"latents-{split}", settings, len(indices), SHARD)
        workers = 0 if device.type == "cpu" else data.num_workers  # on a CPU each thread decodes its own images

        def make_measure() -> Measure:
            ours = sharing_weights(tokenizer, tokenizer)

            def measure(chunk: range) -> dict[str, Tensor]:
                chosen = [indices[index] for index in chunk]
                shard = encode_shard(ours, images[split], chosen, getattr(torch, dtype), flips, workers)
                return shard if only is None else {only: shard[only]}

            return measure

        chunks.compute(make_measure)
        return chunks

    flips = getattr(data, "flip", False)
    everything = range(len(images["train"]))
    if latents.mode == "cache":
        train = EncodedDataset(shards("train", everything, flips, latents.dtype).files)
        moments = train.moments
    else:
        train = images["train"]
        sample = _evenly_spaced(len(train), SCALE_SAMPLE)
        moments = shards("train", sample, flips, "float32", only="moments").column("moments")
    held_out = EncodedDataset(shards("test", _evenly_spaced(len(images["test"]), HELD_OUT), False, "float32").files)
    return StageOne(
        tokenizer=tokenizer,
        train=train,
        held_out=held_out[list(range(len(held_out)))],
        moments=moments,
        class_names=images["train"].class_names,
        fingerprints={"tokenizer": fingerprint, "data": images["train"].fingerprint()},
    )


def _evenly_spaced(length: int, count: int) -> list[int]:
    """`count` indices below `length`, or all of them where there are fewer."""
    count = min(length, count)
    return [index * length // count for index in range(count)]


def check_images(tokenizer: VQTokenizer, images: ImageDataset) -> None:
    """Raises ValueError where the images are not of the tokenizer's channels and size."""
    ours = (images.channels, images.image_size)
    theirs = (tokenizer.config.in_channels, tokenizer.config.image_size)
    if ours != theirs:
        raise ValueError(
            f"the images of {images.name!r} have (channels, size) {ours}, the tokenizer was trained on {theirs}; "
            "set data.name, data.channels and data.image_size to what it was trained on"
        )


def note_other_data(folder: str, data: DataConfig) -> None:
    """Says so where the run that wrote `folder` was trained on another data set than `data`."""
    for place in (Path(folder), Path(folder).parent):
        settings = read_settings(place / "config.yaml")
        if isinstance(settings.get("data"), dict):
            trained_on = settings["data"].get("name")
            if trained_on != data.name:
                print(f"note: {folder} was trained on {trained_on!r}; data.name is {data.name!r}")
            return


def load_tokenizer(folder: str) -> VQTokenizer:
    """The tokenizer in a tokenizer folder, in a run folder of train_tokenizer.py, or in a pipeline folder."""
    path = _find(folder, "config.json", ("", "tokenizer", "vqvae", "pipeline/vqvae"), "VQTokenizer", "train_tokenizer")
    return VQTokenizer.from_pretrained(path).eval()


def load_pipeline(folder: str) -> ClassConditionalPipeline:
    """The pipeline in a pipeline folder, or in a run folder of train_ldm.py or train_pixelcnn.py."""
    path = find_pipeline(folder)
    return PIPELINES[_class_name(path / "model_index.json")].from_pretrained(path)


def find_pipeline(folder: str) -> Path:
    """The pipeline's own folder: `folder`, or the one in a run folder."""
    return _find(folder, "model_index.json", ("", "pipeline"), " or ".join(PIPELINES), "train_ldm")


def _find(folder: str, index: str, places: tuple[str, ...], classes: str, script: str) -> Path:
    """The first of the `places` below `folder` whose index file names one of the classes."""
    if Path(folder).is_file():
        raise ValueError(f"{folder!r} is a file; name the folder that scripts/{script}.py writes")
    if not Path(folder).is_dir():
        raise ValueError(f"folder {folder!r} is not there; scripts/{script}.py writes one, or name another")
    for place in places:
        if _class_name(Path(folder, place, index)) in classes.split(" or "):
            return Path(folder, place)
    indices = (Path(folder, place, name) for place in ("", *ARTEFACTS) for name in ("model_index.json", "config.json"))
    held = next((f"a {held}" for held in map(_class_name, indices) if held), "nothing that this project knows")
    raise ValueError(f"folder {folder!r} should hold a {classes} as scripts/{script}.py writes it, but holds {held}")


def _class_name(index: Path) -> str | None:
    """The class that a diffusers index file names; None where there is no such file, or it is something else."""
    try:
        content = json.loads(index.read_text())
    except (OSError, ValueError):
        return None
    return content.get("_class_name") if isinstance(content, dict) else None
