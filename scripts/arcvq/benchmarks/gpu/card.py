"""The card: what it is, and its own limits."""

import platform
import shutil
import subprocess
from typing import Any

import torch

from arcvq.benchmarks.gpu.bench import Bench, Figures, LeftOut
from arcvq.benchmarks.gpu.limits import bandwidth, launch_overhead, matrix_rate, upload

# Operations in a row, which the host sends without waiting.
_OPERATIONS = 1000


def figures(bench: Bench) -> Figures:
    """Describe the device, and measure its limits."""
    sizes, device = bench.sizes, bench.device
    yield "device", lambda: describe(device)
    yield "nvidia-smi", nvidia_smi
    yield "copy", lambda: bandwidth(sizes.copy_bytes, device, sizes.blocks)
    for kind in ("bf16", "tf32", "float32"):
        yield f"product {kind}", lambda kind=kind: matrix_rate(sizes.matrix_side, kind, device, sizes.blocks)
    yield "launch", lambda: launch_overhead(_OPERATIONS, device, sizes.blocks)
    yield "upload", lambda: upload(sizes.copy_bytes // 4, device, sizes.blocks)


def describe(device: torch.device) -> dict[str, Any]:
    """Name the device, its memory and the versions."""
    facts: dict[str, Any] = {"type": device.type, "python": platform.python_version(), "torch": torch.__version__}
    if device.type != "cuda":
        return facts | {"name": platform.processor() or platform.machine(), "threads": torch.get_num_threads()}
    properties = torch.cuda.get_device_properties(device)
    return facts | {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "capability": f"{properties.major}.{properties.minor}",
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
        "devices": torch.cuda.device_count(),
    }


def nvidia_smi() -> dict[str, Any]:
    """Return what nvidia-smi prints, with driver and clocks."""
    if shutil.which("nvidia-smi") is None:
        raise LeftOut("there is no nvidia-smi")
    done = subprocess.run(["nvidia-smi"], capture_output=True, text=True, timeout=30)
    return {"lines": (done.stdout or done.stderr).splitlines()}


def limits_of(figures: dict[str, Any]) -> dict[str, Any] | None:
    """Return the limits that `beside_limit` takes, from the figures of this part; None where one is missing."""
    try:
        kinds = {kind: figures[f"product {kind}"]["flops_per_s"] for kind in ("bf16", "tf32", "float32")}
        return {"bytes_per_s": figures["copy"]["bytes_per_s"], "flops_per_s": kinds}
    except KeyError:
        return None
