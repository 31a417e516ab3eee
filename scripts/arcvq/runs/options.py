"""The options that all trainings share: where a run writes and how it optimises."""

import re
from dataclasses import dataclass
from math import cos, inf, pi
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from arcvq.runs.settings import ARTEFACTS

# Share of the steps over which the schedule `cooldown` falls.
_COOLDOWN = 0.2

# Of file systems it is 255 bytes; a folder that is begun anew gets an ending.
_LONGEST_NAME = 200

# What a run keeps in its folder.
_OWN_FOLDERS = ("checkpoints", "samples", "tensorboard", *ARTEFACTS)


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and how often.

    Args:
        name: the run's folder inside output_dir, which it cannot leave; a/b is one in another.
        output_dir: folder of all runs.
        seed: of the weights, the order of the data and all noise.
        log_every: steps between two lines of metrics.
        sample_every: steps between two sets of pictures and held-out numbers.
        checkpoint_every: steps between two checkpoints; the last step always makes one.
        keep_checkpoints: how many of the newest checkpoints are kept.
        mixed_precision: of the networks; None is what `accelerate launch` was told.
        compile: whether torch.compile makes the model faster. It takes a minute or two at the start, and far longer
            with a tokenizer whose codes and tokens make more than some 10^9 pairs.
        gradient_checkpointing: whether the networks compute their activations again in the backward pass instead of
            keeping them, for less memory and about a third more time.
        deterministic: whether the device takes kernels alone that give the same bits on every run, and an operation
            that has none is an error; slower on a GPU.
        max_skipped_steps: so many steps in a row whose loss or gradient is not finite end the run; each is skipped.
        other_settings: what becomes of a folder that holds a run of other settings, or on other data: `refuse`;
            `go_on` from its newest checkpoint with the present ones; `start_over`, the old folder is renamed.
    """

    name: str
    output_dir: str = "runs"
    seed: int = 0
    log_every: int = 20
    sample_every: int = 200
    checkpoint_every: int = 100
    keep_checkpoints: int = 2
    mixed_precision: Literal["no", "bf16", "fp16"] | None = None
    compile: bool = False
    gradient_checkpointing: bool = False
    deterministic: bool = False
    max_skipped_steps: int = 20
    other_settings: Literal["refuse", "go_on", "start_over"] = "refuse"

    def check(self) -> None:
        """Raises ValueError for a number, or a name, that cannot work."""
        for name in ("log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        if not 0 <= self.seed < 2**63:
            raise ValueError(f"run.seed must not be negative, and below 2^63, got {self.seed}")
        check_name(self.name)
        if not self.output_dir.strip():
            raise ValueError(
                "run.output_dir is empty, as an unset variable is; name a folder, or . for the present one"
            )
        folder = Path(self.output_dir, self.name)
        for place, parent in zip((folder, *folder.parents), folder.parents, strict=False):
            if place.name in _OWN_FOLDERS and (parent / "config.yaml").is_file():  # which that run deletes or replaces
                raise ValueError(f"run.name {self.name!r} leads into {place}, the run {parent}'s own; name another")


@dataclass(frozen=True)
class OptimConfig:
    """AdamW, the batch, and how long to train.

    Args:
        max_steps: optimiser steps.
        batch_size: images per step over all processes; each takes its share.
        accumulation: parts of a process's share that go through the networks one after the other, for less memory; the
            step is that of the whole batch.
        lr: peak learning rate.
        scale_lr: whether lr is multiplied by batch_size.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        schedule: of the learning rate after that: `constant`; `cosine`, half a wave down to 0 at max_steps; `cooldown`,
            constant, then linearly down to 0 over the last fifth of the steps.
        betas: Adam's averages.
        eps: added to the root of Adam's second average. Where a gradient is rounding alone, as that of a bias that a
            norm takes out, a larger one keeps Adam from following it at the full rate.
        weight_decay: decoupled weight decay.
        max_grad_norm: the gradient's norm is clipped to this; None does not clip.
    """

    max_steps: int = 10_000
    batch_size: int = 128
    accumulation: int = 1
    lr: float = 3e-4
    scale_lr: bool = False
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "cooldown"] = "constant"
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None

    def learning_rate(self, step: int) -> float:
        """Of the step with this number, counted from 0."""
        peak = self.lr * self.batch_size if self.scale_lr else self.lr
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return peak
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        if self.schedule == "cooldown":
            return peak * min(1.0, (1 - progress) / _COOLDOWN)
        return peak * (1 + cos(pi * progress)) / 2

    def check(self) -> None:
        """Raises ValueError for a number that cannot work."""
        for name in ("max_steps", "batch_size", "accumulation", "lr", "eps"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} must be above 0, got {getattr(self, name)}")
        for name in ("warmup_steps", "weight_decay"):
            if not getattr(self, name) >= 0:
                raise ValueError(f"optim.{name} must not be negative, got {getattr(self, name)}")
        for name in ("lr", "eps", "weight_decay"):
            if getattr(self, name) == inf:
                raise ValueError(f"optim.{name} must be finite, got {getattr(self, name)}")
        check_share("optim.betas", *self.betas)
        if self.max_grad_norm is not None and not self.max_grad_norm > 0:
            raise ValueError(f"optim.max_grad_norm must be above 0, got {self.max_grad_norm}")

    def check_batch(self, processes: int) -> None:
        """Raises ValueError for a batch that does not go into equal parts."""
        if self.batch_size % (processes * self.accumulation):
            raise ValueError(
                f"optim.batch_size {self.batch_size} does not go into {processes} processes with optim.accumulation "
                f"{self.accumulation}; make it a multiple of {processes * self.accumulation}"
            )


def check_run(config: Namespace) -> None:
    """Raises ValueError for options of a training's run or optimiser that cannot work."""
    config.run.check()
    config.optim.check()


def check_name(name: str) -> None:
    """Raises ValueError for a run's name that is none of a folder inside run.output_dir, on every machine."""
    reason = None
    if not name.isprintable() or name != name.strip():
        reason = "it has a space at an end, or characters that cannot be seen"
    elif "\\" in name:
        reason = "it has a backslash, which elsewhere divides folders"
    elif Path(name).is_absolute() or re.match("[A-Za-z]:", name):
        reason = "it is a path from the root: name that folder with --run.output_dir"
    elif name.startswith("~"):
        reason = "~ is no folder here: name your home with --run.output_dir"
    elif any(part in ("", ".", "..") for part in name.split("/")):
        reason = "it leads to no folder of its own there"
    elif any(len(part.encode()) > _LONGEST_NAME or part != part.strip() for part in name.split("/")):
        reason = f"a folder's name has at most {_LONGEST_NAME} bytes, and no space at an end"
    if reason:
        raise ValueError(f"run.name {name!r:.100} is no folder's name inside run.output_dir: {reason}")


def check_share(option: str, *values: float) -> None:
    """Raises ValueError for a value outside [0, 1)."""
    if outside := [value for value in values if not 0 <= value < 1]:
        raise ValueError(f"{option} must be at least 0 and below 1, got {outside[0]}")
