"""Options of a data set: which images are read, and in which form."""

from dataclasses import dataclass
from typing import Literal

from tokenizer.data.decoding import DataError
from tokenizer.data.framing import Framing
from tokenizer.data.split_names import split_name


@dataclass(frozen=True)
class DataConfig:
    """Which images to read, and in which form.

    Args:
        name: digits, mnist, cifar10, clothing, a data set's id on the Hub, a folder of images, a folder of parquet
            files, or the location of shards to stream: a folder, or an address such as
            hf://datasets/ILSVRC/imagenet-1k/data.
        image_size: side S of the square images; larger ones are resized and cropped. None: the first image's own size.
        channels: 1 (grey) or 3 (RGB). None: 1 if all images are grey (of many images, a sample is checked).
        image_column: the column with the images. None: the only image column.
        label_column: the column with the labels; none: no classes. None: the only class-label column, or "label" or
            "labels".
        label_values: meaning of integer labels without names: ids, class ids from 0 on, some of which may have no
            image; distinct, each distinct value is a class. None: ids, and an error if half of the classes would have
            no image.
        num_workers: processes that decode images in addition to the main one.
        memory_limit_gib: when training a tokenizer, images whose pixels take at most this much are decoded once and
            held in memory, by each process; 0: never.
        resize_to: pixels to which the short side is resized before the crop; smaller images are enlarged. None:
            image_size, and a smaller image is an error; 0: images are cropped without resizing.
        crop: position of the image_size x image_size crop of training images: center, or random, drawn anew in each
            epoch. Held-out images are cropped to the centre.
        flip: whether training images are mirrored half of the time.
        streaming: whether shards (parquet, or tar in WebDataset's format) are read on demand, in shuffled blocks,
            without copying or downloading the data set as a whole.
        shuffle_buffer: streamed images that are shuffled among each other, over all processes.
        on_bad_image: an image that cannot be read, decoded or framed is an error, or, with skip, is replaced by the
            next usable one of the data set and its label, and counted.
        test_split: name of the held-out split; validation, valid and val are one name. None: test, else validation,
            else evaluation, else dev.
        hold_out: number of images of the train split that are held out in place of another split, which then is not
            read: the same ones, drawn at random, in every run. 0: the held-out split is one of the data set's own.
    """

    name: str = "digits"
    image_size: int | None = None
    channels: Literal[1, 3] | None = None
    image_column: str | None = None
    label_column: str | None = None
    label_values: Literal["ids", "distinct"] | None = None
    num_workers: int = 0
    memory_limit_gib: float = 2.0
    resize_to: int | None = None
    crop: Literal["center", "random"] = "center"
    flip: bool = False
    streaming: bool = False
    shuffle_buffer: int = 10_000
    on_bad_image: Literal["error", "skip"] = "error"
    test_split: str | None = None
    hold_out: int = 0

    def check(self) -> None:
        """Raise DataError for a value out of its range."""
        wrong = [
            (bool(self.name), "name", "digits, mnist, cifar10, clothing, a folder, or a data set on the Hub"),
            (self.image_size is None or self.image_size >= 1, "image_size", "1 or more"),
            (self.channels in (None, 1, 3), "channels", "1 (grey) or 3 (RGB)"),
            (self.num_workers >= 0, "num_workers", "0 (the main process decodes) or more"),
            (self.memory_limit_gib >= 0, "memory_limit_gib", "0 (never) or more"),
            (self.crop in ("center", "random"), "crop", "center or random"),
            (self.shuffle_buffer >= 1, "shuffle_buffer", "1 (only blocks are shuffled) or more"),
            (self.on_bad_image in ("error", "skip"), "on_bad_image", "error or skip"),
            (self.hold_out >= 0, "hold_out", "0 (a split of the data set's own) or more"),
            (self.label_values in (None, "ids", "distinct"), "label_values", "ids or distinct"),
            (split_name(self.test_split or "") != "train", "test_split", "a split that is not trained on"),
        ]
        for right, option, remedy in wrong:
            if not right:
                value = getattr(self, option)
                raise DataError(f"data.{option} is {value if value != '' else repr(value)}; set it to {remedy}")
        if self.resize_to and self.image_size is None:
            raise DataError(f"data.resize_to is {self.resize_to}; set data.image_size to what is to be cropped from it")
        if self.resize_to is not None and self.resize_to != 0 and self.resize_to < self.image_size:
            problem = f"data.resize_to is {self.resize_to}, less than data.image_size {self.image_size}"
            raise DataError(f"{problem}; set it to that or more, or to 0 (no resizing)")
        if self.hold_out and self.test_split is not None:
            problem = f"data.hold_out is {self.hold_out} and data.test_split is {self.test_split!r}"
            raise DataError(f"{problem}: one names training images, the other a split; leave one of them out")
        if self.hold_out and self.streaming:
            problem = f"data.hold_out is {self.hold_out}, but shards that are streamed are held out as a whole"
            raise DataError(f"{problem}; set it to 0, or data.streaming to false")
        if "://" in self.name and not self.streaming:
            raise DataError(f"data.name is the address {self.name!r}; set data.streaming to true to read shards there")

    def check_hold_out(self, number: int) -> None:
        """Raise DataError if `hold_out` leaves none of a train split's `number` images to train on."""
        if self.hold_out >= number:
            problem = f"data.hold_out is {self.hold_out}, and data set {self.name!r} has {number} training images"
            raise DataError(f"{problem}; set it to fewer")

    def framing(self, image_size: int, split: str) -> Framing:
        """Return the framing of a split's images; only the train split is framed at random."""
        train = split == "train"
        return Framing(
            image_size, self.resize_to, random_crop=train and self.crop == "random", flip=train and self.flip
        )
