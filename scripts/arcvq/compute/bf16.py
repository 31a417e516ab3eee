"""Say when a processor has no fast arithmetic for bf16."""

import platform

import torch

# x86 without AVX-512. oneDNN has bf16 kernels from AVX-512 on; torch then falls back on loops without vectors.
_WITHOUT_KERNELS = ("DEFAULT", "NO AVX", "AVX2")


def slow_bf16(precision: str, device: torch.device) -> str | None:
    """Describe why bf16 is slower than float32 on this device; None where it is not, or another precision is asked.

    On a core of an AMD processor of the Zen 3 generation, which has AVX2, a step of configs/cifar10/arcvq.yaml takes
    69 s in bf16 and 5 s in float32.
    """
    capability = torch.backends.cpu.get_cpu_capability()
    x86 = platform.machine().lower() in ("x86_64", "amd64")
    if precision != "bf16" or device.type != "cpu" or not x86 or capability not in _WITHOUT_KERNELS:
        return None
    return (
        f"run.mixed_precision bf16: this processor ({capability}) has no instructions for it, and a step takes ten "
        "times as long as in float32; set run.mixed_precision no"
    )
