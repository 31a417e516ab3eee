"""Images that a run has skipped: brought together from its processes, told, and kept for the next start."""

from collections.abc import Sequence

from accelerate import Accelerator
from torch.utils.data import Dataset

from tokenizer.data.bad_images import bad_images_of, report_bad_images


class SkippedImages:
    """The unusable images of the data set in training, those of all processes.

    Args:
        accelerator: brings the processes together.
        dataset: in training; it counts its unusable images, or raises at one, or has no images.
        found: what the run had found before, by index.
    """

    def __init__(self, accelerator: Accelerator, dataset: Dataset, found: Sequence[int]):
        self._accelerator = accelerator
        self._dataset = dataset
        self._bad = bad_images_of(dataset)
        if self._bad is not None:
            self._bad.found[list(found)] = True
        self._reported = len(found)

    def counts(self) -> dict[str, int]:
        """How many there are, for the log; to be called by all processes."""
        if self._bad is None:
            return {}
        here = self._bad.found.int().to(self._accelerator.device)
        self._bad.found |= self._accelerator.reduce(here, "sum").cpu() > 0
        return {"bad_images": self._bad.count}

    def found(self) -> list[int]:
        """Which they are, for a checkpoint; to be called by all processes."""
        self.counts()
        return [] if self._bad is None else self._bad.found.nonzero().flatten().tolist()

    def pop_warning(self) -> str | None:
        """A warning, if there are more than when this was last asked."""
        if self._bad is None or self._bad.count <= self._reported:
            return None
        self._reported = self._bad.count
        return report_bad_images(self._dataset)
