"""The dry run of a training: everything is built and a step is made, with nothing allocated, read, sent or written.

accelerate launch scripts/train_tokenizer.py --config configs/imagenet/arcvq_f8.yaml --dry_run
python scripts/train_tokenizer.py --config configs/imagenet/arcvq_f8.yaml --dry_run 8

It raises what the training would raise, and otherwise says what the training takes.
"""

import os
from collections.abc import Callable
from dataclasses import dataclass

from jsonargparse import Namespace
from torch import nn

from arcvq.cli.parser import ScriptParser
from arcvq.planning.dry_training import DryRun, DryTraining
from arcvq.planning.fake_memory import StepMemory, Unallocated
from tokenizer.data.facts import DatasetInfo


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
        memory = self.memory
        others = {"holes of the allocator": memory.holes, "program": memory.program}
        most = dict(sorted((memory.most | others).items(), key=lambda item: -item[1])) | {"all": memory.total}
        at_peak = memory.tensors | others | {"all": memory.total}
        lines = ["parameters", *(f"  {name:<32}{count:>14,}" for name, count in self.parameters.items())]
        lines.append(f"{'memory per process':<34}{'at the peak':>14}{'most':>14}")
        for name, size in most.items():
            lines.append(f"  {name:<32}{in_units(at_peak.get(name, 0)):>14}{in_units(size):>14}")
        return "\n".join([*lines, *(f"{name:<34}{value}" for name, value in self.others.items())])


def dry_run(
    parser: ScriptParser, config: Namespace, make: Callable[[DryRun, Namespace], DryTraining], images: DatasetInfo
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
    print(images.line)
    report = reckon(parser, config, make, images, processes)
    print(report)
    return report


def reckon(
    parser: ScriptParser,
    config: Namespace,
    make: Callable[[DryRun, Namespace], DryTraining],
    images: DatasetInfo,
    processes: int,
) -> DryReport:
    """What the training of a config takes on so many processes. Raises as `dry_run`."""
    with Unallocated() as memory:
        optim = config.optim
        run = DryRun(config.run, optim, parser.settings(config), processes, memory)
        training = make(run, config)
        memory.assign("batch", training.batch)
        for part, modules in (("average", training.averaged), ("frozen networks", training.frozen.values())):
            for module in modules:
                memory.assign(part, [*module.parameters(), *module.buffers()])
        if training.bytes_held:
            memory.add("images in memory", training.bytes_held)
        for _ in range(2):  # the optimiser's state is there in the second one
            training.step()
        return DryReport(_parameters(training), memory.peak(), _others(run, training, images))


def _parameters(training: DryTraining) -> dict[str, int]:
    trained = {name: _count(module) for name, module in training.parts.items()}
    return trained | {f"{name}, frozen": _count(module) for name, module in training.frozen.items()}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _others(run: DryRun, training: DryTraining, images: DatasetInfo) -> dict[str, str]:
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
