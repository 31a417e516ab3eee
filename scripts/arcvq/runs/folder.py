"""The folder of one run: an exclusive lock, the stored settings, checkpoints and exported results."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import yaml
from accelerate import Accelerator

from arcvq.checkpoints.checkpoint import RunState, checkpoints, newest_intact, save_checkpoint
from arcvq.checkpoints.collective import on_main
from arcvq.compute.atomic_files import atomic_file, atomic_folder
from arcvq.runs.lock import LOCK, FolderLock
from arcvq.runs.options import RunConfig
from arcvq.runs.settings import ARTEFACTS, resolve_settings_conflict


class RunFolder:
    """The folder of one run. Every process has one; the main process writes.

    Args:
        config: of the run.
        accelerator: of the run.

    Attributes:
        path: of the folder.

    Raises:
        ValueError: another process holds the folder.
    """

    def __init__(self, config: RunConfig, accelerator: Accelerator):
        self.path = Path(config.output_dir) / config.name
        self._config = config
        self._accelerator = accelerator
        self._lock: FolderLock | None = None
        self._starts_over = False
        if (self.path / LOCK).is_file():  # a new folder is created later, after all checks
            self._acquire_lock()

    def check_settings(self, file: str, settings: dict[str, Any]) -> None:
        """Compare `settings` with those stored in `file`.

        Raises:
            ValueError: the folder holds a run of other settings, and `run.other_settings` is `refuse`.
        """
        self._starts_over |= resolve_settings_conflict(
            self.path / file, settings, self._config.other_settings, self._is_main
        )

    def open(self, settings: dict[str, Any], inputs: dict[str, str]) -> Path | None:
        """Lock the folder, create it or start it over as asked, and return its newest undamaged checkpoint."""
        self._accelerator.wait_for_everyone()  # all have compared their settings
        if self._is_main and self._lock is None:
            self._acquire_lock()
            self.check_settings("config.yaml", settings)  # another process may have started in it since the first check
            self.check_settings("inputs.yaml", inputs)
        if self._is_main and not self._starts_over:
            self._check_names()
        if self._is_main:
            self._lock = self._lock.start_over() if self._starts_over else self._lock
            self._lock.write_owner()
        self._accelerator.wait_for_everyone()
        return newest_intact(self._accelerator, self.path)

    def write_config(self, settings: dict[str, Any], inputs: dict[str, str], data: str) -> None:
        """Write the settings, the inputs' fingerprints and the line on the data set; the main process calls this."""
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
        """Write a checkpoint; every process calls this. OSError if that fails; the older checkpoints are unchanged."""
        on_main(self._accelerator, self._lock.check if self._lock else lambda: None)
        save_checkpoint(self._accelerator, self.path, state, self._config.keep_checkpoints)

    @property
    def last_state(self) -> str:
        """Say which checkpoint the folder holds, for an error message."""
        saved = checkpoints(self.path)
        return f"{saved[-1]} is from before and untouched" if saved else "nothing was saved before"

    def export(self, name: str, save: Callable[[Path], None]) -> Path:
        """Write the result folder `name` atomically with `save(folder)`, on the main process."""
        target = self.path / name

        def write() -> None:
            with atomic_folder(target) as unfinished:
                save(unfinished)

        on_main(self._accelerator, write)
        return target

    def _note_other_data(self, data: str) -> None:
        """Print a note if the data set is not the one that the folder's run has had."""
        before = self.path / "data.txt"
        if before.is_file() and (was := before.read_text(encoding="utf-8", errors="replace").strip()) != data:
            print(f"note: {self.path} has had other {was}")

    @property
    def _is_main(self) -> bool:
        return self._accelerator.is_main_process

    def _check_names(self) -> None:
        """Raise ValueError if a file has the name of one of the run's folders."""
        for name in ("checkpoints", "samples", *ARTEFACTS):
            if (self.path / name).exists() and not (self.path / name).is_dir():
                raise ValueError(f"{self.path / name} is no folder; move it away")

    def _acquire_lock(self) -> None:
        if self._is_main:
            self._lock = FolderLock(self.path)
