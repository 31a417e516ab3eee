"""A training step as one CUDA graph: the host launches it as a whole instead of hundreds of kernels.

A graph repeats the same kernels on the same memory. So the step must take every number that changes from tensors on the
device, and leave no decision to the host: no random numbers of the host, no value that is read.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from arcvq.runs.run import Run
from tokenizer import VQTokenizer

# Quantizers without noise, and without state that the host chooses.
QUANTIZERS = ("arc", "cosine", "ema", "fc", "lc", "rotation", "simvq", "vq")

# Steps before the capture: libraries allocate their workspaces, and a compiled network is compiled.
_WARMUP = 3


class GraphedStep:
    """A step on a batch of images, captured once and then replayed.

    The first steps run as they are. Between steps the host may change tensors that the step reads, in place.

    Args:
        compute: the step, on images (B, C, H, W) of one shape. What it does with tensors is repeated, and nothing else.
    """

    def __init__(self, compute: Callable[[Tensor], None]):
        self._compute = compute
        self._done = 0
        self._graph: torch.cuda.CUDAGraph | None = None
        self._images: Tensor | None = None

    def __call__(self, images: Tensor) -> None:
        """Make a step."""
        if self._graph is None and self._done < _WARMUP:
            self._warm_up(images)
        elif self._graph is None:
            self._images = images.clone()
            self._graph = torch.cuda.CUDAGraph()
            # Meanwhile other threads pin the next batches: the default mode would end the capture with an error.
            with torch.cuda.graph(self._graph, capture_error_mode="thread_local"):
                self._compute(self._images)
        if self._graph is not None:
            self._images.copy_(images, non_blocking=True)
            self._graph.replay()

    def _warm_up(self, images: Tensor) -> None:
        """Make a step on a stream of its own, as captures do."""
        self._done += 1
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self._compute(images)
        torch.cuda.current_stream().wait_stream(stream)


def graph_hindrance(run: Run, tokenizer: VQTokenizer, is_adversarial: bool) -> str | None:
    """Say why a tokenizer's step cannot be a CUDA graph; None where it can."""
    name = tokenizer.config.quantizer
    if run.device.type != "cuda":
        return f"there is no GPU, the device is {run.device.type}"
    if run.accelerator.num_processes > 1:
        return f"{run.accelerator.num_processes} processes exchange gradients"
    if run.accelerator.scaler is not None:
        return "fp16 has a loss scale; set run.mixed_precision bf16"
    if is_adversarial:
        return "the discriminator enters at a step that the host knows"
    if tokenizer.config.network != "conv":
        return f"network {tokenizer.config.network!r} is not conv"
    if name not in QUANTIZERS:
        return f"quantizer {name!r} draws random numbers in a step; those without are {', '.join(QUANTIZERS)}"
    if getattr(tokenizer.bottleneck, "revive_below", 0):
        return "model.quantizer_options.revive_below draws random tokens"
    if getattr(tokenizer.bottleneck, "first_batch", False):
        return "model.quantizer_options.init kmeans draws random tokens"
    return None
