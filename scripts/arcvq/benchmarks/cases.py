"""Run one benchmark case in its own process: description as JSON => seconds and memory as JSON.

arcvq.benchmarks.command starts it. The functions in `CASES` set up the work that is measured.
"""

import json
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch_fidelity.metric_prc import prc_features_to_metric

from arcvq.benchmarks.peers import (
    DiffusersQuantizer,
    LucidrainsQuantizer,
    NoQuantizer,
    PlainArcQuantizer,
    TokenizerAround,
    bare_products,
)
from arcvq.compute.allocator import keep_freed_memory
from arcvq.compute.threads import use_all_cores
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.trained_module import TrainableModule, on_device
from arcvq.training.reconstruction_loss import LossConfig, ReconstructionLoss
from arcvq.training.tokenizer_step import TokenizerUpdate
from pipelines import ArcVQLDMPipeline
from pipelines.metrics.distributions import NEIGHBOURS
from pipelines.metrics.neighbours import precision_recall
from priors.diffusion import make_scheduler
from priors.pixelcnn import PixelCNN
from priors.unet import make_unet, null_label
from tokenizer import VQTokenizer
from tokenizer.losses.lpips import WeightFiles
from tokenizer.losses.reconstruction import normalised_mse
from tokenizer.quantizers import make_quantizer

Work = Callable[[], None]


class OurQuantizer(nn.Module):
    """A quantizer of this project; its losses are summed with its own weights."""

    def __init__(self, name: str, codebook_size: int, codebook_dim: int):
        super().__init__()
        self.quantizer = make_quantizer(name, codebook_size, codebook_dim, {})

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, h, w) -> quantized latents, loss."""
        output = self.quantizer(latents)
        weights = self.quantizer.loss_weights()
        return output.quantized, sum(weights[term] * loss for term, loss in output.losses.items())


# Each takes codebook_size and codebook_dim; its module maps latents (B, D, h, w) -> quantized latents, loss.
QUANTIZERS: dict[str, Callable[[int, int], nn.Module]] = {
    "arc": partial(OurQuantizer, "arc"),
    "vq": partial(OurQuantizer, "vq"),
    "network": lambda codebook_size, codebook_dim: NoQuantizer(),
    "plain": PlainArcQuantizer,
    "vector-quantize-pytorch": LucidrainsQuantizer,
    "diffusers": DiffusersQuantizer,
}


def quantizer_case(name: str, tokens: int, codes: int, dim: int, device: torch.device) -> Work:
    """Set up forward and backward of a quantizer, or the bare matrix products.

    The `tokens` latents are channels-last, as in training.
    """
    latents = torch.randn(1, 1, tokens, dim, device=device).permute(0, 3, 1, 2).requires_grad_()
    if name == "products":
        return bare_products(latents, codes)
    quantizer = QUANTIZERS[name](codes, dim).to(device)
    gradient = torch.randn_like(latents)

    def work() -> None:
        quantized, loss = quantizer(latents)
        torch.autograd.backward([quantized, loss], [gradient, None])
        latents.grad = None
        quantizer.zero_grad()  # otherwise later runs would accumulate into the codebook's gradient

    return work


def step_case(name: str, batch_size: int, precision: str, compiled: bool, device: torch.device) -> Work:
    """Set up a training step of the CIFAR-10 tokenizer.

    `arc` is the step of arcvq train-tokenizer. `plain` computes the equations as written, contiguous, eager, with
    PyTorch's default optimizer. Any other name is this project's step with that quantizer; `network` has none.
    """
    tokenizer = VQTokenizer()
    config = tokenizer.config
    images = torch.rand(batch_size, config.in_channels, config.image_size, config.image_size) * 2 - 1
    ours = name == "arc"
    model = (
        tokenizer if ours else TokenizerAround(tokenizer, QUANTIZERS[name](config.codebook_size, config.codebook_dim))
    )
    if name == "plain":
        model, images = model.to(device), images.to(device)
        optimizer = torch.optim.AdamW(model.parameters(), lr=OptimConfig().lr)
        return lambda: _descend(model, images, torch.Tensor.backward, optimizer)
    accelerator = Accelerator(mixed_precision=precision, cpu=device.type == "cpu")
    trained = TrainableModule(accelerator, model, name, OptimConfig(), RunConfig(name, compile=compiled))
    images = on_device(images, device)
    if not ours:
        return lambda: _descend(trained.wrapped, images, accelerator.backward, trained.optimizer)
    loss = ReconstructionLoss(LossConfig(), WeightFiles(), config.image_size, device)
    update = TokenizerUpdate(accelerator, trained, loss)
    return lambda: update([images], seed=0)


def _descend(
    model: nn.Module, images: Tensor, backward: Callable[[Tensor], None], optimizer: torch.optim.Optimizer
) -> None:
    """Make a training step of a model that returns its reconstruction and the other losses."""
    reconstruction, loss = model(images)
    backward(loss + normalised_mse(images, reconstruction, 1.0))
    optimizer.step()
    optimizer.zero_grad()


def diffusion_case(name: str, batch_size: int, steps: int, device: torch.device) -> Work:
    """Set up sampling by latent diffusion, 4 M parameters on 8 x 8 latents.

    `pipeline` is the pipeline as it is, or compiled in bf16. `calls` runs its network, scheduler and decoder alone, and
    `two passes` the same with guidance in two passes of the network.
    """
    tokenizer = VQTokenizer().eval().to(device)
    unet = make_unet(tokenizer.latent_shape, 10).eval().to(device)
    labels = torch.arange(batch_size, device=device) % 10
    pipeline = ArcVQLDMPipeline(tokenizer, unet, make_scheduler(), {index: str(index) for index in range(10)}, 1.0)
    pipeline.set_progress_bar_config(disable=True)
    if name == "pipeline compiled bf16":
        pipeline.optimize(torch.bfloat16, channels_last=True, compile=True)
    if name.startswith("pipeline"):
        return lambda: pipeline(labels, num_inference_steps=steps, output_type="pt")
    scheduler, null = pipeline.scheduler, torch.full_like(labels, null_label(unet))

    def predict(latents: Tensor, timestep: Tensor) -> Tensor:
        if name == "two passes":
            unconditional, conditional = (unet(latents, timestep, of).sample for of in (null, labels))
        else:
            both = unet(torch.cat([latents, latents]), timestep, torch.cat([null, labels])).sample
            unconditional, conditional = both.chunk(2)
        return unconditional + 1.4 * (conditional - unconditional)

    def sample() -> None:
        latents = torch.randn(batch_size, *tokenizer.latent_shape, device=device)
        scheduler.set_timesteps(steps)
        for timestep, moved in zip(scheduler.timesteps, scheduler.timesteps.to(device), strict=True):
            latents = scheduler.step(predict(latents, moved), timestep, latents).prev_sample
        tokenizer.decode(latents)

    return without_gradient(sample)


def pixelcnn_case(name: str, height: int, width: int, batch_size: int, device: torch.device) -> Work:
    """Set up sampling by a PixelCNN of 15 layers, width 64, 512 codes; `full` is one forward of the whole grid."""
    prior = PixelCNN(grid_size=(height, width)).eval().to(device)
    labels = torch.arange(batch_size, device=device) % 10
    if name == "full":
        codes = torch.zeros(batch_size, height, width, dtype=torch.int64, device=device)
        return without_gradient(lambda: prior(codes, labels))
    return lambda: prior.sample(labels, [None] * batch_size, compile=name == "cached compiled")


def without_gradient(work: Work) -> Work:
    """Return the same work under no_grad."""
    return torch.no_grad()(work)


def precision_recall_case(name: str, samples: int, reference: int, dim: int, device: torch.device) -> Work:
    """Set up precision and recall of normal features, ours or torch-fidelity's without a full distance matrix."""
    features = [torch.randn(number, dim, device=device) for number in (samples, reference)]
    if name == "ours":
        return lambda: precision_recall(*features)
    options = {"prc_neighborhood": NEIGHBOURS, "save_cpu_ram": True, "verbose": False}
    return lambda: prc_features_to_metric(*features, **options)


