"""The data of a prior: a data set as a tokenizer's latents and codes, cached on disk or encoded on the fly."""

import copy
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from arcvq.compute.precision import full_float32
from arcvq.compute.resumable import Measure, ResumableMap, copy_sharing_weights
from arcvq.runs.results import check_images
from priors.latents import (
    SHARD_FORMAT,
    EncodedDataset,
    encode_images,
    encode_shard,
    finish_shard,
    latent_scale,
    shard_batches,
    tokenizer_fingerprint,
)
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig, DataSplits, ImageDataset, StreamedImages
from tokenizer.data.bad_images import report_bad_images
from tokenizer.data.subsets import evenly_spaced_images

# Images in a shard, 67 MB of ImageNet's latents. A killed encoding loses one shard per thread.
SHARD = 512

# Held-out images on which a prior's loss is measured, evenly spaced over the split.
HELD_OUT = 512

# Images on which the scale of latents is measured where none are stored, evenly spaced over the split.
SCALE_SAMPLE = 4096


@dataclass(frozen=True)
class LatentsConfig:
    """Where a prior's latents and codes come from.

    Args:
        mode: `cache`: encode the train split once, by all processes, and keep it in OUTPUT_DIR/cache; a killed encoding
            continues. `on_the_fly`: encode each batch of images, with its crops and flips, in the training step.
        dtype: of the cached latents. ImageNet's at 32 x 32 x 16 take 84 GB in float32, twice that with data.flip (both
            orientations are kept), half of it in float16; its codes 5 GB more, 10 GB with data.flip.
        verify: whether a start reads all cached latents and compares them with their SHA-256, so that damaged ones are
            encoded again; otherwise it reads each file's size and header alone.
    """

    mode: Literal["cache", "on_the_fly"] = "cache"
    dtype: Literal["float32", "float16"] = "float32"
    verify: bool = False

    def check(self, data: DataConfig) -> None:
        """Raise ValueError for options that exclude each other."""
        if self.mode == "cache" and data.crop != "center":
            raise ValueError(
                f"data.crop {data.crop} shows other pixels in each epoch, latents.mode cache keeps those of one; "
                "set data.crop center, or latents.mode on_the_fly"
            )
        if self.mode == "on_the_fly" and self.dtype != "float32":
            raise ValueError(f"latents.dtype {self.dtype} is for the cache; leave it out, or set latents.mode cache")


@dataclass(frozen=True)
class EncodedData:
    """A tokenizer, and a data set as its latents and codes.

    Attributes:
        tokenizer: the frozen tokenizer.
        train: the train split: latents and codes from the cache, or images.
        held_out: latents, codes and labels of up to 512 images of the test split, in memory.
        statistics: (shards, 3), of the latents of the train split or of a sample of it; see `latent_scale`.
        class_names: names of the classes, by label.
        fingerprints: hashes of the tokenizer and of the train split's images, by name.
    """

    tokenizer: VQTokenizer
    train: EncodedDataset | ImageDataset | StreamedImages
    held_out: dict[str, Tensor]
    statistics: Tensor
    class_names: list[str]
    fingerprints: dict[str, str]

    @property
    def latent_scale(self) -> float:
        """1 / standard deviation of the train split's latents. ValueError where they are all equal."""
        return latent_scale(self.statistics)

    @full_float32()
    def encode(self, batch: dict[str, Tensor]) -> dict[str, Tensor]:
        """Encode a batch of `train`, unless it comes from the cache => latents, codes and labels."""
        if "images" not in batch:
            return batch
        return encode_images(self.tokenizer, batch["images"]) | {"labels": batch["labels"]}


@full_float32()
def encode_splits(
    tokenizer: VQTokenizer,
    splits: DataSplits,
    data: DataConfig,
    latents: LatentsConfig,
    cache_dir: Path,
    device: torch.device,
) -> EncodedData:
    """Encode both splits; all processes share the images that are not cached yet.

    Args:
        tokenizer: the tokenizer that encodes.
        splits: the splits of the data set.
        data: the options of the data.
        latents: the options of latents and codes.
        cache_dir: the folder of the cache.
        device: the device that encodes.

    Raises:
        ValueError: the tokenizer takes other images, latents cannot be stored, or options exclude each other.
    """
    latents.check(data)
    tokenizer = tokenizer.to(device).eval().requires_grad_(False)
    images = {"train": splits.train, "test": splits.held_out}
    check_images(tokenizer, images["train"])
    fingerprint = tokenizer_fingerprint(tokenizer)

    def shards(
        split: str, indices: Sequence[int], dtype: str = "float32", only: str | None = None, verify: bool = True
    ) -> ResumableMap:
        """Compute the missing shards of some images of a split, or of one tensor of each."""
        flips = images[split].framing.flip
        settings = {
            "format": SHARD_FORMAT,
            "tokenizer": fingerprint,
            "data": images[split].fingerprint(),
            "images": [len(indices), len(images[split])],
            "flips": flips,
            "dtype": dtype,
            "only": only,
        }
        chunks = ResumableMap(cache_dir, f"latents-{split}", settings, len(indices), SHARD)
        workers = 0 if device.type == "cpu" else data.num_workers  # on a CPU each thread decodes its own images

        def make_worker() -> Measure:
            ours = copy_sharing_weights(tokenizer, tokenizer)
            return lambda chunk, batches: encode_shard(ours, batches, getattr(torch, dtype), flips)

        def inputs(parts: list[range]) -> Iterator[tuple[Iterator[dict[str, Tensor]]]]:
            its_images = copy.copy(images[split])  # with a block of its own, where they are streamed
            return zip(shard_batches(its_images, [indices[part.start : part.stop] for part in parts], device, workers))

        def finish(chunk: range, values: dict[str, Tensor]) -> dict[str, Tensor]:
            shard = finish_shard(values, f"images {indices[chunk.start]} to {indices[chunk.stop - 1]}")
            return shard if only is None else {only: shard[only]}

        chunks.compute(make_worker, verify, inputs, finish)
        if report := report_bad_images(images[split]):
            print(f"warning: {split} split: {report}", file=sys.stderr)
        return chunks

    if latents.mode == "cache":
        train = EncodedDataset(shards("train", range(len(images["train"])), latents.dtype, verify=latents.verify).files)
        statistics = train.statistics
    else:
        train = images["train"]
        statistics = shards("train", evenly_spaced_images(train, SCALE_SAMPLE), only="moments").column("moments")
    held_out = EncodedDataset(shards("test", evenly_spaced_images(images["test"], HELD_OUT)).files)
    return EncodedData(
        tokenizer=tokenizer,
        train=train,
        held_out=held_out[list(range(len(held_out)))],
        statistics=statistics,
        class_names=images["train"].class_names,
        fingerprints={"tokenizer": fingerprint, "data": images["train"].fingerprint()},
    )
