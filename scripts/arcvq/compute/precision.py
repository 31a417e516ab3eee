"""Choose how exactly float32 matrix products and convolutions are computed: in full, or in TensorFloat-32."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch


@contextmanager
def full_float32() -> Iterator[None]:
    """Compute float32 products and convolutions in full; put back what was set before. Also a decorator.

    Sampling, measuring and encoding enter it, so their numbers are those of every device. Trainings compute outside of
    it, as torch is set: by default with TensorFloat-32 in convolutions and without it in matrix products. Within it
    cuDNN does not choose its algorithms by their time either, as trainings let it: they round differently.

    The setting is that of the process, not of a thread: threads that a body starts compute in full too.
    """
    before, timed = float32_precisions(), torch.backends.cudnn.benchmark
    _set(dict.fromkeys(before, "ieee"))
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        _set(before)
        torch.backends.cudnn.benchmark = timed


def float32_precisions() -> dict[str, str]:
    """Return how float32 is computed, by library and operation: ieee, tf32, bf16, or none, which is ieee too."""
    return {name: setting.fp32_precision for name, setting in _settings().items()}


def _set(precisions: dict[str, str]) -> None:
    settings = _settings()
    for name, precision in precisions.items():
        settings[name].fp32_precision = precision


def _settings() -> dict[str, Any]:
    # Not `allow_tf32` and `set_float32_matmul_precision`: they cannot say what is set here one by one, raise an error
    # where they and these disagree, and some versions of torch warn that they will go.
    backends = torch.backends
    return {
        "cudnn.conv": backends.cudnn.conv,
        "cudnn.rnn": backends.cudnn.rnn,
        "cuda.matmul": backends.cuda.matmul,
        "mkldnn.conv": backends.mkldnn.conv,
        "mkldnn.rnn": backends.mkldnn.rnn,
        "mkldnn.matmul": backends.mkldnn.matmul,
    }
