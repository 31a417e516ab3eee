"""Images that cannot be used, where they are skipped: which they are, and which stand in for them."""

from collections.abc import Callable, Iterator
from itertools import islice
from typing import TypeVar

import torch

from tokenizer.data.decoding import DataError, ImageError

# So many in a row are no slip: the data set is another one than was meant, or its disk is gone.
LONGEST_GAP = 100

# Of so many images the report says what is wrong.
REPORTED = 3

Found = TypeVar("Found")


class BadImages:
    """The images of a data set that were found to be unusable so far, by this process or by its loader's workers.

    In the place of one comes the next usable one: what an index stands for depends on the data set alone, so any number
    of workers and processes, and a resumed run, see the same.

    Attributes:
        found: bool (n,), in shared memory.
    """

    def __init__(self, number: int):
        self.found = torch.zeros(number, dtype=torch.bool).share_memory_()

    @property
    def count(self) -> int:
        """How many were found."""
        return int(self.found.sum())

    def usable(self, index: int, read: Callable[[int], Found]) -> Found:
        """What `read` makes of an index; where that raises ImageError, of the first index after it where it does not.

        After the last index comes the first.

        Raises:
            DataError: `LONGEST_GAP` in a row, or all, are unusable.
            IndexError: the index is none of the data set's.
        """
        number = len(self.found)
        if not -number <= index < number:
            raise IndexError(f"index {index} is not in 0..{number - 1}")
        tried = min(LONGEST_GAP, number)
        for place in range(index, index + tried):
            # One that was found is not tried again: to fail may take as long as to succeed.
            if not self.found[place % number]:
                try:
                    return read(place % number)
                except ImageError:
                    self.found[place % number] = True
        try:
            return read(index % number)
        except ImageError as error:
            raise DataError(f"{tried} images in a row are unusable, the first: {error}") from error

    def reasons(self, read: Callable[[int], object]) -> Iterator[str]:
        """What is wrong with each, in order: `read` tries it once more."""
        for index in self.found.nonzero().flatten().tolist():
            try:
                read(index)
                yield f"image {index} was unusable, and no longer is"
            except ImageError as error:
                yield str(error)


def bad_images_of(dataset: object) -> BadImages | None:
    """Those of a data set that skips them; None where they are errors, or it has no images but latents."""
    return getattr(dataset, "bad_images", None)


def report_bad_images(dataset: object) -> str | None:
    """One line: how many images of a data set were skipped so far, and what is wrong with the first of them.

    None where there are none, or where they are errors.
    """
    bad = bad_images_of(dataset)
    if bad is None or not bad.count:
        return None
    number, total = bad.count, len(bad.found)
    reasons = list(islice(bad.reasons(dataset.try_image), REPORTED))
    more = [f"and {number - len(reasons)} more"] if number > len(reasons) else []
    are = "image is unusable and is" if number == 1 else "images are unusable and are"
    of = f"1 of {total}" if number == 1 else f"{number} of {total}"
    return f"{of} {are} skipped: {'; '.join([*reasons, *more])}"
