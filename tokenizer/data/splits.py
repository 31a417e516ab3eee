"""The train and held-out images of a data set, and the line that describes them."""

from dataclasses import dataclass, field

import torch

from tokenizer.data.dataset import ImageDataset
from tokenizer.data.decoding import DataError
from tokenizer.data.left_out import LeftOut, listed
from tokenizer.data.streaming.images import StreamedImages

# Most class names that the line lists.
_SHOWN = 10


@dataclass(frozen=True)
class DataSplits:
    """Both splits of a data set; built by `load_splits`.

    Attributes:
        train: the training images.
        left_out: unused files and splits of the data set.
        notes: further remarks for the user, such as how images were held out.
        without: why no image is held out; None if some are.
    """

    train: ImageDataset | StreamedImages
    _held_out: ImageDataset | StreamedImages | None
    left_out: LeftOut = field(default_factory=LeftOut)
    notes: list[str] = field(default_factory=list)
    without: str | None = None

    @property
    def held_out(self) -> ImageDataset | StreamedImages:
        """The held-out images. Raises DataError if there are none."""
        if self._held_out is None:
            raise DataError(self.without)
        return self._held_out

    def __str__(self) -> str:
        """Describe the data set in the line that is printed before a training, a dry run or an evaluation.

        `data: 60000 train, 10000 held out, 10 classes (0, 1, 2, ...), 1 x 28 x 28; left out: 3 hidden`
        """
        images, held_out = self.train, self._held_out
        names = images.class_names
        no_classes = names == ["image"]
        number = f"{len(names)} {'class' if len(names) == 1 else 'classes'}"
        classes = "no classes" if no_classes else f"{number} ({listed(names, _SHOWN)})"
        size = f"{images.channels} x {images.image_size} x {images.image_size}"
        parts = [f"data: {len(images)} train, {0 if held_out is None else len(held_out)} held out, {classes}, {size}"]
        parts += [f"left out: {self.left_out}"] if str(self.left_out) else []
        parts += self.notes
        if not no_classes and (empty := empty_classes(images)):
            parts.append(f"no training image of {len(empty)} of {len(names)} classes: {listed(empty, _SHOWN)}")
        return " ".join("; ".join(parts).splitlines())


def empty_classes(images: ImageDataset | StreamedImages) -> list[str]:
    """List the names of classes without an image."""
    counts = torch.bincount(images.labels, minlength=images.num_classes)
    return [name for name, count in zip(images.class_names, counts.tolist(), strict=True) if not count]
