"""Long measurements in chunks: computed once, by whichever process and thread comes to them, kept, read in order.

A chunk is a range of images and what was measured of them. It is a function of the range alone: what the main process
reads is the same for any number of processes, and after any interruption.
"""

import copy
import hashlib
import json
import shutil
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import FIRST_COMPLETED, ThreadPoolExecutor, wait
from contextvars import copy_context
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import safetensors
import safetensors.torch
import torch
from accelerate import PartialState
from accelerate.utils import gather_object
from torch import Tensor, nn
from tqdm.auto import tqdm

from arcvq.compute.atomic_files import atomic_file

# No process waits longer for the others, of which each has its share of the images.
LONGEST_WAIT = timedelta(days=7)

T = TypeVar("T")
Measure = Callable[[range], dict[str, Tensor]]


@dataclass(frozen=True)
class ResumableMap:
    """The chunks of one measurement, in a folder that `settings` name: with other settings it is another folder.

    Args:
        parent: where that folder is.
        title: begins its name, and tells what the progress bar counts.
        settings: all that the values depend on, JSON-able.
        images: how many.
        size: images of a chunk; the last one may have fewer.
    """

    parent: Path
    title: str
    settings: dict[str, Any]
    images: int
    size: int

    @property
    def folder(self) -> Path:
        return self.parent / f"{self.title}-{self._key[:16]}"

    @property
    def files(self) -> list[Path]:
        """The file of each chunk."""
        return [self._file(chunk) for chunk in self.ranges()]

    def ranges(self) -> list[range]:
        """The images of each chunk."""
        return [range(start, min(start + self.size, self.images)) for start in range(0, self.images, self.size)]

    def compute(self, make_worker: Callable[[], Measure], verify: bool = True) -> None:
        """Computes this process's share of the chunks that are not there yet, with a progress bar on the main one.

        Every process calls it; none returns before all chunks are there. `make_worker` is called once for each thread
        and gives the function that measures the images of a range; its models are the thread's own.

        Args:
            make_worker: makes a thread's function.
            verify: compare the values of stored chunks with their SHA-256, which reads all of them; otherwise each
                file's header is read alone, which tells a chunk that is cut off or of another measurement.

        Raises:
            OSError: a process does not find the chunks of the others: the folder is not a shared one.
        """
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.json").write_text(json.dumps(self.settings, indent=2) + "\n")
        state.wait_for_everyone()
        missing = self._missing(
            state, verify
        )  # nobody writes before all have looked: each must see the same chunks missing
        ours = missing[state.process_index :: state.num_processes]
        done = self.images - sum(map(len, missing))
        with tqdm(
            total=self.images, initial=done, desc=self.title, unit="image", disable=not state.is_main_process
        ) as bar:
            for chunk in _in_threads(ours, lambda measure, chunk: self._write(chunk, measure(chunk)), make_worker):
                bar.update(len(chunk) * min(state.num_processes, len(missing)))
        state.wait_for_everyone()
        if lost := [chunk for chunk in self.ranges() if not self._file(chunk).is_file()]:
            raise OSError(f"{self._file(lost[0])} is not there: all processes need one folder, shared by all machines")

    def read(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """The values of all chunks, in order: those that are named and there, or all of them."""
        for chunk in self.ranges():
            with safetensors.safe_open(self._file(chunk), "pt") as values:
                yield {name: values.get_tensor(name) for name in values.keys() if not names or name in names}  # noqa: SIM118

    def column(self, name: str) -> Tensor | None:
        """One of the values of all images, concatenated; None where the chunks do not have it."""
        parts = [values[name] for values in self.read(name) if values]
        return torch.cat(parts) if parts else None

    def remove(self) -> None:
        """Deletes the folder, if it is there."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def _key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings | {"chunk": self.size}, sort_keys=True).encode()).hexdigest()

    def _file(self, chunk: range) -> Path:
        return self.folder / f"{chunk.start:08d}-{chunk.stop:08d}.safetensors"

    def _origin(self, chunk: range, values: dict[str, Tensor]) -> dict[str, str]:
        """Return the metadata of a chunk's file, by which a chunk of another measurement, or a damaged one, is known.

        One entry: the order of several would change from file to file.
        """
        digest = hashlib.sha256()
        for name in sorted(values):
            digest.update(f"{name} {values[name].dtype} {tuple(values[name].shape)}".encode())
            digest.update(values[name].flatten().view(torch.uint8).numpy())
        return {"chunk": f"{self._name(chunk)}{digest.hexdigest()}"}

    def _name(self, chunk: range) -> str:
        return f"{chunk.start}-{chunk.stop} of {self._key}: "

    def _is_whole(self, chunk: range, verify: bool) -> bool:
        try:
            with safetensors.safe_open(self._file(chunk), "pt") as file:  # raises where the size is not the header's
                if not verify:
                    return (file.metadata() or {}).get("chunk", "").startswith(self._name(chunk))
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return file.metadata() == self._origin(chunk, values)
        except (OSError, safetensors.SafetensorError):
            return False

    def _missing(self, state: PartialState, verify: bool) -> list[range]:
        """The chunks that are not there, or damaged: each process looks at its share, and all are told."""
        chunks = self.ranges()
        ours = chunks[state.process_index :: state.num_processes]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            shown = {"desc": f"checking {self.title}", "leave": False, "disable": not state.is_main_process}
            whole = list(
                tqdm(pool.map(partial(self._is_whole, verify=verify), ours), total=len(ours), delay=1, **shown)
            )
        missing = [chunk for chunk, is_whole in zip(ours, whole, strict=True) if not is_whole]
        damaged = [chunk for chunk in missing if self._file(chunk).exists()]
        if state.num_processes > 1:
            missing, damaged = gather_object(missing), gather_object(damaged)
        if damaged and state.is_main_process:
            first = self._file(min(damaged, key=lambda chunk: chunk.start))
            print(f"warning: damaged, computed again: {first}, of {len(damaged)} such files", file=sys.stderr)
        return sorted(missing, key=lambda chunk: chunk.start)

    def _write(self, chunk: range, values: dict[str, Tensor]) -> None:
        tensors = {name: value.cpu().contiguous() for name, value in values.items()}
        with atomic_file(self._file(chunk), shared=True) as unfinished:
            unfinished.write_bytes(safetensors.torch.save(tensors, self._origin(chunk, tensors)))


def copy_sharing_weights(thing: T, *modules: nn.Module) -> T:
    """A copy of a module, or of a pipeline with these modules, for one thread: its own state, the same weights."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return copy.deepcopy(thing, {id(tensor): tensor for tensor in tensors})


def _in_threads(
    chunks: list[range], work: Callable[[Measure, range], None], make_worker: Callable[[], Measure]
) -> Iterator[range]:
    """Does each chunk in one thread of the CPU, as many at once as there are threads; yields them as they are done.

    Kernels round as the number of their threads has them split the work: a chunk that one thread computes is the same
    in any process. On a GPU one thread feeds the device.
    """
    threads = torch.get_num_threads()
    own = threading.local()

    def do(chunk: range) -> range:
        if not hasattr(own, "measure"):
            torch.set_num_threads(1)
            own.measure = make_worker()
        work(own.measure, chunk)
        return chunk

    with ThreadPoolExecutor(1 if torch.cuda.is_available() else threads) as pool:
        # A copy for each: torch keeps its compiler's limits in the context, which a new thread would not have.
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
