"""Files of pretrained weights: found or downloaded, checked against their SHA-256, read without unpickling code."""

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
        title: what an error calls it.
        option: the command line's option for its path.
        url: where it is published.
        sha256: hashes of the published file, and of the same tensors in another container.
        name: the file's name in torch's hub folder; None: that of the URL.
    """

    title: str
    option: str
    url: str
    sha256: tuple[str, ...]
    name: str | None = None

    @property
    def default_path(self) -> Path:
        """Where it is looked for, and downloaded to: torch's hub folder."""
        return Path(torch.hub.get_dir(), "checkpoints", self.name or self.url.rsplit("/", 1)[-1])


def read_weights(
    file: PretrainedFile, path: str | Path | None = None, accept_sha256: str | None = None
) -> tuple[dict[str, Tensor], str]:
    """A published file's tensors by name, and its SHA-256 (hex).

    Args:
        file: which one.
        path: where it is, as .safetensors or as PyTorch saves; None: its place in torch's hub folder, to which it is
            downloaded if it is not there.
        accept_sha256: the hash of a file to take in place of the published one, or several with commas.

    Raises:
        ValueError: there is no such file and it cannot be downloaded, it is truncated, its hash is another one, or it
            holds no tensors. Nothing of the file is executed: pickled classes are refused.
    """
    place = file.default_path if path is None else Path(path)
    remedy = f"download {file.url} and name the file with --{file.option} PATH"
    try:
        if path is None and not place.is_file():
            place.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(file.url, str(place), file.sha256[0], progress=False)
        content = place.read_bytes()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise ValueError(f"no {file.title} weights: {place} is not there ({error}); {remedy}") from error
    digest = hashlib.sha256(content).hexdigest()
    accepted = accept_sha256.split(",") if accept_sha256 else []
    if digest not in (*accepted, *file.sha256):
        reason = not_weights(content[:HEAD], len(content))
        what = f" ({reason})" if reason else ""
        raise ValueError(
            f"{file.title} weights {place} are truncated or another file{what}: SHA-256 {digest[:16]}..., "
            f"expected {(accepted or file.sha256)[0][:16]}...; {remedy}"
        )
    try:
        if place.suffix == ".safetensors":
            tensors = safetensors.torch.load(content)
        else:
            tensors = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (safetensors.SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{file.title} weights {place} cannot be read: {reason}; {remedy}") from error
    if not isinstance(tensors, dict) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{file.title} weights {place} hold no tensors by name; {remedy}")
    return tensors, digest
