"""A frozen tokenizer's outputs: images -> latents and codes; a data set of them in shards on disk.

A shard is a safetensors file of consecutive images of a data set, for n images in F orientations:

    latents  (n, F, D, h, w)  float32 or float16, before quantisation, not scaled
    codes    (n, F, h, w)     int32, or (n, F, h, w, depth); missing for a continuous tokenizer
    labels   (n,)             int64
    moments  (1, 3)           float64: statistics of all latent values: count, mean, sum of squares about the mean

F is 1 (the images as they are), or 2 (also mirrored left to right).
"""

import hashlib
import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor
from torch.utils.data import Dataset

from tokenizer.data import ImageDataset, StreamedImages
from tokenizer.data.batches import listed_batches
from tokenizer.data.framing import mirrored, uniform_draws
from tokenizer.loading.old_configs import without_network_options
from tokenizer.model import VQTokenizer

# Version of the shards; increase it when the meaning of the stored tensors changes.
SHARD_FORMAT = 2

# Images per pass through the encoder, for any batch size: 32 of 256 px take a few GB in a VQGAN.
ENCODED_AT_ONCE = 32


def tokenizer_fingerprint(tokenizer: VQTokenizer) -> str:
    """Compute the SHA-256 (hex) of the tokenizer's config and of all its tensors with name, dtype and shape."""
    digest = hashlib.sha256()
    config = {name: value for name, value in tokenizer.config.items() if not name.startswith("_")}
    config = without_network_options(config)  # so that runs and caches from before network_options stay known
    digest.update(json.dumps(config, sort_keys=True).encode())
    for name, tensor in sorted(tokenizer.state_dict().items()):
        # The step counters influence neither latents nor codes.
        if not name.endswith(".step"):
            digest.update(f"\0{name} {tensor.dtype} {tuple(tensor.shape)}\0".encode())
            digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


@torch.no_grad()
def encode_images(tokenizer: VQTokenizer, images: Tensor) -> dict[str, Tensor]:
    """Encode images (B, C, H, W) in [-1, 1]: {"latents": (B, D, h, w) float32, not scaled, "codes": (B, h, w) int64}.

    Codes are (B, h, w, depth) if a token has several, and missing for a continuous tokenizer. The tokenizer is in eval
    mode and float32; the result is on its device.
    """
    latents = [tokenizer.encode(part.to(tokenizer.device)).latents for part in images.split(ENCODED_AT_ONCE)]
    encoded = {"latents": torch.cat(latents).float()}
    if tokenizer.has_codes:
        encoded["codes"] = torch.cat([tokenizer.bottleneck.encode(part) for part in latents])
    return encoded


def shard_batches(
    dataset: ImageDataset | StreamedImages,
    shards: Iterable[Sequence[int]],
    device: torch.device,
    num_workers: int = 0,
) -> Iterator[Iterator[dict[str, Tensor]]]:
    """Load the images of each shard in turn, by one loader: yield the batches of a shard, which `encode_shard` takes.

    Args:
        dataset: images of the tokenizer's size and channels, loaded without random augmentation.
        shards: the indices of the images of each shard.
        device: where the batches are.
        num_workers: loader processes; they read the next shards while one is encoded.
    """
    parts = [
        [shard[start : start + ENCODED_AT_ONCE] for start in range(0, len(shard), ENCODED_AT_ONCE)] for shard in shards
    ]
    batches = iter(listed_batches(dataset, [part for of_shard in parts for part in of_shard], num_workers, device))
    for of_shard in parts:
        yield islice(batches, len(of_shard))


@torch.no_grad()
def encode_shard(
    tokenizer: VQTokenizer,
    batches: Iterable[dict[str, Tensor]],
    dtype: torch.dtype = torch.float32,
    flips: bool = False,
) -> dict[str, Tensor]:
    """Compute the tensors of the shard of these images, without its moments, which `finish_shard` adds.

    Nothing waits for the device, where the result is; the module's docstring lists the tensors.

    Args:
        tokenizer: in eval mode and float32, on the device that computes.
        batches: images on that device and labels.
        dtype: dtype of the latents in the shard.
        flips: whether mirrored images are encoded as well.
    """
    dtypes = {"latents": dtype, "codes": torch.int32}
    columns, labels = {}, []
    for batch in batches:
        sides = [batch["images"], batch["images"].flip(-1)] if flips else [batch["images"]]
        encoded = [encode_images(tokenizer, side) for side in sides]
        for name in encoded[0]:
            both = torch.stack([side[name].to(dtypes[name]) for side in encoded], dim=1)
            columns.setdefault(name, []).append(both)
        labels.append(batch["labels"])
    return {name: torch.cat(parts) for name, parts in columns.items()} | {"labels": torch.cat(labels)}


