"""A checkpoint of a run that had other parts: what of it this run goes on from, and what of this run starts anew."""

import tempfile
from collections.abc import Iterator, Sequence
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
    """In what the parts of a run that goes on are not those that its checkpoint has.

    The run's model is the last of its modules in training; before it comes the discriminator, where there is one.

    Args:
        accelerator: whose prepared modules and optimisers are to be loaded.
        checkpoint: the run goes on from.
        trained: its modules in training.
        averaged: whether it keeps averages of its model's parameters.

    Attributes:
        anew: by name, which of the modules start anew, and why.
        averages_anew: whether the averages do.
    """

    def __init__(self, accelerator: Accelerator, checkpoint: Path, trained: Sequence[TrainableModule], averaged: bool):
        self._accelerator, self._checkpoint, self._trained = accelerator, checkpoint, trained
        has_averages = (checkpoint / AVERAGES).is_file()
        self.averages_anew, self._averages_left = averaged and not has_averages, has_averages and not averaged
        has_scale = (checkpoint / SCALER_NAME).is_file()
        self._scale_anew = accelerator.scaler is not None and not has_scale
        self._scale_left = accelerator.scaler is None and has_scale
        self.anew: dict[str, str] = {}
        # Sharded modules are in files of other names, which are all there or are not this run's.
        self._stored = len(list(takewhile(lambda place: (checkpoint / _weights(place)).is_file(), count())))
        self._sources: list[int | None] = []  # for each module the place of its state in the checkpoint
        for place, one in enumerate(trained[:-1]):
            why = self._misfit(one, place) if self._stored else None
            self._sources.append(None if why else place)
            self.anew |= {one.name: why} if why else {}
        self._sources.append(self._stored - 1 if self._stored else len(trained) - 1)

    def notes(self, step: int) -> list[str]:
        """A line for each change, for a run that goes on after so many steps."""
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
        """A folder that accelerate loads into this run: the checkpoint, or one with its files by their present names.

        What starts anew is in it as it is.
        """
        if self._sources == list(range(max(self._stored, len(self._trained)))) and not self._scale_anew:
            yield self._checkpoint
            return
        with tempfile.TemporaryDirectory(prefix="arcvq-") as place:
            folder = Path(place)
            own_names = {name(index) for index in range(self._stored) for name in (_weights, _optimizer)}
            for file in self._checkpoint.iterdir():
                if file.name not in own_names:
                    (folder / file.name).symlink_to(file.resolve())
            for index, (one, source) in enumerate(zip(self._trained, self._sources, strict=True)):
                if source is None:
                    tensors = {name: value.detach().contiguous() for name, value in one.module.state_dict().items()}
                    save_file(tensors, folder / _weights(index))
                    torch.save(one.optimizer.state_dict(), folder / _optimizer(index))
                elif self._stored:
                    for name in (_weights, _optimizer):
                        (folder / name(index)).symlink_to((self._checkpoint / name(source)).resolve())
            if self._scale_anew:
                torch.save(self._accelerator.scaler.state_dict(), folder / SCALER_NAME)
            yield folder

    def _misfit(self, one: TrainableModule, place: int) -> str | None:
        """Why a module beside the run's model cannot take up what the checkpoint has in its place."""
        if place >= self._stored - 1:
            return "the checkpoint has none"
        with safe_open(self._checkpoint / _weights(place), "pt") as opened:
            before = {name: tuple(opened.get_slice(name).get_shape()) for name in opened.keys()}  # noqa: SIM118
        now = {name: tuple(value.shape) for name, value in one.module.state_dict().items()}
        if before == now:
            return None
        name = min(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
        shapes = " and ".join(str(found.get(name, "none")) for found in (before, now))
        return f"the checkpoint's is another ({name} was and is {shapes})"


def _weights(place: int) -> str:
    return SAFE_WEIGHTS_NAME.replace(".", f"_{place}.") if place else SAFE_WEIGHTS_NAME


def _optimizer(place: int) -> str:
    return f"{OPTIMIZER_NAME}_{place}.bin" if place else f"{OPTIMIZER_NAME}.bin"
