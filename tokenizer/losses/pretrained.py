"""Pretrained weight files: found or downloaded, checked against their SHA-256, read without unpickling code."""

import hashlib
import http.client
import io
import pickle
from dataclasses import dataclass
from pathlib import Path

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from tokenizer.loading.weight_formats import HEAD, not_weights


@dataclass(frozen=True)
class PretrainedFile:
    """A published file of weights.

    Args:
        title: name of the network in error messages.
        option: command-line option for the file's path.
        url: address of the published file.
        sha256: hashes of the published file, and of the same tensors in another container.
        name: file name in torch's hub folder; None: the last part of the URL.
    """

    title: str
    option: str
    url: str
    sha256: tuple[str, ...]
    name: str | None = None

    @property
    def default_path(self) -> Path:
        """Path in torch's hub folder, where the file is looked for and downloaded to."""
        return Path(torch.hub.get_dir(), "checkpoints", self.name or self.url.rsplit("/", 1)[-1])


def read_weights(
    file: PretrainedFile, path: str | Path | None = None, accept_sha256: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """Read a published file's tensors by name, and its SHA-256 (hex).

    Nothing in the file is executed: pickled classes are refused.

    Args:
        file: the published file.
        path: path of a .safetensors or torch.save file; None: the path in torch's hub folder, downloaded if missing.
        accept_sha256: hash of a file to accept instead of the published one; several with commas.

    Raises:
        ValueError: the file is missing and cannot be downloaded, is truncated, has another hash, or holds no tensors.
    """
    location = file.default_path if path is None else Path(path)
    remedy = f"download {file.url} and name the file with --{file.option} PATH"
    try:
        if path is None and not location.is_file():
            location.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(file.url, str(location), file.sha256[0], progress=False)
        content = location.read_bytes()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise ValueError(f"no {file.title} weights: {location} is not there ({error}); {remedy}") from error
    digest = hashlib.sha256(content).hexdigest()
    accepted = accept_sha256.split(",") if accept_sha256 else []
    if digest not in (*accepted, *file.sha256):
        reason = not_weights(content[:HEAD], len(content))
        details = f" ({reason})" if reason else ""
        raise ValueError(
            f"{file.title} weights {location} are truncated or another file{details}: SHA-256 {digest[:16]}..., "
            f"expected {(accepted or file.sha256)[0][:16]}...; {remedy}"
        )
    try:
        if location.suffix == ".safetensors":
            tensors = safetensors.torch.load(content)
        else:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file.title} weights {location} cannot be read: {reason}; {remedy}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file.title} weights {location} hold no tensors by name; {remedy}")
    return tensors, digest
