"""The priors: steps of the UNets of configs/, and images sampled a second."""

from functools import partial
from typing import Any

from arcvq.benchmarks.cases import diffusion_case, pixelcnn_case
from arcvq.benchmarks.gpu.bench import Bench, Figures
from arcvq.benchmarks.gpu.device_step import DeviceTraining
from arcvq.training import ldm as train_ldm


def figures(bench: Bench) -> Figures:
    """Time steps in bf16, and sampling in float32 as the pipelines do by default."""
    device = bench.device
    for config, batch, options in bench.sizes.unets:
        yield f"UNet step {config}, batch {batch}, bf16", partial(unet_step, bench, config, batch, options)
    images, steps = bench.sizes.diffusion
    title = f"latent diffusion, {images} images, {steps} DDIM steps, guidance 1.4"
    yield title, lambda: bench.figure(diffusion_case("pipeline", images, steps, device), images)
    for height, width, number in bench.sizes.pixelcnn:
        work = partial(pixelcnn_case, "cached", height, width, number, device)
        yield f"PixelCNN, {number} grids of {height} x {width}", lambda work=work, n=number: bench.figure(work(), n)


def unet_step(bench: Bench, config: str, batch: int, options: tuple[str, ...]) -> dict[str, Any]:
    """Time a step of a UNet's training on normal latents."""
    words = [f"--config={config}", f"--optim.batch_size={batch}", "--run.mixed_precision=bf16", *options]
    made = DeviceTraining.of(train_ldm, words, bench.device)
    latents = made.batch()
    return bench.figure(lambda: made.step(latents), batch)
