"""Resume from a checkpoint whose modules differ from the run's: which states are loaded, and which start anew."""

import shutil
import sys
import tempfile
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from itertools import count, takewhile
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import OPTIMIZER_NAME, SAFE_WEIGHTS_NAME, SCALER_NAME
from safetensors import safe_open
from safetensors.torch import save_file

from arcvq.runs.trained_module import TrainableModule

AVERAGES = "ema.safetensors"


class ChangedParts:
    """The differences between a run's modules and those of its checkpoint.

    The run's model is the last of its modules in training; a discriminator comes before it.

    Args:
        accelerator: has prepared the modules and optimizers that will be loaded.
        checkpoint: folder of the checkpoint.
        trained: the run's modules in training.
        averaged: whether the run keeps averages of its model's parameters.

    Attributes:
        anew: modules that start from scratch, by name, with the reason.
        averages_anew: whether the averages start from scratch.
    """

    def __init__(self, accelerator: Accelerator, checkpoint: Path, trained: Sequence[TrainableModule], averaged: bool):
        self._accelerator, self._checkpoint, self._trained = accelerator, checkpoint, trained
        has_averages = (checkpoint / AVERAGES).is_file()
        self.averages_anew, self._averages_left = averaged and not has_averages, has_averages and not averaged
        has_scale = (checkpoint / SCALER_NAME).is_file()
        self._scale_anew = accelerator.scaler is not None and not has_scale
        self._scale_left = accelerator.scaler is None and has_scale
        self.anew: dict[str, str] = {}
        # Sharded modules have files of other names; these fit completely, or accelerate refuses them.
        self._stored = _number_of_modules({file.name for file in checkpoint.iterdir()})
        self._sources: list[int | None] = []  # for each module the index of its state in the checkpoint
        for index, module in enumerate(trained[:-1]):
            why = self._misfit(module, index) if self._stored else None
            self._sources.append(None if why else index)
            self.anew |= {module.name: why} if why else {}
        self._sources.append(self._stored - 1 if self._stored else len(trained) - 1)

    def notes(self, step: int) -> list[str]:
        """Describe each change in a line, for a run that resumes after `step` steps."""
        begins, ends = f"starts anew after step {step}", f"ends with step {step}"
        average, scale = "the average of the weights (EMA)", "the loss scale of fp16"
        lines = [f"the {name} {begins}, and its steps count from there: {why}" for name, why in self.anew.items()]
        others = {
            f"the discriminator {ends}: the run goes on without one": self._stored > len(self._trained),
            f"{average} {begins}, from the present weights: the checkpoint has none": self.averages_anew,
            f"{average} {ends}: the run goes on with the weights alone": self._averages_left,
            f"{scale} {begins}: the checkpoint has none": self._scale_anew,
            f"{scale} {ends}: the run goes on without one": self._scale_left,
        }
        return lines + [line for line, is_so in others.items() if is_so]

    @contextmanager
    def laid_out(self) -> Iterator[Path]:
        """Provide a folder that accelerate can load: the checkpoint, or a temporary one with its files renamed to fit.

        Modules that start from scratch are stored in it with their current state.
        """
        if self._sources == list(range(max(self._stored, len(self._trained)))) and not self._scale_anew:
            yield self._checkpoint
            return
        with tempfile.TemporaryDirectory(prefix="arcvq-") as temporary:
            folder = Path(temporary)
            own_names = {name(index) for index in range(self._stored) for name in (_weights, _optimizer)}
            for file in self._checkpoint.iterdir():
                if file.name not in own_names:
                    _lend(file, folder / file.name)
            for index, (trained, source) in enumerate(zip(self._trained, self._sources, strict=True)):
                if source is None:
                    tensors = {name: value.detach().contiguous() for name, value in trained.module.state_dict().items()}
                    save_file(tensors, folder / _weights(index))
                    torch.save(trained.optimizer.state_dict(), folder / _optimizer(index))
                elif self._stored:
                    for name in (_weights, _optimizer):
                        _lend(self._checkpoint / name(source), folder / name(index))
            if self._scale_anew:
                torch.save(self._accelerator.scaler.state_dict(), folder / SCALER_NAME)
            yield folder

    def _misfit(self, trained: TrainableModule, index: int) -> str | None:
        """Say why a module cannot load the state that the checkpoint has at its index; None if it can."""
        if index >= self._stored - 1:
            return "the checkpoint has none"
        with safe_open(self._checkpoint / _weights(index), "pt") as opened:
            before = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        now = {name: tuple(value.shape) for name, value in trained.module.state_dict().items()}
        if before == now:
            return None
        name = min(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        shapes = " and ".join(str(sizes.get(name, "none")) for sizes in (before, now))
        return f"the checkpoint's is another ({name} was and is {shapes})"


def model_file(files: Collection[str]) -> str:
    """Return the file of the run's model, the last of its modules, among the files of a checkpoint.

    Raises:
        ValueError: there is none, as in a checkpoint of a sharded model.
    """
    if number := _number_of_modules(files):
        return _weights(number - 1)
    raise ValueError(f"it has no {_weights(0)}")


def _number_of_modules(files: Collection[str]) -> int:
    return len(list(takewhile(lambda index: _weights(index) in files, count())))


def _lend(file: Path, place: Path) -> None:
    """Let a file be found at another place too."""
    if sys.platform == "win32":  # which lets few users make links
        shutil.copyfile(file, place)
    else:
        place.symlink_to(file.resolve())


def _weights(index: int) -> str:
    return SAFE_WEIGHTS_NAME.replace(".", f"_{index}.") if index else SAFE_WEIGHTS_NAME


def _optimizer(index: int) -> str:
    return f"{OPTIMIZER_NAME}_{index}.bin" if index else f"{OPTIMIZER_NAME}.bin"