CASES: dict[str, Callable[..., Work]] = {
    "precision_recall": precision_recall_case,
    "quantizers": quantizer_case,
    "step": step_case,
    "diffusion": diffusion_case,
    "pixelcnn": pixelcnn_case,
}


def measure(group: str, arguments: dict[str, Any], device: torch.device, warmup: int, repeats: int) -> dict[str, Any]:
    """Run a case `warmup` + `repeats` times; the warm-up allocates the optimizer's state and the heap.

    Returns:
        `seconds` of each of the `repeats` runs, `memory_mb` added to that of the inputs, and `peak_mb` of the process.
    """
    torch.manual_seed(0)
    work = CASES[group](**arguments, device=device)
    before = memory(device, reset=True)
    for _ in range(warmup):
        work()
    seconds = []
    for _ in range(repeats):
        began = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    if before is None:
        return {"seconds": seconds, "memory_mb": None, "peak_mb": None}
    after = memory(device, reset=False)
    return {"seconds": seconds, "memory_mb": (after - before) / 1e6, "peak_mb": after / 1e6}


def memory(device: torch.device, reset: bool) -> int | None:
    """Return the peak memory in bytes since the last reset; None where the system does not report it."""
    if device.type == "cuda":
        torch.cuda.synchronize()
        if reset:
            torch.cuda.reset_peak_memory_stats()
        return torch.cuda.max_memory_allocated()
    clear = Path("/proc/self/clear_refs")
    if not clear.exists():  # not Linux
        return None
    if reset:
        clear.write_text("5")
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) * 1024


def main() -> None:
    """Read the description from the first argument, and print the result as the last line."""
    description = json.loads(sys.argv[1])
    device = torch.device(description["device"])
    if description["keep_freed_memory"]:
        keep_freed_memory()
    if description["threads"] is None:
        use_all_cores()
    else:
        torch.set_num_threads(description["threads"])
    if description["group"] == "quantizers" and description["arguments"]["name"] != "products":
        # Loads libraries and starts threads, whose memory is not the case's.
        CASES["quantizers"](description["arguments"]["name"], 64, 16, description["arguments"]["dim"], device)()
    result = measure(
        description["group"], description["arguments"], device, description["warmup"], description["repeats"]
    )
    print(json.dumps(result | {"threads": torch.get_num_threads()}))


if __name__ == "__main__":
    main()
