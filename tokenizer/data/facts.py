"""Describe a data set that need not be present: number, size and bytes of its images."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizer.data import DataConfig, DataError, StreamedImages, load_splits
from tokenizer.data.framing import Framing
from tokenizer.data.sources import HUB_IDS


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
    """

    name: str
    channels: int
    framing: Framing
    num_images: int
    num_classes: int
    encoded_bytes: int
    measured: bool
    line: str

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
    """A published data set: words in its name, its train split, and the images' size if all have one."""

    words: Sequence[str]
    num_images: int
    num_classes: int
    encoded_bytes: int
    channels: int = 3
    image_size: int | None = None


# Numbers of their pages on the Hub; FFHQ is 60,000 PNGs of 1024 pixels, BSDS500 its train and validation photographs.
_PUBLISHED = (
    _Published(("mnist",), 60_000, 10, 17_223_300, channels=1, image_size=28),
    _Published(("cifar10",), 50_000, 10, 113_648_310, image_size=32),
    _Published(("imagenet",), 1_281_167, 1000, 146_956_944_242),
    _Published(("ffhq",), 60_000, 1, 76_400_000_000),
    _Published(("bsds500", "bsds"), 400, 1, 12_000_000),
)


def dataset_info(data: DataConfig) -> DatasetInfo:
    """Describe a data set: from its images if it is embedded or a local folder, else by its name; without network.

    Raises:
        DataError: options that cannot work, an unusable folder, or an unknown name.
    """
    data.check()
    folder = Path(data.name).expanduser()
    if data.name == "digits" or (data.name not in HUB_IDS and folder.is_dir()):
        splits = load_splits(data)
        images = splits.train
        if isinstance(images, StreamedImages):
            encoded_bytes = sum(shard.file.size for shard in images.shards)
        else:
            sizes = images.encoded.sizes(images.rows, unreadable=images.bad_images is not None)
            encoded_bytes = int(sizes.clip(0).sum())
        numbers = (images.channels, images.framing, len(images), images.num_classes, encoded_bytes)
        return DatasetInfo(data.name, *numbers, measured=True, line=str(splits))
    words = data.name.lower().replace("-", "").replace("_", "")
    known = next((known for known in _PUBLISHED if any(word in words for word in known.words)), None)
    if known is None:
        names = ", ".join(known.words[0] for known in _PUBLISHED)
        raise DataError(f"of data set {data.name!r} nothing is known here, only of {names}; set data.name to a folder")
    if (image_size := data.image_size or known.image_size) is None:
        raise DataError(f"the images of {data.name!r} are of many sizes; set data.image_size to the side to use")
    numbers = (data.framing(image_size, "train"), known.num_images, known.num_classes, known.encoded_bytes)
    channels = data.channels or known.channels
    classes = f"{known.num_classes} classes" if known.num_classes > 1 else "no classes"
    size = f"{channels} x {image_size} x {image_size}"
    line = f"data: {known.num_images} train, {classes}, {size}; as published, not looked at"
    return DatasetInfo(data.name, channels, *numbers, measured=False, line=line)
