"""Seeds of steps and samples, and deterministic kernels."""

import os

import torch


def be_deterministic() -> None:
    """Allow deterministic kernels only; call this before the first use of a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_seed(seed: int) -> None:
    """Raise ValueError if `seed` cannot be the seed of the first sample; the following samples count up from it."""
    if not 0 <= seed < 2**62:
        raise ValueError(f"seed must be at least 0{' and below 2^62' if seed > 0 else ''}, got {seed}")


def seed_of(seed: int, rank: int, step: int) -> int:
    """Mix three numbers to a 63-bit seed, with splitmix64's finaliser on each."""
    state = 0
    for number in (seed, rank, step):
        state = (state ^ number) * 0x9E3779B97F4A7C15 % (1 << 64)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        state ^= state >> 31
    return state >> 1
