"""The order of streamed images: the samples of any step, computed from the seed alone."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """Origin of one image of a step: entry `position` of a lane's shuffled window."""

    epoch: int
    lane: int
    window: int
    position: int


@dataclass(frozen=True, eq=False)
class StreamOrder:
    """An endless order of samples that lie in blocks, each of which is read as a whole.

    An epoch permutes the blocks and concatenates them to a sequence of all n samples. The sequence is cut into
    `batch_size` lanes whose lengths differ by at most one. A lane is read from start to end and shuffled in windows of
    shuffle_buffer / batch_size samples. The q-th image of an epoch is the next one of lane q mod batch_size. Hence an
    epoch has every sample once; a batch mixes images from the whole data set, keeps few blocks open, and may span two
    epochs; and a worker that delivers some positions of the batch reads only their lanes.

    The order is a function of (seed, epoch) for given counts, batch_size and shuffle_buffer; it does not depend on
    ranks and workers.

    Args:
        counts: samples in each block, int64 (blocks,), all positive.
        batch_size: global batch size, at most the number of samples.
        seed: seed of the order.
        shuffle_buffer: samples in the windows of all lanes together.
    """

    counts: np.ndarray
    batch_size: int
    seed: int
    shuffle_buffer: int

    @cached_property
    def num_samples(self) -> int:
        """Samples of an epoch."""
        return int(self.counts.sum())

    @property
    def window_size(self) -> int:
        """Samples that are shuffled together."""
        return max(1, self.shuffle_buffer // self.batch_size)

    def place(self, step: int, element: int) -> Place:
        """Return the origin of the image at position `element`, 0..batch_size-1, of a global step."""
        epoch, in_epoch = divmod(step * self.batch_size + element, self.num_samples)
        number, lane = divmod(in_epoch, self.batch_size)
        return Place(epoch, lane, *divmod(number + self._lead(lane), self.window_size))

    def window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        """Return the shuffled sample indices of a window, in the order of the blocks, int64 (window_size,).

        Entries of the first window before the lane's start, and of the last one beyond its end, are -1.
        """
        size, (per_lane, longer) = self.window_size, divmod(self.num_samples, self.batch_size)
        length = per_lane + (lane < longer)
        numbers = np.arange(window * size, (window + 1) * size) - self._lead(lane)
        within = (numbers >= 0) & (numbers < length)
        order = np.random.default_rng([self.seed, epoch, lane, window, 1]).permutation(numbers[within])
        indices = np.full(size, -1, dtype=np.int64)
        indices[within] = self._in_sequence(epoch, lane * per_lane + min(lane, longer) + order)
        return indices

    def _lead(self, lane: int) -> int:
        """Return by how much a lane's first window is shorter, so that lanes change windows at different steps."""
        return lane * self.window_size // self.batch_size

    def _in_sequence(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """Return the samples at positions of an epoch's sequence of blocks."""
        ends, shifts = self._blocks(epoch)
        return positions + shifts[np.searchsorted(ends, positions, side="right")]

    @lru_cache(maxsize=2)  # noqa: B019 (an order lives only as long as its iteration; a batch may span two epochs)
    def _blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Return where each block of an epoch's sequence ends, and the offset to its stored samples."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.counts))
        ends = np.cumsum(self.counts[order])
        return ends, np.cumsum(self.counts)[order] - ends
