"""A run's folder: who works in it, what the run in it is, what is saved in it."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from arcvq.checkpoints.checkpoint import RunState, checkpoints, newest_intact, on_main, save_checkpoint
from arcvq.compute.atomic_files import atomic_file, atomic_folder
from arcvq.runs.lock import LOCK, FolderLock
from arcvq.runs.options import RunConfig
from arcvq.runs.settings import ARTEFACTS, resolve_settings_conflict


class RunFolder:
    """The folder of one run, for the processes that train it; the main one writes.

    Args:
        config: of the run.
        accelerator: brings the processes together.

    Attributes:
        path: where it is.

    Raises:
        ValueError: another process is at work in it.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator):
        self.path = Path(config.output_dir) / config.name
        self._config = config
        self._accelerator = accelerator
        self._lock: FolderLock | None = None
        self._anew = False
        if (self.path / LOCK).is_file():  # a new folder is made when all is known to fit
            self._hold()

    def check_settings(self, file: str, settings: dict[str, Any]) -> None:
        """Compares what is to be run with what `file` says of the folder.

        Raises:
            ValueError: the folder holds work of other settings, and `run.other_settings` is `refuse`.
        """
        self._anew |= resolve_settings_conflict(self.path / file, settings, self._config.other_settings, self._is_main)

    def open(self, settings: dict[str, Any], inputs: dict[str, str]) -> Path | None:
        """Holds the folder, which is made, or begun anew, as it is asked for; its newest intact checkpoint."""
        self._accelerator.wait_for_everyone()  # all have compared their settings
        if self._is_main and self._lock is None:
            self._hold()
            self.check_settings("config.yaml", settings)  # another process may have been quicker
            self.check_settings("inputs.yaml", inputs)
        if self._is_main and not self._anew:
            self._check_places()
        if self._is_main:
            self._lock = self._lock.start_over() if self._anew else self._lock
            self._lock.write_owner()
        self._accelerator.wait_for_everyone()
        return newest_intact(self._accelerator, self.path)

    def write_config(self, settings: dict[str, Any], inputs: dict[str, str], data: str) -> None:
        """Write down what the run is, and what its data set was found to be, on the main process."""
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        self._note_other_data(data)
        as_text = {
            name: yaml.safe_dump(content, sort_keys=False)
            for name, content in (("config.yaml", settings), ("inputs.yaml", inputs))
        }
        for name, text in (as_text | {"data.txt": f"{data}\n"}).items():
            with atomic_file(self.path / name) as unfinished:
                unfinished.write_text(text, encoding="utf-8")

    def save(self, state: RunState) -> None:
        """Writes a checkpoint, on every process. Raises OSError where it cannot; the ones before it are still there."""
        on_main(self._accelerator, self._lock.check if self._lock else lambda: None)
        save_checkpoint(self._accelerator, self.path, state, self._config.keep_checkpoints)

    @property
    def last_state(self) -> str:
        """Which checkpoint there is, in words."""
        saved = checkpoints(self.path)
        return f"{saved[-1]} is from before and untouched" if saved else "nothing was saved before"

    def export(self, name: str, save: Callable[[Path], None]) -> Path:
        """Writes the result folder `name` through `save(folder)` on the main process; whole, or not at all."""
        target = self.path / name

        def write() -> None:
            with atomic_folder(target) as unfinished:
                save(unfinished)

        on_main(self._accelerator, write)
        return target

    def _note_other_data(self, data: str) -> None:
        """Say what the data set was found to be before, where that is not what it is now."""
        before = self.path / "data.txt"
        if before.is_file() and (was := before.read_text(encoding="utf-8", errors="replace").strip()) != data:
            print(f"note: {self.path} has had other {was}")

    @property
    def _is_main(self) -> bool:
        return self._accelerator.is_main_process

    def _check_places(self) -> None:
        """ValueError where a folder of the run cannot be made."""
        for name in ("checkpoints", "samples", *ARTEFACTS):
            if (self.path / name).exists() and not (self.path / name).is_dir():
                raise ValueError(f"{self.path / name} is no folder; move it away")

    def _hold(self) -> None:
        if self._is_main:
            self._lock = FolderLock(self.path)
