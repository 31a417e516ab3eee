"""A data set's name or folder -> batches {"images": float32 (B, C, S, S) in [-1, 1], "labels": int64 (B,)}.

The order of the training images is a function of (seed, step) alone: a resumed run, and a run on any number of
workers or processes, sees the same global batches as an uninterrupted run on one.
"""

import hashlib
import io
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

import datasets
import numpy as np
import PIL.Image
import PIL.ImageOps
import pyarrow
import pyarrow.compute
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch.utils.data import DataLoader, Sampler

HUB_IDS = {"mnist": "ylecun/mnist", "cifar10": "uoft-cs/cifar10"}
HELD_OUT_SPLITS = ("test", "validation", "valid", "val")
EXIF_ORIENTATION = 0x0112
BICUBIC = PIL.Image.Resampling.BICUBIC


class DataError(ValueError):
    """Data that cannot be used, in one line which names the file, column or value and the remedy."""

    def __init__(self, message: str):
        # torch rebuilds a worker's error from the text of its traceback, whose last line is the original message.
        if message.startswith("Caught DataError in "):
            message = message.rstrip().splitlines()[-1].partition("DataError: ")[2]
        super().__init__(" ".join(message.splitlines()))


@dataclass(frozen=True)
class DataConfig:
    """Which images, and as what they are read.

    Args:
        name: digits, mnist, cifar10, a data set's id on the Hub, a folder of images or a folder of parquet files.
        image_size: side S of the square images; larger ones are resized and cropped. None: the first image's own size.
        channels: 1 (grey) or 3 (RGB). None: those of the first image.
        image_column: the column that holds the images. None: the only image column.
        label_column: the column that holds the labels. None: the only class label column, or "label" or "labels".
        num_workers: processes that decode images beside the main one.
    """

    name: str = "digits"
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    image_column: str | None = None
    label_column: str | None = None
    num_workers: int = 0


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
    if split not in ("train", "test"):
        raise DataError(f"split {split!r} is neither 'train' nor 'test'")
    tables = _load_tables(config.name)
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

    image_column, label_column = _columns(tables["train"], config)
    used = {name: tables[name] for name in source.values()}
    labels, class_names = _read_labels(used, label_column, config.label_column is not None)
    columns = {name: _ImageColumn(_as_images(table, image_column), image_column, name) for name, table in used.items()}
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
class ImageDataset(torch.utils.data.Dataset):
    """Images and labels by index; built by `load_images`.

    Item: {"images": float32 (channels, image_size, image_size) in [-1, 1], "labels": int64 ()}. Images are turned
    upright by their EXIF orientation, transparency shows white, 16-bit grey is rounded to 8 bits, the short side is
    resized to `image_size` (bicubic, antialiased) and the centre is cropped. `labels` are all labels, int64 (n,).

    Raises:
        DataError: from an item: its image cannot be read or decoded, or is smaller than `image_size`.
    """

    encoded: "_ImageColumn"
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

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        image, where = self.encoded.decode(self.rows[index])
        image = _resize(_convert(image, self.channels, where), self.image_size, where)
        pixels = np.asarray(image).reshape(self.image_size, self.image_size, self.channels).transpose(2, 0, 1)
        # In numpy: torch would share so little work among threads, which costs far more than it saves.
        pixels = np.ascontiguousarray(pixels, dtype=np.float32) / np.float32(127.5) - np.float32(1)
        return {"images": torch.from_numpy(pixels), "labels": self.labels[index]}

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
    dataset: ImageDataset,
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

    The arguments and errors are those of `StepBatches`. The global random state is neither read nor advanced.
    """
    batches = StepBatches(len(dataset), batch_size, seed, start_step, stop_step, rank, world_size)
    return _loader(dataset, num_workers, batch_sampler=batches)


def evaluation_batches(dataset: ImageDataset, *, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Every image once, in order; the last batch may be smaller."""
    return _loader(dataset, num_workers, batch_size=batch_size)


def _loader(dataset: ImageDataset, num_workers: int, **batching) -> DataLoader:
    # A generator of its own: without one each pass draws a seed from the global random state and moves it on.
    pin, generator = torch.cuda.is_available(), torch.Generator()
    return DataLoader(dataset, num_workers=num_workers, pin_memory=pin, generator=generator, **batching)


