"""What a training is told of a data set that need not be there: how many images, of which size, in how many bytes."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tokenizer.data import DataConfig, DataError, StreamedImages, load_splits
from tokenizer.data.framing import Framing
from tokenizer.data.sources import HUB_IDS


@dataclass(frozen=True)
class DatasetInfo:
    """The train split of a data set.

    Attributes:
        name: as in data.name.
        channels: of the images as they are trained on.
        framing: what is seen of an image.
        num_images: in the split.
        num_classes: 1 without labels.
        encoded_bytes: of all its images as they lie on disk.
        measured: whether all this is of the data set itself, or of its published description.
        line: what the data set was found to be.
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
        """The side of the images as they are trained on."""
        return self.framing.image_size

    def fingerprint(self) -> str:
        """None: nothing is resumed."""
        return ""


@dataclass(frozen=True)
class _Published:
    """A published data set: what its name holds, its train split, and the images' own size where they are all alike."""

    words: Sequence[str]
    num_images: int
    num_classes: int
    encoded_bytes: int
    channels: int = 3
    image_size: int | None = None


# As their pages on the Hub say; FFHQ is 60,000 PNGs of 1024 pixels, BSDS500 its train and validation photographs.
_PUBLISHED = (
    _Published(("mnist",), 60_000, 10, 17_223_300, channels=1, image_size=28),
    _Published(("cifar10",), 50_000, 10, 113_648_310, image_size=32),
    _Published(("imagenet",), 1_281_167, 1000, 146_956_944_242),
    _Published(("ffhq",), 60_000, 1, 76_400_000_000),
    _Published(("bsds500", "bsds"), 400, 1, 12_000_000),
)


def dataset_info(data: DataConfig) -> DatasetInfo:
    """Of the data set itself where it is embedded or a folder here; else what is known of its name; no network.

    Raises:
        DataError: options that cannot work, an unusable folder, or a name that nothing is known of.
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
        facts = (images.channels, images.framing, len(images), images.num_classes, encoded_bytes)
        return DatasetInfo(data.name, *facts, measured=True, line=str(splits))
    words = data.name.lower().replace("-", "").replace("_", "")
    known = next((known for known in _PUBLISHED if any(word in words for word in known.words)), None)
    if known is None:
        there = ", ".join(known.words[0] for known in _PUBLISHED)
        raise DataError(f"of data set {data.name!r} nothing is known here, only of {there}; set data.name to a folder")
    if (image_size := data.image_size or known.image_size) is None:
        raise DataError(f"the images of {data.name!r} are of many sizes; set data.image_size to the side to use")
    facts = (data.framing(image_size, "train"), known.num_images, known.num_classes, known.encoded_bytes)
    channels = data.channels or known.channels
    classes = f"{known.num_classes} classes" if known.num_classes > 1 else "no classes"
    size = f"{channels} x {image_size} x {image_size}"
    line = f"data: {known.num_images} train, {classes}, {size}; as published, not looked at"
    return DatasetInfo(data.name, channels, *facts, measured=False, line=line)
