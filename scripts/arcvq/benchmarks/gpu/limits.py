"""Measure a device's own limits: copy bandwidth, rates of matrix products, launch overhead, uploads."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

Work = Callable[[], object]

# Seconds of a timed block at least; the host waits for the device before and after each.
_BLOCK = 0.1
_MOST_RUNS = 10_000
# A work of more seconds than _LONG gets no more blocks than these.
_LONG, _FEW_BLOCKS = 1.0, 3


def wait_for(device: torch.device) -> None:
    """Wait until the device has done all that is queued."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(work: Work, device: torch.device, blocks: int) -> dict[str, Any]:
    """Time a work in blocks of as many runs as fill a tenth of a second, after two runs that warm up.

    Of a work that takes longer than a second there are at most three blocks.

    Returns:
        `seconds` of a run, the median over the blocks, `fastest_s`, `slowest_s`, and `runs` in each block.
    """

    def block(runs: int) -> float:
        wait_for(device)
        began = time.perf_counter()
        for _ in range(runs):
            work()
        wait_for(device)
        return (time.perf_counter() - began) / runs

    block(1)
    seconds = block(1)
    runs = max(1, min(_MOST_RUNS, int(_BLOCK / max(seconds, 1e-9))))
    found = [block(runs) for _ in range(min(blocks, _FEW_BLOCKS) if seconds > _LONG else blocks)]
    return {
        "seconds": statistics.median(found),
        "fastest_s": min(found),
        "slowest_s": max(found),
        "runs": runs,
    }


@contextmanager
def tensor_float_32(enabled: bool) -> Iterator[None]:
    """Let float32 convolutions and matrix products on CUDA use TensorFloat-32, or not, within the context."""
    before = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = enabled
    try:
        yield
    finally:
        torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32 = before


def bandwidth(size: int, device: torch.device, blocks: int) -> dict[str, Any]:
    """Measure copies of `size` bytes on the device; a copy reads and writes them."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    timed = seconds_of(lambda: target.copy_(source), device, blocks)
    return timed | {"copied_bytes": size, "bytes_per_s": 2 * size / timed["seconds"]}


def upload(size: int, device: torch.device, blocks: int) -> dict[str, Any]:
    """Measure copies of `size` bytes from the host to the device, from pinned memory if the device is a GPU."""
    pinned = device.type == "cuda"
    source = torch.zeros(size, dtype=torch.uint8, pin_memory=pinned)
    target = torch.empty(size, dtype=torch.uint8, device=device)
    timed = seconds_of(lambda: target.copy_(source, non_blocking=True), device, blocks)
    return timed | {"copied_bytes": size, "pinned": pinned, "bytes_per_s": size / timed["seconds"]}


def matrix_rate(side: int, kind: str, device: torch.device, blocks: int) -> dict[str, Any]:
    """Measure the product of two square matrices; `kind` is bf16, tf32 or float32."""
    dtype = torch.bfloat16 if kind == "bf16" else torch.float32
    first, second = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(first)
    with tensor_float_32(kind == "tf32"):
        timed = seconds_of(lambda: torch.mm(first, second, out=product), device, blocks)
    return timed | {"side": side, "flops_per_s": 2 * side**3 / timed["seconds"]}


def launch_overhead(operations: int, device: torch.device, blocks: int) -> dict[str, Any]:
    """Measure an eager operation on one number, `operations` of them in a row."""
    number = torch.zeros(1, device=device)

    def work() -> None:
        for _ in range(operations):
            number.add_(1)

    timed = seconds_of(work, device, blocks)
    return timed | {"operations": operations, "us_per_operation": timed["seconds"] / operations * 1e6}
