"""Measure chunks of images: on a CPU several at once; on a GPU one by one, with reading and storing beside it."""

import threading
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextvars import copy_context
from typing import Any, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")
# A range of images, and its inputs => their values by name.
Measure = Callable[..., dict[str, Tensor]]
# Ranges of images => the inputs of each, in order; those of one are used before the next are asked for.
Inputs = Callable[[list[range]], Iterable[tuple[Any, ...]]]


def read_ahead(read: Callable[[range], T]) -> Inputs:
    """Make the inputs that CPU threads read with `read`, one chunk each, ahead of the GPU that measures them."""

    def inputs(chunks: list[range]) -> Iterator[tuple[T]]:
        if len(chunks) == 1:  # nothing is measured meanwhile
            yield (read(chunks[0]),)
            return
        threads = torch.get_num_threads()
        with ThreadPoolExecutor(threads) as pool:
            waiting = deque(pool.submit(read, chunk) for chunk in chunks[: threads + 1])
            try:
                for following in [*chunks[threads + 1 :], *[None] * len(waiting)]:
                    done = waiting.popleft().result()
                    if following is not None:
                        waiting.append(pool.submit(read, following))
                    yield (done,)
            finally:
                for future in waiting:
                    future.cancel()

    return inputs


def without_inputs(chunks: list[range]) -> list[tuple[()]]:
    """Return no inputs, for a measurement that reads by itself."""
    return [()] * len(chunks)


def in_threads(
    chunks: list[range], write: Callable[..., None], make_worker: Callable[[], Measure], inputs: Inputs
) -> Iterator[range]:
    """Compute each chunk in one CPU thread, several chunks at once, and yield the chunks as they finish.

    Rounding depends on the number of threads among which a kernel splits its work. With one thread per chunk, a chunk
    is the same in any process.
    """
    threads = torch.get_num_threads()
    own = threading.local()

    def do(chunk: range) -> range:
        if not hasattr(own, "measure"):
            torch.set_num_threads(1)
            own.measure = make_worker()
        for taken in inputs([chunk]):
            write(chunk, own.measure(chunk, *taken))
        return chunk

    with ThreadPoolExecutor(threads) as pool:
        # Each thread gets a copy of the context, in which torch keeps its compiler's limits.
        waiting = {pool.submit(copy_context().run, do, chunk) for chunk in chunks}
        try:
            while waiting:
                finished, waiting = wait(waiting, return_when=FIRST_COMPLETED)
                for future in finished:
                    yield future.result()
        finally:
            for future in waiting:
                future.cancel()
            torch.set_num_threads(threads)


def on_gpu(
    chunks: list[range], write: Callable[..., None], make_worker: Callable[[], Measure], inputs: Inputs
) -> Iterator[range]:
    """Feed the chunks to a GPU one after the other, while another thread fetches and stores the values of the last."""
    if not chunks:
        return
    threads = torch.get_num_threads()
    measure, last = make_worker(), None

    def store(chunk: range, values: dict[str, Tensor]) -> range:
        write(chunk, values)
        return chunk

    # One thread per chunk, as in `in_threads`: what is finished on the CPU rounds the same in any process.
    with ThreadPoolExecutor(1, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for chunk, taken in zip(chunks, inputs(chunks), strict=True):
                values = measure(chunk, *taken)
                if last is not None:
                    yield last.result()
                last = pool.submit(store, chunk, values)
            if last is not None:
                yield last.result()
        finally:
            torch.set_num_threads(threads)
