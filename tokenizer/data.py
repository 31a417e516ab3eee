"""A data set's name or folder -> batches {"images": float32 (B, C, S, S) in [-1, 1], "labels": int64 (B,)}.

The order of the training images is a function of (seed, step) alone: a resumed run, and a run on any number of
workers or processes, sees the same global batches as an uninterrupted run on one.
"""

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, Sampler, SequentialSampler

from tokenizer.data_sources import DataConfig, as_images, find_columns, load_tables, read_labels
from tokenizer.decoded import DecodedImages, as_floats
from tokenizer.image_files import DataError, ImageColumn, convert, resize

__all__ = [
    "DataConfig",
    "DataError",
    "ImageDataset",
    "StepBatches",
    "epoch_order",
    "evaluation_batches",
    "hold_in_memory",
    "load_images",
    "pixel_batches",
    "training_batches",
]

HELD_OUT_SPLITS = ("test", "validation", "valid", "val")

# Images in one tensor where a whole data set is gone through for its pixels.
PIXEL_BATCH = 256


def load_images(config: DataConfig, split: Literal["train", "test"]) -> "ImageDataset":
    """The train or the held-out images of a data set; nothing but the first image is decoded.

    The held-out split is the one called test, else validation, valid or val. Where there is none, every tenth image
    of `epoch_order(n, 0, 0)` is held out of the train split, the same ones in every run. Sizes, channels and classes
    that the config leaves open come from the train split (classes that are plain integers or strings: from both), so
    that the two agree. A data set without labels is one class, "image".

    Raises:
        DataError: the data set, a split or a column is missing or ambiguous, or labels or the first image are unusable.
    """
    if config.image_size is not None and config.image_size < 1:
        raise DataError(f"data.image_size is {config.image_size}; set it to 1 or more")
    if config.channels not in (None, 1, 3):
        raise DataError(f"data.channels is {config.channels}; set it to 1 (grey) or 3 (RGB)")
    if not config.memory_limit_gib >= 0:
        raise DataError(f"data.memory_limit_gib is {config.memory_limit_gib}; set it to 0 (never) or more")
    if split not in ("train", "test"):
        raise DataError(f"split {split!r} is neither 'train' nor 'test'")
    tables = load_tables(config.name)
    if "train" not in tables:
        raise DataError(f"data set {config.name!r} has no train split, only {', '.join(tables)}; rename one to train")

    held_out = next((name for name in HELD_OUT_SPLITS if name in tables), "train")
    rows = {"train": np.arange(len(tables["train"])), "test": np.arange(len(tables[held_out]))}
    if held_out == "train":
        rows["test"] = np.sort(epoch_order(len(tables["train"]), 0, 0).numpy()[9::10])
        rows["train"] = np.delete(rows["train"], rows["test"])
        if split == "test" and not len(rows["test"]):
            raise DataError(
                f"data set {config.name!r} has {len(tables['train'])} images and no test split: "
                "add a test split, or at least 10 images so that every tenth can be held out"
            )
    source = {"train": "train", "test": held_out}

    image_column, label_column = find_columns(tables["train"], config)
    used = {name: tables[name] for name in source.values()}
    labels, class_names = read_labels(used, label_column, config.label_column is not None)
    columns = {name: ImageColumn(as_images(table, image_column), image_column, name) for name, table in used.items()}
    first, where = columns["train"].decode(rows["train"][0])
    if config.image_size is None and first.width != first.height:
        raise DataError(f"{where} is {first.width}x{first.height}, not square; set data.image_size to the side to use")
    return ImageDataset(
        encoded=columns[source[split]],
        rows=rows[split],
        labels=torch.from_numpy(labels[source[split]][rows[split]]),
        class_names=class_names,
        image_size=config.image_size or first.width,
        channels=config.channels or (1 if first.mode in ("1", "L") or first.mode.startswith("I") else 3),
        name=config.name,
        split=split,
    )


@dataclass(eq=False, repr=False)
class ImageDataset(Dataset):
    """Images and labels by index; built by `load_images`.

    Item: {"images": float32 (channels, image_size, image_size) in [-1, 1], "labels": int64 ()}; of a list of indices,
    the batch of their items. Images are turned upright by their EXIF orientation, transparency shows white, 16-bit grey
    is rounded to 8 bits, the short side is resized to `image_size` (bicubic, antialiased) and the centre is cropped.
    `labels` are all labels, int64 (n,).

    Raises:
        DataError: from an item: its image cannot be read or decoded, or is smaller than `image_size`.
    """

    encoded: "ImageColumn"
    rows: np.ndarray  # of the column, one for each item
    labels: torch.Tensor
    class_names: list[str]
    image_size: int
    channels: int
    name: str
    split: str

    @property
    def num_classes(self) -> int:
        return len(self.class_names)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int | list[int]) -> dict[str, torch.Tensor]:
        return {"images": as_floats(self.decode(index)), "labels": self.labels[index]}

    def decode(self, index: int | list[int]) -> torch.Tensor:
        """The image, uint8 (channels, image_size, image_size); of a list of b indices, (b, ...). Raises as an item."""
        if isinstance(index, list):
            return torch.stack([self.decode(one) for one in index])
        image, where = self.encoded.decode(self.rows[index])
        image = resize(convert(image, self.channels, where), self.image_size, where)
        pixels = np.asarray(image).reshape(self.image_size, self.image_size, self.channels).transpose(2, 0, 1)
        return torch.from_numpy(np.array(pixels, order="C"))

    def fingerprint(self) -> str:
        """SHA-256 (hex) of all encoded images in order, all labels, the size and the channels; computed once."""
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"{self.image_size} {self.channels} {len(self)} ".encode())
        for row in self.rows:
            encoded, _ = self.encoded.read(row)
            digest.update(len(encoded).to_bytes(8, "little"))  # so that bytes cannot move between neighbours
            digest.update(encoded)
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of 0..num_samples-1, int64 (num_samples,), in which an epoch visits them."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_samples))


