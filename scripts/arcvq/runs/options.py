"""The options of all trainings: where and how often a run writes, and how it optimises."""

import re
from dataclasses import dataclass
from math import cos, inf, pi
from pathlib import Path
from typing import Literal

from jsonargparse import Namespace

from arcvq.runs.settings import ARTEFACTS

# Share of the steps in which the schedule `cooldown` falls.
_COOLDOWN = 0.2

# Bytes of a name; file systems allow 255, and a folder that starts over gets an ending.
_LONGEST_NAME = 200

# Far more than any machine has cores; of some ten thousands OpenMP dies with a segmentation fault.
_MOST_THREADS = 1024

# Refused on every system: a run folder is copied to other machines, and a config with its name is read there.
_REFUSED_BY_WINDOWS = re.compile(r'[<>:"|?*]|\.$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)

# The entries of a run's folder.
_OWN_FOLDERS = ("checkpoints", "samples", "tensorboard", *ARTEFACTS)


@dataclass(frozen=True)
class RunConfig:
    """Where a run writes, and how often.

    Args:
        name: the run's folder inside output_dir; a/b is a folder in another.
        output_dir: folder of all runs.
        seed: seed of the weights, the order of the data and all noise.
        log_every: steps between two lines of metrics.
        sample_every: steps between two sets of pictures and held-out numbers.
        checkpoint_every: steps between two checkpoints; the last step always writes one.
        keep_checkpoints: number of the newest checkpoints to keep.
        mixed_precision: precision of the networks; None: as `accelerate launch` says.
        compile: whether to compile the model with torch.compile; of a UNet, a VQGAN or a PixelCNN the blocks that
            repeat. It takes a minute or two at the start, and far longer for a tokenizer with the network conv whose
            codes times tokens exceed some 10^9.
        cuda_graph: whether to launch the whole step of a tokenizer on one GPU as a CUDA graph. Where the host has part
            in the step (a discriminator, random numbers) one line says so, and the step runs without.
        gradient_checkpointing: whether to recompute activations in the backward pass: less memory, a third more time.
        deterministic: whether to use only kernels that give the same bits on every run; an operation without one is an
            error; slower on a GPU. On CPUs a resumed run keeps its number of threads, where there are as many cores.
        threads: threads of each process, by which sums on CPUs are rounded; None: OMP_NUM_THREADS, or else the usable
            cores divided by the processes of the machine.
        max_skipped_steps: number of steps in a row with a loss or gradient that is not finite, each of them skipped,
            after which the run ends.
        other_settings: what to do with a folder that holds a run of other settings or data: `refuse`; `go_on` from its
            newest checkpoint; `start_over`, which renames the old folder.
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
    cuda_graph: bool = False
    gradient_checkpointing: bool = False
    deterministic: bool = False
    threads: int | None = None
    max_skipped_steps: int = 20
    other_settings: Literal["refuse", "go_on", "start_over"] = "refuse"

    def check(self) -> None:
        """Raise ValueError for a number, or a name, that cannot work."""
        for name in ("log_every", "sample_every", "checkpoint_every", "keep_checkpoints", "max_skipped_steps"):
            if getattr(self, name) < 1:
                raise ValueError(f"run.{name} must be at least 1, got {getattr(self, name)}")
        if self.threads is not None and not 1 <= self.threads <= _MOST_THREADS:
            raise ValueError(
                f"run.threads must be at least 1 and at most {_MOST_THREADS}, or None for all usable cores, "
                f"got {self.threads}"
            )
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
        max_steps: optimizer steps.
        batch_size: images per step, shared by all processes.
        accumulation: number of parts in which a process's share of the batch goes through the networks, for less
            memory; the step is that of the whole batch.
        lr: peak learning rate.
        scale_lr: whether to multiply lr by batch_size.
        warmup_steps: steps over which the learning rate rises linearly from 0.
        schedule: learning rate after the warm-up: `constant`; `cosine`, down to final_lr_share at max_steps;
            `cooldown`, constant, then linearly down to final_lr_share over the last fifth of the steps.
        final_lr_share: share of lr at which the schedules cosine and cooldown end.
        betas: decay rates of Adam's two moments.
        eps: added to the root of Adam's second moment. A larger one keeps Adam from following gradients that are
            rounding errors, as of a bias before a norm, at the full rate.
        weight_decay: decoupled weight decay.
        max_grad_norm: norm to which gradients are clipped; None: no clipping.
        max_grad_value: magnitude to which each value of a gradient is clipped, in place of its norm; None: no clipping.
    """

    max_steps: int = 10_000
    batch_size: int = 128
    accumulation: int = 1
    lr: float = 3e-4
    scale_lr: bool = False
    warmup_steps: int = 0
    schedule: Literal["constant", "cosine", "cooldown"] = "constant"
    final_lr_share: float = 0.0
    betas: tuple[float, float] = (0.9, 0.999)
    eps: float = 1e-8
    weight_decay: float = 0.0
    max_grad_norm: float | None = None
    max_grad_value: float | None = None

    def learning_rate(self, step: int) -> float:
        """Compute the learning rate of a step, counted from 0."""
        peak = self.lr * self.batch_size if self.scale_lr else self.lr
        if step < self.warmup_steps:
            return peak * (step + 1) / self.warmup_steps
        if self.schedule == "constant":
            return peak
        progress = (step - self.warmup_steps) / max(1, self.max_steps - self.warmup_steps)
        above = min(1.0, (1 - progress) / _COOLDOWN) if self.schedule == "cooldown" else (1 + cos(pi * progress)) / 2
        return peak * (self.final_lr_share + (1 - self.final_lr_share) * above)

    def check(self) -> None:
        """Raise ValueError for a number that cannot work."""
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
        check_share("optim.final_lr_share", self.final_lr_share)
        if self.final_lr_share and self.schedule == "constant":
            raise ValueError(
                f"optim.final_lr_share {self.final_lr_share} is of the schedules cosine and cooldown; take one as "
                "optim.schedule, or leave the share at 0"
            )
        for name in ("max_grad_norm", "max_grad_value"):
            if getattr(self, name) is not None and not getattr(self, name) > 0:
                raise ValueError(f"optim.{name} must be above 0, got {getattr(self, name)}")
        if None not in (self.max_grad_norm, self.max_grad_value):
            raise ValueError("optim.max_grad_norm and optim.max_grad_value are two ways of clipping; set one of them")

    def check_batch(self, processes: int) -> None:
        """Raise ValueError for a batch that does not divide into equal parts."""
        if self.batch_size % (processes * self.accumulation):
            raise ValueError(
                f"optim.batch_size {self.batch_size} does not go into {processes} processes with optim.accumulation "
                f"{self.accumulation}; make it a multiple of {processes * self.accumulation}"
            )


def check_run(config: Namespace) -> None:
    """Raise ValueError for options of a training's run or optimizer that cannot work."""
    config.run.check()
    config.optim.check()


def check_name(name: str) -> None:
    """Raise ValueError for a name that is not, on every system, the name of a folder inside run.output_dir."""
    reason = None
    if not name.isprintable() or name != name.strip():
        reason = "it has a space at an end, or characters that cannot be seen"
    elif "\\" in name:
        reason = "it has a backslash, which elsewhere divides folders"
    elif Path(name).is_absolute() or re.match("[A-Za-z]:/", name):
        reason = "it is a path from the root: name that folder with --run.output_dir"
    elif name.startswith("~"):
        reason = "~ is no folder here: name your home with --run.output_dir"
    elif any(part in ("", ".", "..") for part in name.split("/")):
        reason = "it leads to no folder of its own there"
    elif any(len(part.encode()) > _LONGEST_NAME or part != part.strip() for part in name.split("/")):
        reason = f"a folder's name has at most {_LONGEST_NAME} bytes, and no space at an end"
    elif any(_REFUSED_BY_WINDOWS.search(part) for part in name.split("/")):
        reason = 'Windows has no name with one of <>:"|?*, with a dot at its end, or like con, nul or com1'
    if reason:
        raise ValueError(f"run.name {name!r:.100} is no folder's name inside run.output_dir: {reason}")


def check_share(option: str, *values: float) -> None:
    """Raise ValueError for a value outside [0, 1)."""
    if outside := [value for value in values if not 0 <= value < 1]:
        raise ValueError(f"{option} must be at least 0 and below 1, got {outside[0]}")
