"""Where the randomness of a step comes from, and kernels without any."""

import os

import torch


def be_deterministic() -> None:
    """Makes torch take deterministic kernels alone; to be called before the first use of a GPU."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read once, when cuBLAS starts
    torch.use_deterministic_algorithms(True)
    torch.backends.cudnn.benchmark = False


def check_seed(seed: int) -> None:
    """Raises ValueError for a first seed of samples that cannot be one; each sample has the next."""
    if not 0 <= seed < 2**62:
        raise ValueError(f"seed must be at least 0{' and below 2^62' if seed > 0 else ''}, got {seed}")


def seed_of(seed: int, rank: int, step: int) -> int:
    """A 63-bit seed from three numbers, different for different ones (splitmix64's finaliser on each)."""
    state = 0
    for number in (seed, rank, step):
        state = (state ^ number) * 0x9E3779B97F4A7C15 % (1 << 64)
        state = (state ^ (state >> 30)) * 0xBF58476D1CE4E5B9 % (1 << 64)
        state ^= state >> 31
    return state >> 1