def finish_shard(shard: dict[str, Tensor], images: str) -> dict[str, Tensor]:
    """Complete a shard on the CPU with its moments; `images` names them in errors.

    Raises:
        ValueError: latents that are not finite in their dtype.
    """
    if not shard["latents"].isfinite().all():
        name = str(shard["latents"].dtype).removeprefix("torch.")
        raise ValueError(f"latents of {images} are not finite in {name}")
    return shard | {"moments": _statistics(shard["latents"])}


def _statistics(values: Tensor) -> Tensor:
    """Compute (count, mean, sum of squares about the mean) of all values, float64 (1, 3)."""
    values = values.double()
    mean = values.mean()
    return torch.stack([torch.tensor(values.numel(), dtype=torch.float64), mean, (values - mean).square().sum()])[None]


def latent_scale(statistics: Tensor) -> float:
    """Compute 1 / standard deviation of the latents of all shards from their statistics (shards, 3) float64.

    Latents multiplied by it have unit variance.

    Raises:
        ValueError: all latents are equal.
    """
    counts, means, squares = statistics.unbind(1)
    mean = (counts * means).sum() / counts.sum()
    variance = (squares.sum() + (counts * (means - mean).square()).sum()) / (counts.sum() - 1)
    deviation = variance.sqrt().item()
    if not deviation > 1e-7 * mean.abs().item():  # below the resolution of float32
        raise ValueError(f"the latents' standard deviation is {deviation}: the tokenizer encodes every image alike")
    return 1 / deviation


class EncodedDataset(Dataset):
    """A data set as the tokenizer encodes it, in the data set's order; shards are memory-mapped.

    Item: {"latents": float32 (D, h, w), "codes": int64 (h, w) or (h, w, depth), "labels": int64 ()} of one image, not
    mirrored; "codes" is missing for a continuous tokenizer. A list of indices gives the batch of their items.

    Args:
        shards: their files, in order.

    Attributes:
        labels: (n,) int64, in memory.
        statistics: (shards, 3) float64, of the latents in all orientations: the argument of `latent_scale`.
    """

    def __init__(self, shards: Sequence[Path]):
        self.shards = list(shards)
        small = [_open(file, "labels", "moments") for file in self.shards]
        self.labels = torch.cat([shard["labels"] for shard in small])  # cat copies the memory-mapped labels
        self.statistics = torch.cat([shard["moments"] for shard in small])
        self._ends = torch.tensor([len(shard["labels"]) for shard in small]).cumsum(0)
        self._mapped: dict[int, dict[str, Tensor]] = {}

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int | list[int]) -> dict[str, Tensor]:
        if isinstance(index, list):
            return self._batch(index, torch.zeros(len(index), dtype=torch.int64))
        return {name: values[0] for name, values in self[[index]].items()}

    @property
    def is_augmented(self) -> bool:
        """Tell whether the shards have mirrored images, which training sees half of the time: see `augmented`."""
        return self._shard(0)["latents"].shape[1] == 2

    def augmented(self, indices: list[int], seed: int, epoch: int) -> dict[str, Tensor]:
        """Return the batch of the indices as training sees it in an epoch.

        It mirrors the images that training on pixels would mirror in this epoch: a function of seed, epoch and each
        index alone.
        """
        return self._batch(indices, torch.from_numpy(mirrored(uniform_draws(seed, epoch, indices))).long())

    def _batch(self, indices: list[int], orientations: Tensor) -> dict[str, Tensor]:
        indices = torch.tensor(indices, dtype=torch.int64)
        if len(indices) and not (indices.min() >= 0 and indices.max() < len(self)):
            raise IndexError(f"an index is outside 0..{len(self) - 1}")
        batch = {"labels": self.labels[indices]}
        for name, values in self._shard(0).items():
            dtype = torch.float32 if values.is_floating_point() else torch.int64
            batch[name] = torch.empty(len(indices), *values.shape[2:], dtype=dtype)
        shards = torch.bucketize(indices, self._ends, right=True)
        for shard in shards.unique().tolist():
            positions = (shards == shard).nonzero().flatten()
            rows = indices[positions] - (self._ends[shard - 1] if shard else 0)
            for name, values in self._shard(shard).items():
                batch[name][positions] = values[rows, orientations[positions]].to(batch[name].dtype)
        return batch

    def _shard(self, shard: int) -> dict[str, Tensor]:
        """Return latents and codes of a shard, mapped on first access."""
        if shard not in self._mapped:
            self._mapped[shard] = _open(self.shards[shard], "latents", "codes")
        return self._mapped[shard]

    def __getstate__(self) -> dict:
        return self.__dict__ | {"_mapped": {}}  # another process maps the files itself instead of receiving their data


def _open(file: Path, *names: str) -> dict[str, Tensor]:
    """Map tensors of a safetensors file: only accessed parts are read."""
    with safe_open(file, "pt") as tensors:
        return {name: tensors.get_tensor(name) for name in names if name in tensors.keys()}  # noqa: SIM118
