"""Map a function over many images in chunks, on all processes and threads; stored chunks are not computed again.

A chunk holds the values of a range of images, and depends on that range alone. So the main process reads the same
values for any number of processes, and after any interruption.
"""

import copy
import hashlib
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
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
from arcvq.compute.chunk_workers import Inputs, Measure, in_threads, on_gpu, without_inputs

# A process waits at most this long for the others, which may have more work.
LONGEST_WAIT = timedelta(days=1)

T = TypeVar("T")
# A range of images and their values on the CPU => the values that are stored.
Finish = Callable[[range, dict[str, Tensor]], dict[str, Tensor]]


@dataclass(frozen=True)
class ResumableMap:
    """The chunks of one map over images, stored in a folder whose name holds a hash of `settings`.

    Args:
        parent: the folder that contains the chunks' folder.
        title: beginning of the folder's name, and label of the progress bar.
        settings: all that the values depend on, as JSON.
        images: number of images.
        size: images per chunk; the last chunk may have fewer.
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
        """The files of all chunks, in order."""
        return [self._file(chunk) for chunk in self.ranges()]

    def ranges(self) -> list[range]:
        """Return the range of images of each chunk."""
        return [range(start, min(start + self.size, self.images)) for start in range(0, self.images, self.size)]

    def compute(
        self,
        make_worker: Callable[[], Measure],
        verify: bool = True,
        inputs: Inputs | None = None,
        finish: Finish | None = None,
    ) -> None:
        """Compute this process's share of the missing chunks; the main process shows a progress bar.

        Every process calls this, and none returns before all chunks are stored.

        Args:
            make_worker: called once in each thread; returns the function that maps a range of images to values. Its
                models must belong to that thread.
            inputs: called once for all chunks, where one thread feeds a GPU, so that it can read ahead; otherwise in
                each thread for one chunk. None: the measurement reads by itself.
            finish: what remains to be done on the CPU: on a GPU's machine, while the GPU computes. None: nothing.
            verify: whether to compare the values of stored chunks with their SHA-256, which reads all of them. Without
                it only each file's header is read, which tells a chunk that is cut off or of other settings.

        Raises:
            OSError: a process does not find the chunks of the others, so the folder is not shared.
        """
        state = PartialState()
        if state.is_main_process:
            self.folder.mkdir(parents=True, exist_ok=True)
            (self.folder / "settings.json").write_text(json.dumps(self.settings, indent=2) + "\n")
        state.wait_for_everyone()
        # All look before anyone writes, so all find the same chunks missing.
        missing = self._missing(state, verify)
        share = missing[state.process_index :: state.num_processes]
        done = self.images - sum(map(len, missing))
        with tqdm(
            total=self.images, initial=done, desc=self.title, unit="image", disable=not state.is_main_process
        ) as bar:
            each = in_threads if state.device.type == "cpu" else on_gpu
            for chunk in each(share, partial(self._write, finish), make_worker, inputs or without_inputs):
                bar.update(len(chunk) * min(state.num_processes, len(missing)))
        state.wait_for_everyone()
        if lost := [chunk for chunk in self.ranges() if not self._file(chunk).is_file()]:
            raise OSError(f"{self._file(lost[0])} is not there: all processes need one folder, shared by all machines")

    def read(self, *names: str) -> Iterator[dict[str, Tensor]]:
        """Yield the values of each chunk, in order; `names` selects some of them, where a chunk has them."""
        for chunk in self.ranges():
            with safetensors.safe_open(self._file(chunk), "pt") as values:
                chosen = [name for name in values.keys() if not names or name in names]  # noqa: SIM118
                copies = {name: values.get_tensor(name).clone() for name in chosen}  # Windows keeps a mapped file
            yield copies

    def column(self, name: str) -> Tensor | None:
        """Concatenate one of the values over all images; return None if no chunk has it."""
        parts = [values[name] for values in self.read(name) if values]
        return torch.cat(parts) if parts else None

    def remove(self) -> None:
        """Delete the folder, if it exists."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    @property
    def _key(self) -> str:
        return hashlib.sha256(json.dumps(self.settings | {"chunk": self.size}, sort_keys=True).encode()).hexdigest()

    def _file(self, chunk: range) -> Path:
        return self.folder / f"{chunk.start:08d}-{chunk.stop:08d}.safetensors"

    def _origin(self, chunk: range, values: dict[str, Tensor]) -> dict[str, str]:
        """Return the metadata of a chunk's file: its range, the settings' hash and a hash of its values.

        It tells a damaged chunk, or one of other settings. It is a single entry, because safetensors writes several in
        varying order.
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
            with safetensors.safe_open(self._file(chunk), "pt") as file:  # raises if the size does not fit the header
                if not verify:
                    return (file.metadata() or {}).get("chunk", "").startswith(self._name(chunk))
                values = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
                return file.metadata() == self._origin(chunk, values)
        except (OSError, safetensors.SafetensorError):
            return False

    def _missing(self, state: PartialState, verify: bool) -> list[range]:
        """List the chunks that are missing or damaged; each process checks its share, and all get the whole list."""
        chunks = self.ranges()
        share = chunks[state.process_index :: state.num_processes]
        with ThreadPoolExecutor(torch.get_num_threads()) as pool:
            shown = {"desc": f"checking {self.title}", "leave": False, "disable": not state.is_main_process}
            is_whole = partial(self._is_whole, verify=verify)
            whole = list(tqdm(pool.map(is_whole, share), total=len(share), delay=1, **shown))
        missing = [chunk for chunk, is_whole in zip(share, whole, strict=True) if not is_whole]
        damaged = [chunk for chunk in missing if self._file(chunk).exists()]
        if state.num_processes > 1:
            missing, damaged = gather_object(missing), gather_object(damaged)
        if damaged and state.is_main_process:
            first = self._file(min(damaged, key=lambda chunk: chunk.start))
            print(f"warning: damaged, computed again: {first}, of {len(damaged)} such files", file=sys.stderr)
        return sorted(missing, key=lambda chunk: chunk.start)

    def _write(self, finish: Finish | None, chunk: range, values: dict[str, Tensor]) -> None:
        values = {name: value.cpu() for name, value in values.items()}
        values = values if finish is None else finish(chunk, values)
        tensors = {name: value.contiguous() for name, value in values.items()}
        with atomic_file(self._file(chunk), shared=True) as unfinished:
            unfinished.write_bytes(safetensors.torch.save(tensors, self._origin(chunk, tensors)))


def copy_sharing_weights(thing: T, *modules: nn.Module) -> T:
    """Copy a module, or a pipeline with these modules, for one thread; the copy shares the weights."""
    tensors = (tensor for module in modules for tensor in (*module.parameters(), *module.buffers()))
    return copy.deepcopy(thing, {id(tensor): tensor for tensor in tensors})
