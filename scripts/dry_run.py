"""The dry run of a training: everything is built and a step is made, with nothing allocated, read, sent or written.

accelerate launch scripts/train_tokenizer.py --config configs/imagenet/arcvq_f8.yaml --dry_run
python scripts/train_tokenizer.py --config configs/imagenet/arcvq_f8.yaml --dry_run 8

It raises what the training would raise, and otherwise says what the training takes.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate.utils import DistributedType, convert_outputs_to_fp32
from command_line import ScriptParser
from common import Run
from diffusers.training_utils import EMAModel
from fast_training import Trained
from image_facts import ImageFacts
from jsonargparse import Namespace
from memory import StepMemory, Unallocated
from run_options import OptimConfig, RunConfig
from torch import Tensor, nn

from tokenizer.batches import check_shares

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def add_dry_run(parser: ScriptParser) -> None:
    """Adds the option."""
    parser.add_argument(
        "--dry_run",
        type=int | None,
        nargs="?",
        const=0,
        default=None,
        help="only say what the training takes; a number is that of the processes to reckon with, else the launcher's",
    )


@dataclass(frozen=True)
class DryTraining:
    """A training as a script sets it up.

    Attributes:
        step: makes one step.
        parts: of the networks that are trained, by name.
        batch: its tensors.
        frozen: networks that are not trained, by name.
        averaged: copies of a trained network that hold its average.
        tokens_per_image: latent tokens.
        source: what is read from disk.
        bytes_per_epoch: of that.
        bytes_held: of a data set in memory, which is then read once.
    """

    step: Callable[[], None]
    parts: dict[str, nn.Module]
    batch: Sequence[Tensor]
    frozen: dict[str, nn.Module]
    averaged: Sequence[nn.Module]
    tokens_per_image: int
    source: str
    bytes_per_epoch: int
    bytes_held: int = 0


class DryAccelerator:
    """In the place of accelerate's, in one process that reckons with several, on a CPU."""

    device = torch.device("cpu")
    distributed_type = DistributedType.NO
    process_index = 0
    is_main_process = True

    def __init__(self, mixed_precision: str | None, processes: int):
        self.mixed_precision = mixed_precision or os.environ.get("ACCELERATE_MIXED_PRECISION", "no")
        self.num_processes = processes
        self.scaler = object() if self.mixed_precision == "fp16" else None  # all that is asked is whether there is one

    def prepare(self, module: nn.Module, optimizer: torch.optim.Optimizer) -> tuple[nn.Module, torch.optim.Optimizer]:
        """As accelerate does on one process: the module computes under autocast, and gives float32."""
        if self.mixed_precision != "no":
            autocast = torch.autocast(self.device.type, _DTYPES[self.mixed_precision])
            module.forward = convert_outputs_to_fp32(autocast(module.forward))
        optimizer.step_was_skipped = False
        return module, optimizer

    def backward(self, loss: Tensor) -> None:
        loss.backward()

    def no_sync(self, module: nn.Module) -> AbstractContextManager:
        return nullcontext()

    def clip_grad_norm_(self, parameters: Iterable[Tensor], max_norm: float) -> Tensor:
        return nn.utils.clip_grad_norm_(parameters, max_norm)

    def reduce(self, tensor: Tensor, reduction: str) -> Tensor:
        return tensor


class DryRun(Run):
    """In the place of a `Run`: it has the same modules in training, and neither processes nor a folder.

    Args:
        config: as of a run.
        optim: as of a run.
        settings: as of a run.
        processes: how many there would be.
        memory: what counts the bytes.
    """

    accelerator: DryAccelerator

    def __init__(
        self, config: RunConfig, optim: OptimConfig, settings: dict[str, Any], processes: int, memory: Unallocated
    ):
        self._memory = memory
        super().__init__(config, optim, settings, DryAccelerator(config.mixed_precision, processes))

    @property
    def images_here(self) -> int:
        """Images of a step for one process."""
        return self.optim.batch_size // self.accelerator.num_processes

    def prepare(
        self,
        model: nn.Module,
        dataset: ImageFacts,
        inputs: dict[str, str],
        num_workers: int = 0,
        ema_decay: float | None = None,
    ) -> nn.Module:
        """As in a training, but for the run folder."""
        check_shares(len(dataset), self.optim.batch_size, 0, self.accelerator.num_processes)
        self.model = model
        self.main = self.train(model, "model")
        if ema_decay is not None:
            self.ema = EMAModel(model.parameters(), decay=ema_decay)
            self._memory.assign("average", self.ema.shadow_params)
        return self.main.wrapped

    def train(self, module: nn.Module, name: str) -> Trained:
        """A module in training, counted."""
        trained = super().train(module, name)
        self._memory.trained(trained.module, trained.optimizer)
        if self.accelerator.num_processes > 1:  # DistributedDataParallel's, beside the gradients
            sizes = [parameter.nbytes for parameter in trained.module.parameters() if parameter.requires_grad]
            self._memory.add("gradients in exchange", sum(sizes))
        return trained


