"""Draw batches of a data set: this process's batches of a training's steps, or all images once, in order.

The order of the training images is a function of (seed, step) alone: a resumed run, and a run with any number of
workers or processes, sees the same global batches as an uninterrupted run of one process.
"""

import atexit
import multiprocessing
import multiprocessing.queues
import os
import signal
import sys
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch.utils.data import BatchSampler, DataLoader, Dataset, IterableDataset, SequentialSampler, Subset

from tokenizer.data.on_device import DeviceBatches, fits_on
from tokenizer.data.step_batches import StepBatches, check_shares
from tokenizer.data.streaming.images import StreamedImages
from tokenizer.data.transport import TransportedBatches


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
    device: torch.device | str = "cpu",
) -> TransportedBatches | DeviceBatches:
    """Load this process's batches of global steps start_step..stop_step-1, batch_size // world_size images each.

    The batches are on `device`. Images travel there as uint8; a GPU holds those of a data set in memory, if they take
    little of it.

    Works for any data set that returns a batch for a list of indices, or has `pixel_batch(indices)`, whose images are
    uint8. If its `is_augmented` is true, batches come from its `augmented(indices, seed, epoch)` instead. Arguments and
    errors are those of `StepBatches`; `StreamedImages` are read in the order of `StreamOrder`, and their batches may
    span two epochs. The global random state is neither read nor advanced.
    """
    device = torch.device(device)
    if isinstance(dataset, StreamedImages):
        streamed = StreamedBatches(dataset, batch_size, seed, start_step, stop_step, rank, world_size, num_workers)
        return TransportedBatches(streamed, device)
    augmented = getattr(dataset, "is_augmented", False)
    order = StepBatches if not augmented else _EpochBatches
    batches = order(len(dataset), batch_size, seed, start_step, stop_step, rank, world_size)
    if getattr(dataset, "in_memory", False) and fits_on(device, dataset.pixels):
        return DeviceBatches(dataset.pixels, dataset.labels, dataset.flip, batches, device)
    source = _Augmented(dataset, seed) if augmented else _Stored(dataset)
    return TransportedBatches(loader(source, num_workers, sampler=batches, batch_size=None), device)


def evaluation_batches(
    dataset: Dataset, *, batch_size: int, num_workers: int = 0, device: torch.device | str = "cpu"
) -> TransportedBatches:
    """Load every image once, in order, cropped to the centre, onto the device; the last batch may be smaller."""
    batches = BatchSampler(SequentialSampler(dataset), batch_size, drop_last=False)
    return listed_batches(dataset, batches, num_workers, torch.device(device))


def listed_batches(
    dataset: Dataset, batches: Iterable[Sequence[int]], num_workers: int, device: torch.device
) -> TransportedBatches:
    """Load the batches of these lists of indices, in order, cropped to the centre, onto the device."""
    return TransportedBatches(loader(_Stored(dataset), num_workers, sampler=batches, batch_size=None), device)


class _EpochBatches(StepBatches):
    def __iter__(self) -> Iterator[tuple[int, list[int]]]:
        return self.with_epochs()


@dataclass(eq=False, repr=False)
class _Augmented(Dataset):
    """Data set of augmented batches, indexed by (epoch, indices)."""

    dataset: Dataset
    seed: int

    def __getitem__(self, key: tuple[int, list[int]]) -> dict[str, torch.Tensor]:
        epoch, indices = key
        return self.dataset.augmented(indices, self.seed, epoch)

    @property
    def in_memory(self) -> bool:
        return getattr(self.dataset, "in_memory", False)


@dataclass(eq=False, repr=False)
class _Stored(Dataset):
    """Data set of batches as they are stored, images as uint8, indexed by lists of indices."""

    dataset: Dataset

    def __getitem__(self, indices: Sequence[int]) -> dict[str, torch.Tensor]:
        dataset, indices = self.dataset, list(indices)
        while isinstance(dataset, Subset):
            dataset, indices = dataset.dataset, [dataset.indices[index] for index in indices]
        return dataset.pixel_batch(indices) if hasattr(dataset, "pixel_batch") else dataset[indices]

    @property
    def in_memory(self) -> bool:
        return getattr(self.dataset, "in_memory", False)


@dataclass(eq=False, repr=False)
class StreamedBatches:
    """This process's batches of a streamed data set, images as uint8; raises the errors of `StepBatches`.

    Each worker reads its own positions of the batch, so that no block is read twice, and the main process joins the
    parts. Workers beyond the number of positions are not started.
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
        positions = np.array_split(self.rank * share + np.arange(share), max(workers, 1))
        # The batches are pinned, not their parts.
        parts = iter(loader(_Parts(self, positions), workers, pinned=False, batch_size=None))
        for _ in range(len(self)):
            images, labels = zip(*(next(parts) for _ in positions), strict=True)
            batch = {"images": torch.cat(images), "labels": torch.cat(labels)}
            yield {name: tensor.pin_memory() for name, tensor in batch.items()} if _pinned() else batch


@dataclass(eq=False, repr=False)
class _Parts(IterableDataset):
    """A worker's part of each batch, uint8 images and labels; the loader takes the workers' parts in turn."""

    batches: StreamedBatches
    positions: list[np.ndarray]

    def __iter__(self) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        worker = torch.utils.data.get_worker_info()
        run = self.batches
        positions = self.positions[0 if worker is None else worker.id].tolist()
        return run.dataset.stream(positions, run.batch_size, run.seed, range(run.start_step, run.stop_step))


def loader(dataset: Dataset | range, num_workers: int, pinned: bool = True, **batching) -> DataLoader:
    """Build a DataLoader that leaves the global random state untouched; data sets in memory get no workers.

    Its workers ignore the signals that end a job or ask it to save: these are for the main process, which still needs
    batches.
    """
    if getattr(dataset, "in_memory", False):
        num_workers = 0  # indexing a tensor is faster than sending a batch between processes
    # Without an own generator, each pass would draw a seed from the global random state and advance it.
    generator = torch.Generator()
    if num_workers:
        _end_workers_at_exit()
    batching |= {"pin_memory": pinned and _pinned(), "worker_init_fn": _begin_worker}
    return DataLoader(dataset, num_workers=num_workers, generator=generator, **batching)


def _begin_worker(_: int) -> None:
    # Schedulers and the keyboard signal the whole process group, but the last step before saving needs its batch.
    for name in ("SIGTERM", "SIGINT", "SIGUSR1"):
        if hasattr(signal, name):  # Windows has no SIGUSR1
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    # If a batch cannot be sent for lack of shared memory, torch prints the error and the main process waits forever.
    multiprocessing.queues.Queue._on_queue_feeder_error = staticmethod(_end_worker)
    # torch's workers end when their parent does. The parent of a fork server's children is the server, which they keep
    # alive: if the main process were killed, they would stay forever, with their memory.
    threading.Thread(target=_end_with_main_process, daemon=True).start()


def _end_with_main_process() -> None:
    multiprocessing.parent_process().join()
    os._exit(1)


def _end_worker(error: Exception, _: object) -> None:
    print(f"a process that loads data cannot hand on its images: {error}", file=sys.stderr, flush=True)
    os._exit(1)  # the main process notices the exit


@cache
def _end_workers_at_exit() -> None:
    # Runs before multiprocessing's own exit handler, which sends daemons SIGTERM and waits for them.
    atexit.register(_end_workers)


def _end_workers() -> None:
    workers = [child for child in multiprocessing.active_children() if child.daemon]
    if workers:
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would report the kill as an error
    for worker in workers:
        worker.kill()


def _pinned() -> bool:
    return torch.cuda.is_available()
