"""A frozen codebook on disk: a safetensors file with one tensor, `codebook` (K, F)."""

import hashlib
from pathlib import Path

import numpy as np
import safetensors
import safetensors.numpy
import safetensors.torch
import torch
from torch import Tensor

from tokenizer.quantizers import Quantizer
from tokenizer.quantizers.lc import LCQuantizer

NAME = "codebook"


def save_codebook_file(table: Tensor, file: Path) -> None:
    """Write a table (K, F) to a file."""
    file.parent.mkdir(parents=True, exist_ok=True)
    safetensors.torch.save_file({NAME: table.contiguous()}, file)


def load_codebook_file(quantizer: Quantizer, file: Path) -> str:
    """Load the table of a file as the quantizer's frozen one; return the file's SHA-256 (hex).

    Raises:
        ValueError: the file is missing or holds something else, the shape differs, or the quantizer has no such table.
    """
    if not isinstance(quantizer, LCQuantizer):
        raise ValueError(f"codebook_file {file} is a frozen table, which model.quantizer lc alone has; leave it out")
    if file.exists() and not file.is_file():  # a device or a pipe might never end
        raise ValueError(f"codebook_file {file} is no file; arcvq codebook features writes one")
    try:
        content = file.read_bytes()
    except OSError as error:
        raise ValueError(
            f"codebook_file {file} cannot be read ({error.strerror}); arcvq codebook features writes one"
        ) from error
    try:
        tensors = safetensors.numpy.load(content)  # numpy arrays hold values even in a dry run
    except (safetensors.SafetensorError, KeyError, TypeError) as error:
        raise ValueError(f"codebook_file {file} is no safetensors file: {error}; make it anew") from error
    table = tensors.get(NAME)
    if table is None or table.ndim != 2 or table.dtype.kind != "f":
        contents = ", ".join(f"{name} {value.dtype} {value.shape}" for name, value in tensors.items())
        raise ValueError(f"codebook_file {file} should hold `{NAME}`, floating point (K, F), but holds {contents}")
    if not np.isfinite(table).all():
        raise ValueError(f"codebook_file {file} holds NaN or infinity; make it anew")
    try:
        quantizer.load_features(torch.from_numpy(table))
    except ValueError as error:
        raise ValueError(f"codebook_file {file}: {error}") from error
    return hashlib.sha256(content).hexdigest()
