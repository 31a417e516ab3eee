"""Skip unusable images: record which they are, and replace each by the next usable one."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

import torch

from tokenizer.data.decoding import DataError, ImageError

# Most unusable images in a row. More mean that it is the wrong data set, or that its disk is gone.
LONGEST_GAP = 100

# Images whose reason the report names.
REPORTED = 3

Item = TypeVar("Item")


class BadImages:
    """The unusable images of a data set found so far, by this process or its loader's workers.

    An unusable image is replaced by the next usable one. So the image at an index depends on the data set alone, and is
    the same for any number of workers and processes, and in a resumed run.

    Attributes:
        found: bool (n,), in shared memory.
    """

    def __init__(self, number: int):
        self.found = torch.zeros(number, dtype=torch.bool).share_memory_()

    @property
    def count(self) -> int:
        """Number of unusable images found so far."""
        return int(self.found.sum())

    def usable(self, index: int, read: Callable[[int], Item]) -> Item:
        """Return `read(index)`; if that raises ImageError, `read` of the first later index for which it does not.

        The first index follows the last one.

        Raises:
            DataError: `LONGEST_GAP` images in a row, or all of them, are unusable.
            IndexError: the index is out of range.
        """
        number = len(self.found)
        if not -number <= index < number:
            raise IndexError(f"index {index} is not in 0..{number - 1}")
        tried = min(LONGEST_GAP, number)
        for candidate in range(index, index + tried):
            # Known bad images are not tried again: failing may take as long as succeeding.
            if not self.found[candidate % number]:
                try:
                    return read(candidate % number)
                except ImageError:
                    self.found[candidate % number] = True
        try:
            return read(index % number)
        except ImageError as error:
            raise DataError(f"{tried} images in a row are unusable, the first: {error}") from error

    def reasons(self, read: Callable[[int], object]) -> Iterator[str]:
        """Yield the reason why each unusable image fails, in order, by trying `read` once more."""
        for index in self.found.nonzero().flatten().tolist():
            try:
                read(index)
                yield f"image {index} was unusable, and no longer is"
            except ImageError as error:
                yield str(error)


def bad_images_of(dataset: object) -> BadImages | None:
    """Return a data set's record of skipped images; None if bad images are errors, or it holds latents."""
    return getattr(dataset, "bad_images", None)


def report_bad_images(dataset: object) -> str | None:
    """Describe in one line how many images of a data set were skipped so far, and why the first of them.

    None if there are none, or if bad images are errors.
    """
    bad = bad_images_of(dataset)
    if bad is None or not bad.count:
        return None
    number, total = bad.count, len(bad.found)
    reasons = list(islice(bad.reasons(dataset.try_image), REPORTED))
    more = [f"and {number - len(reasons)} more"] if number > len(reasons) else []
    verb = "image is unusable and is" if number == 1 else "images are unusable and are"
    share = f"1 of {total}" if number == 1 else f"{number} of {total}"
    return f"{share} {verb} skipped: {'; '.join([*reasons, *more])}"
