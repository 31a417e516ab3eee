"""A data set -> this process's batches of the steps of a training, or all images once, in order.

The order of the training images is a function of (seed, step) alone: a resumed run, and a run on any number of
workers or processes, sees the same global batches as an uninterrupted run on one.
"""

import atexit
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, Sampler, SequentialSampler

from tokenizer.data.dataset import as_floats
from tokenizer.data.decoding import DataError
from tokenizer.data.streaming.images import StreamedImages


def training_batches(
    dataset: Dataset,
    *,
    batch_size: int,
    seed: int,
    start_step: int,
    stop_step: int,
    rank: int = 0,
    world_size: int = 1,
    num_workers: int = 0,
) -> "DataLoader | StreamedBatches":
    """This process's batches of global steps start_step..stop_step-1, batch_size // world_size images each.

    Any data set will do whose item of a list of indices is their batch. One whose `is_augmented` is true gives the
    batch of a list as training sees it, by `augmented(indices, seed, epoch)`. The arguments and errors are those of
    `StepBatches`; the order of `StreamedImages` is that of `StreamOrder`, and their batches run on over the end of an
    epoch. The global random state is neither read nor advanced.
    """
    if isinstance(dataset, StreamedImages):
        return StreamedBatches(dataset, batch_size, seed, start_step, stop_step, rank, world_size, num_workers)
    augmented = getattr(dataset, "is_augmented", False)
    order = StepBatches if not augmented else _EpochBatches
    batches = order(len(dataset), batch_size, seed, start_step, stop_step, rank, world_size)
    return loader(_Augmented(dataset, seed) if augmented else dataset, num_workers, sampler=batches, batch_size=None)


def evaluation_batches(dataset: Dataset, *, batch_size: int, num_workers: int = 0) -> DataLoader:
    """Every image once, in order, cropped to the centre; the last batch may be smaller."""
    batches = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    return loader(dataset, num_workers, sampler=batches, batch_size=None)


def epoch_order(num_samples: int, seed: int, epoch: int) -> torch.Tensor:
    """The permutation of 0..num_samples-1, int64 (num_samples,), in which an epoch visits them."""
    return torch.from_numpy(np.random.default_rng([seed, epoch]).permutation(num_samples))


@dataclass(eq=False, repr=False)
class StepBatches(Sampler[list[int]]):
    """The indices of the batch of every global step in start_step..stop_step-1.

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
        """The epoch of each step beside its indices."""
        steps_per_epoch, share = self.num_samples // self.batch_size, self.batch_size // self.world_size
        current_epoch = None
        for step in range(self.start_step, self.stop_step):
            epoch, step_in_epoch = divmod(step, steps_per_epoch)
            if epoch != current_epoch:
                order, current_epoch = epoch_order(self.num_samples, self.seed, epoch), epoch
            first = step_in_epoch * self.batch_size + self.rank * share
            yield epoch, order[first : first + share].tolist()


class _EpochBatches(StepBatches):
    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return self.with_epochs()


@dataclass(eq=False, repr=False)
class _Augmented(Dataset):
    """Batches by (epoch, indices)."""

    dataset: Dataset
    seed: int

    def __getitem__(self, key: tuple[int, list[int]]) -> dict[str, torch.Tensor]:
        epoch, indices = key
        return self.dataset.augmented(indices, self.seed, epoch)

    @property
    def in_memory(self) -> bool:
        return getattr(self.dataset, "in_memory", False)


@dataclass(eq=False, repr=False)
class StreamedBatches:
    """This process's batches of a streamed data set; its errors are those of `StepBatches`.

    Each worker reads places of the batch of its own, no block twice, and the main process puts their parts together;
    of more workers than the process has places, the others are not started.
    """

    dataset: StreamedImages
    batch_size: int
    seed: int
    start_step: int
    stop_step: int
    rank: int
    world_size: int
    num_workers: int

    def __post_init__(self):
        check_shares(len(self.dataset), self.batch_size, self.rank, self.world_size)

    def __len__(self) -> int:
        return max(0, self.stop_step - self.start_step)

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        share = self.batch_size // self.world_size
        workers = min(self.num_workers, share)
        places = np.array_split(self.rank * share + np.arange(share), max(workers, 1))
        # uint8 between the processes: a quarter of the bytes. Pinned are the batches, not their parts.
        parts = iter(loader(_Parts(self, places), workers, pinned=False, batch_size=None))
        for _ in range(len(self)):
            images, labels = zip(*(next(parts) for _ in places), strict=True)
            batch = {"images": as_floats(torch.cat(images)), "labels": torch.cat(labels)}
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if _pinned() else batch


@dataclass(eq=False, repr=False)
class _Parts(IterableDataset):
    """A worker's part of each batch, uint8 images and labels; the loader takes the workers' parts in turn."""

    batches: StreamedBatches
    places: list[np.ndarray]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        run = self.batches
        places = self.places[0 if worker is None else worker.id].tolist()
        return run.dataset.stream(places, run.batch_size, run.seed, range(run.start_step, run.stop_step))


def check_shares(num_samples: int, batch_size: int, rank: int, world_size: int) -> None:
    """Raises DataError unless every process can have its share of a batch."""
    batch = f"batch size {batch_size}"
    if not 1 <= batch_size <= num_samples:
        raise DataError(
            f"{batch} is not in 1..{num_samples}, the number of images; set optim.batch_size to one of these"
        )
    if batch_size % world_size:
        raise DataError(f"{batch} is not a multiple of {world_size}, the number of processes; make it one")
    if not 0 <= rank < world_size:
        raise DataError(f"rank {rank} is not in 0..{world_size - 1}, the ranks of the processes")


def loader(dataset: Dataset | range, num_workers: int, pinned: bool = True, **batching) -> DataLoader:
    """torch's loader, without a trace in the global random state; a data set in memory needs no workers.

    Signals by which a job is ended or told to save are for the main process, which workers outlive by seconds.
    """
    if getattr(dataset, "in_memory", False):
        num_workers = 0  # to index a tensor takes less than to send the batch from another process
    # A generator of its own: without one each pass draws a seed from the global random state and moves it on.
    generator = torch.Generator()
    if num_workers:
        _end_workers_at_exit()
    batching |= {"pin_memory": pinned and _pinned(), "worker_init_fn": _begin_worker}
    return DataLoader(dataset, num_workers=num_workers, generator=generator, **batching)


def _begin_worker(_: int) -> None:
    # A scheduler, or the keyboard, signals the whole process group; a step that is to be saved still needs its batch.
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, signal.SIG_IGN)
    # A batch that cannot be sent, for want of shared memory, would only be reported, and waited for for ever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)
    # torch's workers look whether they have another parent; that of a fork server's children is the server, which they
    # keep alive: after a kill of the main process they would stay for ever, with their memory.
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _end_worker(error: Exception, _: object) -> None:
    print(f"a process that loads data cannot hand on its images: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # which the main process sees


@cache
def _end_workers_at_exit() -> None:
    # Comes before that of multiprocessing, which sends daemons SIGTERM and waits for them.
    atexit.register(_end_workers)


def _end_workers() -> None:
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would complain that they were killed
    for worker in workers:
        worker.kill()


def _pinned() -> bool:
    return torch.cuda.is_available()
