"""A run's folder: who works in it, what the run in it is, what is saved in it."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator
from checkpoints import checkpoints, newest_intact, on_main, save_checkpoint
from folder_lock import LOCK, FolderLock
from run_options import RunConfig
from run_record import settle_other_run
from torch import Tensor


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
        if (self.path / LOCK).is_file():  # a new folder is made when all is known to fit
            self._hold()

    def settle(self, file: str, settings: dict[str, Any]) -> None:
        """Compares what is to be run with what `file` says of the folder; the rest is as `run.other_settings` has it.

        Raises:
            ValueError: the folder holds work of other settings, and the option is `refuse`.
        """
        is_main = self._accelerator.is_main_process
        anew = settle_other_run(self.path / file, settings, self._config.other_settings, is_main)
        self._accelerator.wait_for_everyone()  # all have looked
        if anew and is_main:
            self._hold()
            self._lock = self._lock.start_over()
        self._accelerator.wait_for_everyone()

    def open(self) -> Path | None:
        """Makes the folder where there is none; the newest checkpoint that is intact."""
        self._hold()
        if self._lock is not None:
            self._lock.sign()
        self._accelerator.wait_for_everyone()
        return newest_intact(self._accelerator, self.path)

    def describe(self, settings: dict[str, Any], inputs: dict[str, str]) -> None:
        """Writes down what the run is, on the main process."""
        (self.path / "samples").mkdir(parents=True, exist_ok=True)
        (self.path / "config.yaml").write_text(yaml.safe_dump(settings, sort_keys=False))
        (self.path / "inputs.yaml").write_text(yaml.safe_dump(inputs))

    def save(self, step: int, averages: dict[str, Tensor], counts: dict[str, int]) -> None:
        """Writes a checkpoint, on every process. Raises OSError where it cannot; the ones before it are still there."""
        on_main(self._accelerator, self._lock.check if self._lock else lambda: None)
        save_checkpoint(self._accelerator, self.path, step, averages, counts, self._config.keep_checkpoints)

    @property
    def last_state(self) -> str:
        """Which checkpoint there is, in words."""
        saved = checkpoints(self.path)
        return f"{saved[-1]} is from before and untouched" if saved else "nothing was saved before"

    def export(self, name: str, save: Callable[[Path], None]) -> Path:
        """Writes the result folder `name` through `save(folder)` on the main process; whole, or not at all."""
        target = self.path / name

        def write() -> None:
            unfinished = self.path / f".{name}.tmp"
            shutil.rmtree(unfinished, ignore_errors=True)
            save(unfinished)
            shutil.rmtree(target, ignore_errors=True)
            unfinished.rename(target)

        on_main(self._accelerator, write)
        return target

    def _hold(self) -> None:
        """Makes the main process the one that works here, if it is not already."""
        if self._accelerator.is_main_process and self._lock is None:
            self._lock = FolderLock(self.path)