@dataclass(eq=False, repr=False)
class StepBatches(Sampler[list[int]]):
    """The indices of the batch of every global step in start_step..stop_step-1.

    Each epoch has num_samples // batch_size steps over a new permutation, whose remainder is dropped. `batch_size` is
    global: process `rank` of `world_size` gets the rank-th contiguous share of it.

    Raises:
        DataError: batch_size is not between 1 and num_samples, or not divisible by world_size.
    """

    num_samples: int
    batch_size: int
    seed: int
    start_step: int
    stop_step: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        batch = f"batch size {self.batch_size}"
        if not 1 <= self.batch_size <= self.num_samples:
            raise DataError(f"{batch} is not in 1..{self.num_samples}, the number of images; set it to one of these")
        if self.batch_size % self.world_size:
            raise DataError(f"{batch} is not a multiple of {self.world_size}, the number of processes; make it one")
        if not 0 <= self.rank < self.world_size:
            raise DataError(f"rank {self.rank} is not in 0..{self.world_size - 1}, the ranks of the processes")

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step)

    def __iter__(self) -> Iterator[list[int]]:
        steps_per_epoch, share = self.num_samples // self.batch_size, self.batch_size // self.world_size
        current_epoch = None
        for step in range(self.start_step, self.stop_step):
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if epoch != current_epoch:
                order, current_epoch = epoch_order(self.num_samples, self.seed, epoch), epoch
            first = step_in_epoch * self.batch_size + self.rank * share
            yield order[first : first + share].tolist()


def training_batches(
    dataset: ImageDataset | DecodedImages,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> DataLoader:
    """This process's batches of global steps start_step..stop_step-1, batch_size // world_size images each.

    Any data set will do whose item of a list of indices is their batch. The arguments and errors are those of
    `StepBatches`. The global random state is neither read nor advanced.
    """
    batches = StepBatches(len(dataset), batch_size, seed, start_step, stop_step, rank, world_size)
    return _loader(dataset, num_workers, sampler=batches, batch_size=None)


def evaluation_batches(dataset: ImageDataset | DecodedImages, *, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Every image once, in order; the last batch may be smaller."""
    batches = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    return _loader(dataset, num_workers, sampler=batches, batch_size=None)


def pixel_batches(dataset: ImageDataset | DecodedImages, num_workers: int) -> Iterable[torch.Tensor]:
    """Every image once, in order, uint8 (PIXEL_BATCH, C, S, S); the last batch may be smaller."""
    if isinstance(dataset, DecodedImages):
        return dataset.pixels.split(PIXEL_BATCH)
    return _loader(range(len(dataset)), num_workers, batch_size=PIXEL_BATCH, collate_fn=dataset.decode)


def hold_in_memory(
    dataset: ImageDataset,
    config: DataConfig,
    progress: Callable[[Iterable], Iterable] = lambda batches: batches,
) -> ImageDataset | DecodedImages:
    """The data set decoded where its pixels take no more than `config.memory_limit_gib`, else as it is.

    `progress` wraps the batches, to show how far the decoding is.

    Raises:
        DataError: an image is unusable.
    """
    shape = (len(dataset), dataset.channels, dataset.image_size, dataset.image_size)
    if math.prod(shape) > config.memory_limit_gib * 2**30:
        return dataset
    pixels = torch.empty(shape, dtype=torch.uint8)
    batches = progress(pixel_batches(dataset, config.num_workers))
    for place, batch in zip(pixels.split(PIXEL_BATCH), batches, strict=True):
        place.copy_(batch)
    return DecodedImages(
        pixels=pixels,
        labels=dataset.labels,
        class_names=dataset.class_names,
        name=dataset.name,
        split=dataset.split,
        source_fingerprint=dataset.fingerprint(),
    )


def _loader(dataset: Dataset | range, num_workers: int, **batching) -> DataLoader:
    if isinstance(dataset, DecodedImages):
        num_workers = 0  # to index a tensor takes less than to send the batch from another process
    # A generator of its own: without one each pass draws a seed from the global random state and moves it on.
    pin, generator = torch.cuda.is_available(), torch.Generator()
    return DataLoader(dataset, num_workers=num_workers, pin_memory=pin, generator=generator, **batching)
