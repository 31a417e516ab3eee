"""The dry run of a training: set everything up and make two steps, without memory, data, processes or a run folder.

accelerate launch scripts/train_tokenizer.py --config configs/imagenet/arcvq_f8.yaml --dry_run
python scripts/train_tokenizer.py --config configs/imagenet/arcvq_f8.yaml --dry_run 8

It raises the errors of the training, and otherwise prints the parameters, memory, steps and tokens of the training.
"""

import os
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from jsonargparse import Namespace
from torch import nn

from arcvq.planning.fake_memory import FakeAllocation, StepMemory
from arcvq.planning.loading import loading_lines
from arcvq.planning.planned_data import PlannedEncodedData, PlannedImages
from arcvq.planning.planned_training import PlannedTraining
from arcvq.planning.step_work import H100, StepWork
from arcvq.training.parts import TrainingParts


@dataclass(frozen=True)
class DryReport:
    """The needs of a training.

    Attributes:
        parameters: number of parameters, by network.
        memory: bytes of one process.
        others: everything else as text, by name.
        gpu_seconds: estimated time of a step of one process on an H100.
    """

    parameters: dict[str, int]
    memory: StepMemory
    others: dict[str, str]
    gpu_seconds: float

    def __str__(self) -> str:
        memory = self.memory
        others = {"holes of the allocator": memory.fragmentation, "program": memory.program}
        most = dict(sorted((memory.most | others).items(), key=lambda item: -item[1])) | {"all": memory.total}
        at_peak = memory.tensors | others | {"all": memory.total}
        lines = ["parameters", *(f"  {name:<32}{count:>14,}" for name, count in self.parameters.items())]
        lines.append(f"{'memory per process':<34}{'at the peak':>14}{'largest ever':>14}")
        for name, size in most.items():
            lines.append(f"  {name:<32}{format_bytes(at_peak.get(name, 0)):>14}{format_bytes(size):>14}")
        return "\n".join([*lines, *(f"{name:<34}{value}" for name, value in self.others.items())])


def dry_run(training: ModuleType, config: Namespace, settings: dict[str, Any], processes: int) -> DryReport | None:
    """Print and return the needs of a training; return None on all processes but the first.

    Args:
        training: its module.
        config: its options.
        settings: the same as plain values.
        processes: number of processes to plan for; 0: that of the launcher.

    Raises:
        ValueError: the training would raise it before its first step.
    """
    if os.environ.get("RANK", "0") != "0":
        return None
    processes = processes or int(os.environ.get("WORLD_SIZE", "1"))
    if processes < 0:
        raise ValueError(f"dry_run takes the number of processes, got {processes}")
    training.check(config)
    data = plan_data(config)
    print(data.info.line)
    report = estimate(training, config, settings, data, processes)
    if data.decodes_in_steps:
        images = config.optim.batch_size // processes
        report.others.update(loading_lines(data.info, images, report.gpu_seconds))
    print(report)
    return report


def plan_data(config: Namespace) -> PlannedImages | PlannedEncodedData:
    """Find the sizes of the data that a training takes: images, or a tokenizer's latents and codes.

    Raises:
        ValueError: no such data set or tokenizer is known, or the two do not fit.
    """
    if "latents" in config:
        return PlannedEncodedData(config.tokenizer, config.data, config.latents)
    return PlannedImages(config.data)


def estimate(
    training: ModuleType,
    config: Namespace,
    settings: dict[str, Any],
    data: PlannedImages | PlannedEncodedData,
    processes: int,
) -> DryReport:
    """Estimate the needs of a training on so many processes. Raises as `dry_run`."""
    with FakeAllocation() as memory:
        planned = PlannedTraining(training, config, settings, data, processes)
        run, parts = planned.run, planned.training.parts()
        for module in run.modules:
            memory.assign_training(module.module, module.optimizer)
            if processes > 1:  # the buckets of DistributedDataParallel, in addition to the gradients
                sizes = [parameter.nbytes for parameter in module.module.parameters() if parameter.requires_grad]
                memory.add("gradients in exchange", sum(sizes))
        memory.assign("batch", [tensor for batch in planned.batches for tensor in batch.values()])
        if run.average is not None:
            memory.assign("average", run.average.tensors)
        for part, modules in (("average", parts.averages), ("frozen networks", parts.frozen.values())):
            for module in modules:
                memory.assign(part, [*module.parameters(), *module.buffers()])
        if data.bytes_held:
            memory.add("images in memory", data.bytes_held)
        memory.forget_peak()
        planned.step()
        with StepWork() as work:
            planned.step()  # the optimizer's state exists from the end of the first step on
        seconds = work.seconds_on(H100, run.accelerator.mixed_precision)
        return DryReport(_parameters(parts), memory.peak(), _others(planned), seconds)


def _parameters(parts: TrainingParts) -> dict[str, int]:
    trained = {name: _count(module) for name, module in parts.trained.items()}
    return trained | {f"{name}, frozen": _count(module) for name, module in parts.frozen.items()}


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _others(planned: PlannedTraining) -> dict[str, str]:
    run, data = planned.run, planned.data
    images, optim, processes = data.info, run.optim, run.accelerator.num_processes
    per_epoch = len(images) // optim.batch_size
    epochs = _epochs(optim.max_steps / per_epoch)
    about = "" if images.measured else ", as published"
    read = f"{format_bytes(data.bytes_per_epoch)} of {data.source}{about}"
    parts = f", in {optim.accumulation} parts" if optim.accumulation > 1 else ""
    sharded = os.environ.get("ACCELERATE_USE_FSDP") == "true"
    tokens = planned.tokens_per_image
    return {
        "processes": f"{processes}, each {run.images_here} of {optim.batch_size} images a step{parts}",
        **({"sharding": "not reckoned with: as if each process held all weights"} if sharded else {}),
        "precision": {"no": "float32"}.get(run.accelerator.mixed_precision, run.accelerator.mixed_precision),
        "steps": f"{optim.max_steps:,} steps = {epochs} epochs of {per_epoch:,} steps each",
        "images": f"{len(images):,} an epoch{about}, {images.num_classes:,} classes",
        "tokens": f"{tokens:,} an image, {tokens * optim.batch_size:,} a step, "
        f"{tokens * per_epoch * optim.batch_size:,} an epoch",
        "read from disk": f"once {read}, then from memory" if data.bytes_held else f"in an epoch {read}",
        "learning rate": f"{optim.learning_rate(optim.warmup_steps):.4g}, {optim.schedule}"
        + (f" after {optim.warmup_steps:,} steps of warm-up" if optim.warmup_steps else ""),
    }


def _epochs(number: float) -> str:
    """Write a number of epochs with at most two decimals: 22, 0.91."""
    return f"{number:,.2f}".rstrip("0").rstrip(".") if number >= 0.01 else f"{number:.1g}"


def format_bytes(size: float) -> str:
    """Write a number of bytes in the largest binary unit below it: 1.5 GiB."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if size < 1024:
            return f"{size:.0f} {unit}" if unit == "B" else f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} TiB"
