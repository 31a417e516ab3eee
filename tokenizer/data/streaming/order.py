"""The order of streamed images: any step's samples, from the seed alone and without those before."""

from dataclasses import dataclass
from functools import cached_property, lru_cache
from typing import NamedTuple

import numpy as np


class Place(NamedTuple):
    """Where one image of a step comes from: the `position`-th of a lane's shuffled window."""

    epoch: int
    lane: int
    window: int
    position: int


@dataclass(frozen=True, eq=False)
class StreamOrder:
    """An endless order of samples that lie in blocks, each to be read in one go.

    An epoch permutes the blocks and concatenates them to a sequence of all n samples. The sequence is cut into
    `batch_size` lanes whose lengths differ by at most one; a lane is read from its start to its end, and shuffled in
    windows of shuffle_buffer / batch_size samples. The q-th image of an epoch is the next one of lane
    q mod batch_size. So an epoch has every sample once; a batch draws from all over the data set, has few blocks open,
    and may end one epoch and begin the next; and whoever delivers some places of the batch reads only their lanes.

    The order is a function of (seed, epoch) for given counts, batch_size and shuffle_buffer; ranks and workers do
    not enter.

    Args:
        counts: samples in each block, int64 (blocks,), none of them 0.
        batch_size: of all processes together, at most as many as there are samples.
        seed: of the order.
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
        """Where the image at place `element`, 0..batch_size-1, of a global step comes from."""
        epoch, in_epoch = divmod(step * self.batch_size + element, self.num_samples)
        number, lane = divmod(in_epoch, self.batch_size)
        return Place(epoch, lane, *divmod(number + self._lead(lane), self.window_size))

    def window(self, epoch: int, lane: int, window: int) -> np.ndarray:
        """The samples of a window by their index in the order of the blocks, shuffled, int64 (window_size,).

        A place of the first window that lies before the lane's start, or of the last one beyond its end, is -1.
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
        """By how much a lane's first window is shorter: the lanes do not all come to their next window at one step."""
        return lane * self.window_size // self.batch_size

    def _in_sequence(self, epoch: int, positions: np.ndarray) -> np.ndarray:
        """The samples at positions of an epoch's sequence of blocks."""
        ends, shifts = self._blocks(epoch)
        return positions + shifts[np.searchsorted(ends, positions, side="right")]

    @lru_cache(maxsize=2)  # noqa: B019 (an order lives as long as its iteration; a batch may hold two epochs)
    def _blocks(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """Where each block of an epoch's sequence ends, and how far its samples lie from where they are stored."""
        order = np.random.default_rng([self.seed, epoch]).permutation(len(self.counts))
        ends = np.cumsum(self.counts[order])
        return ends, np.cumsum(self.counts)[order] - ends