@dataclass(frozen=True)
class _ImageColumn:
    """One split's images, encoded. It keeps the table, not its Arrow column: a table goes to a worker as a path."""

    table: datasets.Dataset
    column: str
    split: str

    def read(self, row: int) -> tuple[bytes, str]:
        """A row's encoded image and the words that name it in an error."""
        # Straight from Arrow: formatting a row through `datasets` takes longer than decoding a small image.
        image = self.table.data.column(self.column)[int(row)]
        encoded, path = (image["bytes"].as_py(), image["path"].as_py()) if image.is_valid else (None, None)
        if encoded is not None:
            return encoded, f"image in row {row} of split {self.split!r}"
        if path is None:
            raise DataError(f"row {row} of split {self.split!r} has no image in column {self.column!r}; remove the row")
        try:
            return Path(path).read_bytes(), f"image {path}"
        except OSError as error:
            raise DataError(f"image {path} cannot be read: {error.strerror}; restore the file") from error

    def decode(self, row: int) -> tuple[PIL.Image.Image, str]:
        """A row's image, upright, in the mode it is stored in, and the words that name it in an error."""
        encoded, where = self.read(row)
        try:
            image = PIL.Image.open(io.BytesIO(encoded))
            image.load()
            if image.getexif().get(EXIF_ORIENTATION, 1) != 1:
                image = PIL.ImageOps.exif_transpose(image)
        except PIL.UnidentifiedImageError as error:  # its own text holds only the address of a buffer
            raise DataError(f"{where} cannot be decoded: not an image format known to PIL; replace it") from error
        except Exception as error:  # what a decoder raises on broken data is open-ended: OSError, struct.error, ...
            raise DataError(f"{where} cannot be decoded: {_reason(error)}; remove or replace it") from error
        return image, where


