"""The checkpoints of a run folder: `checkpoints/step-<n>`, complete ones only.

Each holds what Accelerate saves of model, optimiser and random states, and `ema.safetensors` where there is an average.
"""

import pickle
import shutil
from pathlib import Path

from accelerate import Accelerator
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor


def checkpoints(folder: Path) -> list[Path]:
    """The complete checkpoints of a run folder, oldest first."""
    return sorted((folder / "checkpoints").glob("step-*"), key=step_of)


def step_of(checkpoint: Path) -> int:
    """The number of completed steps that a checkpoint holds."""
    return int(checkpoint.name.removeprefix("step-"))


def save_checkpoint(accelerator: Accelerator, folder: Path, step: int, averages: dict[str, Tensor], keep: int) -> None:
    """Writes `step-<step>`, whole or not at all, and then deletes all but the newest `keep`; on every process."""
    final = folder / "checkpoints" / f"step-{step}"
    unfinished = final.with_name(f".{final.name}.tmp")
    if accelerator.is_main_process:
        shutil.rmtree(unfinished, ignore_errors=True)
    accelerator.wait_for_everyone()
    accelerator.save_state(str(unfinished))
    if accelerator.is_main_process and averages:
        save_file(averages, unfinished / "ema.safetensors")
    accelerator.wait_for_everyone()
    if accelerator.is_main_process:
        # Renamed when complete, so that a killed process leaves no half-written step-<n>.
        shutil.rmtree(final, ignore_errors=True)
        unfinished.rename(final)
        for old in checkpoints(folder)[:-keep]:
            shutil.rmtree(old)
    accelerator.wait_for_everyone()


def load_checkpoint(accelerator: Accelerator, checkpoint: Path, averaged: bool) -> dict[str, Tensor]:
    """Loads the state of what `accelerator` has prepared, and returns the averages if the run keeps them.

    Raises:
        ValueError: the checkpoint is damaged.
    """
    try:
        accelerator.load_state(str(checkpoint))
        return load_file(checkpoint / "ema.safetensors", device=str(accelerator.device)) if averaged else {}
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError, SafetensorError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{checkpoint} is damaged ({reason}); delete it to go on from the one before") from error
