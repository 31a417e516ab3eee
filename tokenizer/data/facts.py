"""Describe a data set without loading it: number, size and bytes of its images, for a dry run.

A local data set is measured. Published numbers of the data sets in configs/ are stored here, so that their dry run
needs no network; any other data set on the Hub is described by its page there.
"""

from dataclasses import dataclass
from pathlib import Path

import datasets

from tokenizer.data import DataConfig, DataError, ImageDataset, StreamedImages, load_splits
from tokenizer.data.columns import NO_LABELS, find_columns
from tokenizer.data.decoding import reason_of
from tokenizer.data.framing import Framing
from tokenizer.data.sources import NAMED
from tokenizer.data.split_names import split_name


@dataclass(frozen=True)
class DatasetInfo:
    """The train split of a data set, as a dry run needs it.

    Attributes:
        name: data.name.
        channels: channels of the images in training.
        framing: framing of the images in training.
        num_images: images of the split.
        num_classes: classes; 1 without labels.
        encoded_bytes: bytes of all its images on disk.
        measured: whether the numbers come from the data set itself, not from its published description.
        line: one line that describes the data set.
        images: the images themselves, if they are here.
    """

    name: str
    channels: int
    framing: Framing
    num_images: int
    num_classes: int
    encoded_bytes: int
    measured: bool
    line: str
    images: ImageDataset | StreamedImages | None = None

    def __len__(self) -> int:
        return self.num_images

    @property
    def image_size(self) -> int:
        """Side of the images in training."""
        return self.framing.image_size

    def fingerprint(self) -> str:
        """Return an empty string: a dry run is never resumed."""
        return ""


@dataclass(frozen=True)
class _Published:
    """The train split of a published data set; None where its description does not say it, or images differ."""

    num_images: int
    num_classes: int
    encoded_bytes: int
    channels: int | None = 3
    image_size: int | None = None


# By the last part of data.name without - and _. Numbers of their pages on the Hub; FFHQ is 60,000 PNGs of 1024 pixels,
# BSDS500 its train and validation photographs. The page of clothing gives no bytes: 30 kB an image are estimated.
_PUBLISHED = {
    "mnist": _Published(60_000, 10, 17_223_300, channels=1, image_size=28),
    "cifar10": _Published(50_000, 10, 113_648_310, image_size=32),
    "imagenet1k": _Published(1_281_167, 1000, 146_956_944_242),
    "ffhq": _Published(60_000, 1, 76_400_000_000),
    "bsds500": _Published(400, 1, 12_000_000),
    "clothing": _Published(3_409, 10, 102_000_000),
}
_PUBLISHED["imagenet"] = _PUBLISHED["imagenet1k"]


def dataset_info(data: DataConfig) -> DatasetInfo:
    """Measure a data set that is embedded or a folder here; else look up its published description.

    Raises:
        DataError: options that cannot work, an unusable folder, or a data set that neither this file nor its page on
            the Hub describes.
    """
    data.check()
    folder = Path(data.name).expanduser()
    if data.name == "digits" or (data.name not in NAMED and folder.is_dir()):
        splits = load_splits(data)
        images = splits.train
        if isinstance(images, StreamedImages):
            encoded_bytes = sum(shard.file.size for shard in images.shards)
        else:
            sizes = images.encoded.sizes(images.rows, unreadable=images.bad_images is not None)
            encoded_bytes = int(sizes.clip(0).sum())
        facts = (images.channels, images.framing, len(images), images.num_classes, encoded_bytes)
        return DatasetInfo(data.name, *facts, measured=True, line=str(splits), images=images)
    known = _PUBLISHED.get(_title(data.name)) or _on_the_hub(data)
    if (image_size := data.image_size or known.image_size) is None:
        raise DataError(f"the images of {data.name!r} are of many sizes; set data.image_size to the side to use")
    if (channels := data.channels or known.channels) is None:
        raise DataError(f"whether the images of {data.name!r} are grey is not known here; set data.channels to 1 or 3")
    data.check_hold_out(known.num_images)
    number = known.num_images - data.hold_out
    encoded_bytes = known.encoded_bytes * number // known.num_images
    facts = (data.framing(image_size, "train"), number, known.num_classes, encoded_bytes)
    classes = f"{known.num_classes} classes" if known.num_classes > 1 else "no classes"
    size = f"{channels} x {image_size} x {image_size}"
    line = f"data: {number} train, {classes}, {size}; as published, not looked at"
    return DatasetInfo(data.name, channels, *facts, measured=False, line=line)


def _repository(name: str) -> list[str]:
    """Split `owner/name`, or an address below hf://datasets/, into the parts of the id; any other path into its own."""
    path = name.removeprefix("hf://datasets/")
    parts = path.strip("/").split("/")
    return parts[:2] if path != name else parts


def _title(name: str) -> str:
    """Reduce a data set's name to its last part, as `_PUBLISHED` has it."""
    return _repository(name)[-1].lower().replace("-", "").replace("_", "")


def _on_the_hub(data: DataConfig) -> _Published:
    """Read the description of a data set from its page on the Hub; no image is fetched. Raises DataError."""
    parts = _repository(data.name)
    known = f"nothing is known here of data set {data.name!r}, only of {', '.join(_PUBLISHED)}"
    if len(parts) != 2 or data.name.startswith((".", "/", "~")):
        raise DataError(f"{known}; set data.name to a folder, or to a data set on the Hub, as owner/name")
    try:
        info = datasets.load_dataset_builder("/".join(parts)).info
    except Exception as error:  # builders and the Hub client raise errors of many unrelated classes
        raise DataError(
            f"{known}, and the Hub did not describe it: {reason_of(error)}; set data.name to a folder"
        ) from error
    train = next((split for name, split in (info.splits or {}).items() if split_name(name) == "train"), None)
    if train is None or not train.num_examples or info.features is None:
        raise DataError(f"{known}, and its page on the Hub does not give its numbers; set data.name to a folder")
    _, label = find_columns(info.features, data, f"data set {data.name!r}")
    if label is not None and not isinstance(info.features[label], datasets.ClassLabel):
        raise DataError(
            f"the page of {data.name!r} on the Hub does not say how many classes its column {label!r} has; set "
            f"data.label_column to {NO_LABELS}, or data.name to a folder"
        )
    num_classes = info.features[label].num_classes if label else 1
    return _Published(train.num_examples, num_classes, train.num_bytes, channels=None)