def _convert(image: PIL.Image.Image, channels: int, where: str) -> PIL.Image.Image:
    """An image of any mode as L (channels 1) or RGB (channels 3), 8 bits."""
    if image.mode == "I" or image.mode.startswith("I;16"):
        values = np.asarray(image).astype(np.int64)
        if values.min() < 0 or values.max() > 65535:
            found = f"{values.min()}..{values.max()}"
            raise DataError(f"{where} has values {found}, which do not fit 0..65535; save it with 8 or 16 bits")
        image = PIL.Image.fromarray(((values + 128) // 257).astype(np.uint8))  # round(value / 257)
    elif image.mode == "F":
        raise DataError(f"{where} has float values, whose range is not defined; save it with 8 or 16 bits")
    mode = "L" if channels == 1 else "RGB"
    if image.mode == mode and not image.has_transparency_data:
        return image
    try:
        if image.has_transparency_data:
            image = image.convert("RGBA")
            image = PIL.Image.alpha_composite(PIL.Image.new("RGBA", image.size, "white"), image)
        return image.convert("RGB").convert(mode)
    except ValueError as error:
        raise DataError(f"{where} has mode {image.mode}, which has no RGB form; save it as RGB") from error


def _resize(image: PIL.Image.Image, size: int, where: str) -> PIL.Image.Image:
    """The short side resized to `size`, then the central size x size pixels."""
    short = min(image.size)
    if short < size:
        found = f"{image.width}x{image.height}"
        raise DataError(f"{where} is {found}, smaller than {size}x{size}; remove it or lower data.image_size")
    if short > size:
        width, height = (round(side * size / short) for side in image.size)
        image = image.resize((width, height), BICUBIC)
    if image.size == (size, size):
        return image
    left, top = (image.width - size) // 2, (image.height - size) // 2
    return image.crop((left, top, left + size, top + size))


def _load_tables(name: str) -> dict[str, datasets.Dataset]:
    """All splits of a data set by their own names; digits, mnist and cifar10 are never taken for folders."""
    if name == "digits":
        return _digits()
    folder = Path(name).expanduser()
    is_folder = bool(name) and name not in HUB_IDS and folder.is_dir()
    if not is_folder and (name.startswith((".", "/", "~")) or folder.is_file()):
        raise DataError(f"data folder {name!r} is not there or is not a folder; set data.name to a folder")
    try:
        # Absolute: a relative folder called csv or parquet would be taken for one of the formats of `datasets`.
        return datasets.load_dataset(str(folder.absolute()) if is_folder else HUB_IDS.get(name, name))
    except Exception as error:  # builders and the Hub client raise errors of many unrelated classes
        if is_folder:
            raise DataError(f"folder {name!r} cannot be loaded as images or parquet: {_reason(error)}") from error
        kind = "" if name in HUB_IDS else "is neither digits, mnist, cifar10 nor a folder here, and "
        remedy = "set data.name to a folder or to a data set within reach"
        raise DataError(
            f"data set {name!r} {kind}could not be loaded from the Hub: {_reason(error)}; {remedy}"
        ) from error


def _digits() -> dict[str, datasets.Dataset]:
    """scikit-learn's 1,797 digits of 8x8, enlarged to 32x32, in a fixed stratified split of 1,437 and 360."""
    images, targets = load_digits(return_X_y=True)
    pixels = np.rint(images.reshape(-1, 8, 8) * (255 / 16)).astype(np.uint8)
    # PPM is not compressed: quick to decode, and the fingerprint does not depend on the version of zlib.
    encoded = [b"P5 32 32 255 " + PIL.Image.fromarray(digit).resize((32, 32), BICUBIC).tobytes() for digit in pixels]
    label = datasets.ClassLabel(names=[str(digit) for digit in range(10)])
    features = datasets.Features({"image": datasets.Image(), "label": label})
    train, test = train_test_split(np.arange(len(targets)), test_size=360, stratify=targets, random_state=0)
    splits = {}
    for split, rows in (("train", train), ("test", test)):
        columns = {"image": [{"bytes": encoded[row], "path": None} for row in rows], "label": targets[rows]}
        splits[split] = datasets.Dataset.from_dict(columns, features=features)
    return splits


def _columns(table: datasets.Dataset, config: DataConfig) -> tuple[str, str | None]:
    """The image column and, where there is one, the label column: those named, else those their types point to."""
    of_type = {
        kind: [column for column, feature in table.features.items() if isinstance(feature, kind)]
        for kind in (datasets.Image, datasets.ClassLabel)
    }
    plain_labels = [column for column in ("label", "labels") if column in table.column_names]
    there = f"the columns of {config.name!r} are {', '.join(table.column_names)}"
    chosen = []
    for option, named, found, required in (
        ("image_column", config.image_column, of_type[datasets.Image], True),
        ("label_column", config.label_column, of_type[datasets.ClassLabel] or plain_labels, False),
    ):
        if named is not None and named not in table.column_names:
            raise DataError(f"data.{option} {named!r} is missing: {there}")
        if named is None and (len(found) > 1 or (required and not found)):
            raise DataError(f"{len(found) or 'no'} columns may be the {option}: {there}; set data.{option} to one")
        chosen.append(named or (found[0] if found else None))
    return chosen[0], chosen[1]


def _as_images(table: datasets.Dataset, column: str) -> datasets.Dataset:
    """`column` alone, as images: parquet written without `datasets` may hold plain bytes, paths or structs of both."""
    table = table.select_columns(column)
    if isinstance(table.features[column], datasets.Image):
        return table
    try:
        return table.cast_column(column, datasets.Image())
    except (TypeError, ValueError, pyarrow.ArrowException) as error:
        raise DataError(f"column {column!r} holds {table.features[column]}, no images; name another") from error


def _read_labels(
    tables: dict[str, datasets.Dataset], column: str | None, named: bool
) -> tuple[dict[str, np.ndarray], list[str]]:
    """Every split's labels, int64 (n,), and the class names that all splits share."""
    arrow = {} if column is None else {split: table.data.column(column) for split, table in tables.items()}
    # A train/ and a test/ folder without class folders come with a label column, null throughout the train split.
    if column is None or (not named and arrow["train"].null_count == len(arrow["train"])):
        return {split: np.zeros(len(table), dtype=np.int64) for split, table in tables.items()}, ["image"]
    for split, values in arrow.items():
        if values.null_count:
            row = pyarrow.compute.index(pyarrow.compute.is_null(values), True).as_py()
            raise DataError(f"row {row} of split {split!r} has no label in column {column!r}; label or remove the row")
    feature = tables["train"].features[column]
    dtype = getattr(feature, "dtype", "")
    if dtype in ("string", "large_string"):
        class_names = sorted(set().union(*(values.unique().to_pylist() for values in arrow.values())))
        ids = {name: label for label, name in enumerate(class_names)}
        labels = {split: np.array([ids[v] for v in values.to_pylist()], np.int64) for split, values in arrow.items()}
        return labels, class_names
    if not dtype.startswith(("int", "uint")):
        raise DataError(f"label column {column!r} holds {feature}, not integers or strings; set data.label_column")
    labels = {split: values.to_numpy().astype(np.int64) for split, values in arrow.items()}
    values = np.concatenate(list(labels.values()))
    low, high = values.min(), values.max()
    class_names = feature.names if isinstance(feature, datasets.ClassLabel) else [str(i) for i in range(high + 1)]
    if low < 0 or high >= len(class_names):
        raise DataError(f"label column {column!r} has label {low if low < 0 else high}, which is no class; correct it")
    return labels, class_names


def _reason(error: Exception) -> str:
    """The error's first line; `datasets` wraps a file it cannot parse in an error that says nothing."""
    if isinstance(error, datasets.exceptions.DatasetGenerationError) and error.__cause__ is not None:
        error = error.__cause__
    return (str(error).splitlines() or [type(error).__name__])[0]