@dataclass(frozen=True)
class DryReport:
    """What a training takes.

    Attributes:
        parameters: of what is trained, by part, and of what is frozen.
        memory: of a process.
        others: everything else, by name.
    """

    parameters: dict[str, int]
    memory: StepMemory
    others: dict[str, str]

    def __str__(self) -> str:
        memory = {**self.memory.tensors, "holes of the allocator": self.memory.holes, "program": self.memory.program}
        memory = dict(sorted(memory.items(), key=lambda item: -item[1])) | {"all": self.memory.total}
        tables = {
            "parameters": {name: f"{count:,}" for name, count in self.parameters.items()},
            "memory per process": {name: in_units(size) for name, size in memory.items() if size},
        }
        lines = []
        for title, rows in tables.items():
            lines += [title, *(f"  {name:<32}{value:>14}" for name, value in rows.items())]
        return "\n".join([*lines, *(f"{name:<34}{value}" for name, value in self.others.items())])


def dry_run(
    parser: ScriptParser, config: Namespace, make: Callable[[DryRun, Namespace], DryTraining], images: ImageFacts
) -> DryReport | None:
    """Prints, and gives, what the training of a config takes; None on all processes but the first.

    `make` sets the training up.

    Raises:
        ValueError: what the training would raise before its first step.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    processes = config.dry_run or int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 0:
        raise ValueError(f"dry_run takes the number of processes, got {processes}")
    with Unallocated() as memory:
        optim = OptimConfig(**config.optim.as_dict())
        run = DryRun(RunConfig(**config.run.as_dict()), optim, parser.settings(config), processes, memory)
        training = make(run, config)
        memory.assign("batch", training.batch)
        for part, modules in (("average", training.averaged), ("frozen networks", training.frozen.values())):
            for module in modules:
                memory.assign(part, [*module.parameters(), *module.buffers()])
        if training.bytes_held:
            memory.add("images in memory", training.bytes_held)
        for _ in range(2):  # the optimiser's state is there in the second one
            training.step()
        report = DryReport(_parameters(training), memory.peak(), _others(run, training, images))
    print(report)
    return report


def _parameters(training: DryTraining) -> dict[str, int]:
    trained = {name: _count(module) for name, module in training.parts.items()}
    return trained | {f"{name}, frozen": _count(module) for name, module in training.frozen.items()}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _others(run: DryRun, training: DryTraining, images: ImageFacts) -> dict[str, str]:
    optim, processes = run.optim, run.accelerator.num_processes
    per_epoch = len(images) // optim.batch_size
    about = "" if images.measured else ", going by what is published"
    read = f"{in_units(training.bytes_per_epoch)} of {training.source}{about}"
    parts = f", in {optim.accumulation} parts" if optim.accumulation > 1 else ""
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    return {
        "processes": f"{processes}, each {run.images_here} of {optim.batch_size} images a step{parts}",
        **({"sharding": "not reckoned with: as if each process held all weights"} if sharded else {}),
        "precision": {"no": "float32"}.get(run.accelerator.mixed_precision, run.accelerator.mixed_precision),
        "steps": f"{optim.max_steps:,}, {optim.max_steps / per_epoch:.4g} epochs of {per_epoch:,}",
        "images": f"{len(images):,} an epoch{about}, {images.num_classes:,} classes",
        "tokens": f"{training.tokens_per_image:,} an image, {training.tokens_per_image * optim.batch_size:,} a step, "
        f"{training.tokens_per_image * per_epoch * optim.batch_size:,} an epoch",
        "read from disk": f"once {read}, then from memory" if training.bytes_held else f"in an epoch {read}",
        "learning rate": f"{optim.learning_rate(optim.warmup_steps):.4g}, {optim.schedule}"
        + (f" after {optim.warmup_steps:,} steps of warm-up" if optim.warmup_steps else ""),
    }


def in_units(size: float) -> str:
    """Bytes for a reader: 1.50 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
