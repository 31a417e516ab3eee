"""The step of the CIFAR-10 tokenizer: the network alone, ArcVQ in several precisions, and a whole training."""

import json
import statistics
from contextlib import AbstractContextManager, nullcontext
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from arcvq.benchmarks.cases import step_case
from arcvq.benchmarks.gpu.bench import Bench, Figures, LeftOut
from arcvq.benchmarks.gpu.device_step import DeviceTraining
from arcvq.benchmarks.gpu.limits import Work, tensor_float_32
from arcvq.benchmarks.gpu.needs import needs_of
from arcvq.runs.options import RunConfig
from arcvq.training import tokenizer as train_tokenizer
from tokenizer.data.dataset import as_floats

_CONFIG = "--config=cifar10/arcvq.yaml"
_BF16 = ("--run.mixed_precision=bf16",)
# Lines of the log of a whole training; the first one holds the warm-up.
_LINES = 6


def figures(bench: Bench) -> Figures:
    """Time steps on random images that lie on the device, then trainings with loader, log and all.

    A step whose network is compiled is compared with the needs of the eager one. It comes last, as it takes longest.
    """
    batch, device = bench.sizes.batch, bench.device
    yield "network bf16", lambda: bench.figure(step_case("network", batch, "bf16", False, device), batch)
    yield "arc float32", partial(arc_step, bench, (), tf32=False)
    yield "arc TF32", partial(arc_step, bench, (), tf32=True)
    yield "arc bf16", partial(arc_step, bench, _BF16)
    yield "arc bf16, training", partial(whole_training, bench, "eager", _BF16)
    yield "arc bf16 CUDA graph, training", partial(graphed_training, bench)
    yield "arc bf16 compiled", partial(compiled_step, bench)


def arc_step(bench: Bench, options: tuple[str, ...], tf32: bool | None = None) -> dict[str, Any]:
    """Time a step of ArcVQ on random pixels."""
    precision: AbstractContextManager = nullcontext() if tf32 is None else tensor_float_32(tf32)
    work = arc_work(bench, options)
    with precision:
        return bench.figure(work, bench.sizes.batch)


def compiled_step(bench: Bench) -> dict[str, Any]:
    """Time the same step with a compiled network."""
    if not bench.sizes.compiled:
        raise LeftOut("compiling takes a minute or two, which these sizes are not worth")
    return bench.figure(arc_work(bench, (*_BF16, "--run.compile=true")), bench.sizes.batch, arc_work(bench, _BF16))


def arc_work(bench: Bench, options: tuple[str, ...]) -> Work:
    """Set up a step of the training on random pixels, uint8 on the device."""
    words = [_CONFIG, f"--optim.batch_size={bench.sizes.batch}", *options]
    made = DeviceTraining.of(train_tokenizer, words, bench.device)
    shape = made.batch()["images"].shape
    pixels = torch.randint(0, 256, shape, dtype=torch.uint8, device=bench.device)
    pixels = pixels.to(memory_format=torch.channels_last)
    return lambda: made.step({"images": as_floats(pixels)})


def graphed_training(bench: Bench) -> dict[str, Any]:
    """Time a training whose step is a CUDA graph, if this version has that option."""
    if "cuda_graph" not in {field.name for field in fields(RunConfig)}:
        raise LeftOut("this version has no option run.cuda_graph")
    if not bench.is_cuda:
        raise LeftOut("a CUDA graph needs a GPU")
    return whole_training(bench, "graph", (*_BF16, "--run.cuda_graph=true"))


def whole_training(bench: Bench, name: str, options: tuple[str, ...]) -> dict[str, Any]:
    """Train on random images; the log has the images a second between two of its lines."""
    sizes, images = bench.sizes, bench.folder / "images"
    if not images.is_dir():
        write_images(images, sizes.random_images)
    every = max(1, sizes.training_steps // _LINES)
    run = bench.folder / name
    settings = {
        "data.name": images,
        "optim.max_steps": sizes.training_steps,
        "optim.batch_size": sizes.batch,
        "run.output_dir": run.parent,
        "run.name": run.name,
        "run.log_every": every,
        "run.sample_every": sizes.training_steps,
        "run.checkpoint_every": sizes.training_steps,
    }
    train_tokenizer.main([_CONFIG, *(f"--{option}={value}" for option, value in settings.items()), *options])
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    speeds = [record["images_per_second"] for record in records if "images_per_second" in record]
    speed = statistics.median(speeds[1:] or speeds)
    needs = needs_of(arc_work(bench, _BF16))
    return {"seconds": sizes.batch / speed, "items_per_s": speed, "lines": speeds, "needs": needs}


def write_images(folder: Path, number: int) -> None:
    """Write a data set of random images of CIFAR-10's size."""
    generator = np.random.default_rng(0)
    for split, some in (("train", number), ("test", 16)):
        (folder / split).mkdir(parents=True)
        for index in range(some):
            pixels = generator.integers(0, 256, (32, 32, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / split / f"{index:05d}.png")
