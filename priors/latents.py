"""A frozen tokenizer as a boundary: a data set's images -> its latents, codes and labels, computed once.

The cache cannot go stale: its file is named after everything that its contents depend on, the tokenizer's weights and
config and the data set's fingerprint. What changes gets another file.
"""

import hashlib
import json
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.utils.data import Dataset

from tokenizer.data import ImageDataset, evaluation_batches
from tokenizer.model import VQTokenizer

# To be raised when the meaning of the stored tensors changes.
_FORMAT = 1


@dataclass(frozen=True)
class EncodedDataset(Dataset):
    """A data set as the tokenizer sees it, in the data set's order.

    Item: {"latents", "codes", "labels"} of one image; of a list of indices, the batch of their items.

    Attributes:
        latents: (n, D, h, w) float32, before quantisation, not scaled.
        codes: (n, h, w) int64.
        labels: (n,) int64.
    """

    latents: Tensor
    codes: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        return {"latents": self.latents[index], "codes": self.codes[index], "labels": self.labels[index]}

    @property
    def latent_scale(self) -> float:
        """1 / standard deviation of all latents: times this, they have unit variance. ValueError if all are equal."""
        deviation = self.latents.double().std().item()
        if not deviation > 0:
            raise ValueError(f"the latents' standard deviation is {deviation}: the tokenizer encodes every image alike")
        return 1 / deviation


def tokenizer_fingerprint(tokenizer: VQTokenizer) -> str:
    """SHA-256 (hex) over the tokenizer's config, and every tensor of its state with name, dtype and shape."""
    digest = hashlib.sha256()
    config = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        # The counter of training steps changes no latent and no code.
        if name != "bottleneck.step":
            digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def cache_file(tokenizer: VQTokenizer, dataset: ImageDataset, cache_dir: str | Path) -> Path:
    """Where the encoded `dataset` is cached."""
    key = f"{_FORMAT} {tokenizer_fingerprint(tokenizer)} {dataset.fingerprint()}"
    return Path(cache_dir) / f"latents-{hashlib.sha256(key.encode()).hexdigest()[:24]}.safetensors"


def encode_dataset(
    tokenizer: VQTokenizer,
    dataset: ImageDataset,
    cache_dir: str | Path,
    batch_size: int = 256,
    num_workers: int = 0,
    progress: Callable[[Iterable], Iterable] = lambda batches: batches,
) -> EncodedDataset:
    """Latents, codes and labels of every image, from the cache or computed and written to it.

    Args:
        tokenizer: frozen, in float32, on the device that is to compute.
        dataset: images of the tokenizer's size and channels.
        cache_dir: folder of the cache files; made when absent.
        batch_size: images per pass.
        num_workers: loader processes.
        progress: wraps the batches, to show how far the encoding is.
    """
    file = cache_file(tokenizer, dataset, cache_dir)
    if (cached := _read(file)) is not None:
        return cached
    encoded = _encode(tokenizer, progress(evaluation_batches(dataset, batch_size=batch_size, num_workers=num_workers)))
    file.parent.mkdir(parents=True, exist_ok=True)
    # Written beside and renamed, so that a killed process leaves no half-written cache under the final name.
    unfinished = file.with_suffix(f".{os.getpid()}.tmp")
    save_file({"latents": encoded.latents, "codes": encoded.codes, "labels": encoded.labels}, unfinished)
    unfinished.replace(file)
    return encoded


@torch.no_grad()
def _encode(tokenizer: VQTokenizer, batches: Iterable[dict[str, Tensor]]) -> EncodedDataset:
    tokenizer.eval()
    latents, codes, labels = [], [], []
    for batch in batches:
        encoded = tokenizer.encode(batch["images"].to(tokenizer.device)).latents
        latents.append(encoded.float().cpu())
        codes.append(tokenizer.bottleneck.encode(encoded).cpu())
        labels.append(batch["labels"])
    return EncodedDataset(torch.cat(latents), torch.cat(codes), torch.cat(labels))


def _read(file: Path) -> EncodedDataset | None:
    """The cached file, or None where there is none that can be read: it is then computed again."""
    try:
        with safe_open(file, "pt") as tensors:
            return EncodedDataset(*(tensors.get_tensor(name) for name in ("latents", "codes", "labels")))
    except (FileNotFoundError, SafetensorError):
        return None
