"""Copy a model's folder: weights in another precision, configs without the place that they were loaded from."""

import hashlib
import json
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from tokenizer import VQTokenizer
from tokenizer.loading.json_config import read_json
from tokenizer.loading.model_folder import WEIGHTS
from tokenizer.loading.result_folders import RESULTS

DTYPES = {"float16": torch.float16, "float32": torch.float32}


def model_folders(model: Path) -> list[Path]:
    """List the folders with configs and weights: a tokenizer's own, or a pipeline's and those of its components."""
    index = model / RESULTS["pipeline"]
    parts = [name for name, value in read_json(index).items() if isinstance(value, list)] if index.is_file() else []
    return [model, *(model / part for part in sorted(parts))]


def copy_model(source: Path, target: Path, dtype: str) -> dict[str, Any]:
    """Copy a tokenizer's or a pipeline's folder, as diffusers' `save_pretrained` writes it, into an existing folder.

    A tokenizer's quantizer stays in float32, as diffusers keeps it: in half precision another code may become the
    nearest.

    Args:
        source: the folder to copy, which has been loaded before, and so holds only configs and safetensors.
        target: the folder to write to.
        dtype: dtype of all other weights, one of DTYPES. Every loader gives them back in float32.

    Returns:
        facts about the weights: dtype, number of values, bytes.

    Raises:
        ValueError: a weight is too large for the dtype, or not finite; a file is damaged.
    """
    values = size = 0
    for folder in model_folders(source):
        written = target / folder.relative_to(source)
        written.mkdir(exist_ok=True)
        for file in (folder / name for name in (*RESULTS.values(), "scheduler_config.json")):
            if file.is_file():
                config = {name: value for name, value in read_json(file).items() if name != "_name_or_path"}
                (written / file.name).write_text(json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8")
        file = folder / f"{WEIGHTS}.safetensors"
        if file.is_file():
            try:
                stored = load_file(file)
            except SafetensorError as error:
                raise ValueError(f"{file} is damaged ({error}); take it from a copy of the run") from error
            tensors = {name: _cast(name, tensor, dtype, file) for name, tensor in stored.items()}
            save_file(tensors, written / file.name, metadata={"format": "pt"})
            values += sum(tensor.numel() for tensor in tensors.values())
            size += (written / file.name).stat().st_size
    return {"dtype": dtype, "values": values, "bytes": size}


def _cast(name: str, tensor: Tensor, dtype: str, file: Path) -> Tensor:
    """Cast a weight. ValueError if it is then not finite."""
    kept = not tensor.is_floating_point() or name.partition(".")[0] in VQTokenizer._keep_in_fp32_modules
    cast = tensor if kept else tensor.to(DTYPES[dtype])
    if cast.is_floating_point() and not torch.isfinite(cast).all():
        remedy = "the model diverged" if not torch.isfinite(tensor).all() else "take --dtype float32"
        raise ValueError(f"{name} of {file} has values that are not finite in {dtype}: {remedy}")
    return cast


def weights_hashes(folder: Path) -> dict[str, str]:
    """Compute the SHA-256 (hex) of each file of weights, by its path in the folder."""
    hashes = {}
    for file in sorted(folder.rglob("*.safetensors")):
        with file.open("rb") as content:
            hashes[file.relative_to(folder).as_posix()] = hashlib.file_digest(content, "sha256").hexdigest()
    return hashes
