"""Collect the unusable images that a run has skipped, on all processes, for the log and for checkpoints."""

from collections.abc import Sequence

from accelerate import Accelerator
from torch.utils.data import Dataset

from tokenizer.data.bad_images import bad_images_of, report_bad_images


class SkippedImages:
    """The unusable images of the training data, of all processes.

    Args:
        accelerator: of the run.
        dataset: the training data. It may record its unusable images, raise at the first, or hold no images.
        known: indices of the images that were unusable before this start.
    """

    def __init__(self, accelerator: Accelerator, dataset: Dataset, known: Sequence[int]):
        self._accelerator = accelerator
        self._dataset = dataset
        self._bad = bad_images_of(dataset)
        if self._bad is not None:
            self._bad.found[list(known)] = True
        self._reported = len(known)

    def counts(self) -> dict[str, int]:
        """Return their number for the log, if the data set records them; every process calls this."""
        if self._bad is None:
            return {}
        local = self._bad.found.int().to(self._accelerator.device)
        self._bad.found |= self._accelerator.reduce(local, "sum").cpu() > 0
        return {"bad_images": self._bad.count}

    def found(self) -> list[int]:
        """Return their indices for a checkpoint; every process calls this."""
        self.counts()
        return [] if self._bad is None else self._bad.found.nonzero().flatten().tolist()

    def pop_warning(self) -> str | None:
        """Return a warning if there are more than at the last call, else None."""
        if self._bad is None or self._bad.count <= self._reported:
            return None
        self._reported = self._bad.count
        return report_bad_images(self._dataset)
