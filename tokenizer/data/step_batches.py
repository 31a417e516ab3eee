"""The order of training: which images the batch of each step holds, on each process."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch.utils.data import Sampler

from tokenizer.data.decoding import DataError


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """Return the permutation of 0..num_samples-1, int64 (num_samples,), in which an epoch visits the images."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_samples))


@dataclass(eq=False, repr=False)
class StepBatches(Sampler[list[int]]):
    """Sampler: the indices of the batch of every global step in start_step..stop_step-1.

    Each epoch has num_samples // batch_size steps over a new permutation, whose remainder is dropped. `batch_size` is
    global: process `rank` of `world_size` gets the rank-th contiguous share of it.

    Raises:
        DataError: batch_size is not between 1 and num_samples, or not divisible by world_size.
    """

    num_samples: int
    batch_size: int
    seed: int
    start_step: int
    stop_step: int
    rank: int = 0
    world_size: int = 1

    def __post_init__(self):
        check_shares(self.num_samples, self.batch_size, self.rank, self.world_size)

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step)

    def __iter__(self) -> Iterator[list[int]]:
        return (indices for _, indices in self.with_epochs())

    def with_epochs(self) -> Iterator[tuple[int, list[int]]]:
        """Yield each step's epoch and indices."""
        return ((epoch, indices.tolist()) for epoch, steps in self.epochs() for indices in steps)

    def epochs(self) -> Iterator[tuple[int, torch.Tensor]]:
        """Yield each epoch and the indices of its steps in start_step..stop_step-1, int64 (steps, images)."""
        per_epoch, share = self.num_samples // self.batch_size, self.batch_size // self.world_size
        for epoch in range(self.start_step // per_epoch, -(-self.stop_step // per_epoch)):
            begin = epoch * per_epoch
            first, last = max(self.start_step - begin, 0), min(self.stop_step - begin, per_epoch)
            if first < last:
                order = epoch_order(self.num_samples, self.seed, epoch)[: per_epoch * self.batch_size]
                yield epoch, order.view(per_epoch, self.world_size, share)[first:last, self.rank]


def check_shares(num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
    """Raise DataError if the batch cannot be split into equal shares of the processes."""
    batch = f"batch size {batch_size}"
    if not 1 <= batch_size <= num_samples:
        raise DataError(
            f"{batch} is not in 1..{num_samples}, the number of images; set optim.batch_size to one of these"
        )
    if batch_size % world_size:
        raise DataError(f"{batch} is not a multiple of {world_size}, the number of processes; make it one")
    if not 0 <= rank < world_size:
        raise DataError(f"rank {rank} is not in 0..{world_size - 1}, the ranks of the processes")
