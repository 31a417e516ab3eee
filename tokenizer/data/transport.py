"""Carry batches from the loader to the device: images travel as uint8, and are mirrored and converted there."""

from collections import deque
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor

from tokenizer.data.dataset import as_floats

T = TypeVar("T")

# Batches that a thread makes ready while a GPU computes: the next one, and one more for uneven times.
AHEAD = 2

_END = object()


@dataclass(eq=False, repr=False)
class TransportedBatches:
    """A loader's batches, on a device.

    For a GPU, a thread waits for the loader, so that batches which the main process itself makes are ready as well.

    Args:
        batches: batches on the CPU, pinned where the device is a GPU: tensors by name, of which `images` (B, C, S, S)
            may be uint8, and `flips`, bool (B,), tells which images are mirrored.
        device: where they are used. There images are float32 in [-1, 1], and `flips` is gone.
    """

    batches: Iterable[dict[str, Tensor]]
    device: torch.device

    def __len__(self) -> int:
        return len(self.batches)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        batches = made_ahead(self.batches, AHEAD) if self.device.type == "cuda" else self.batches
        return (on_device(batch, self.device) for batch in batches)


def on_device(batch: dict[str, Tensor], device: torch.device) -> dict[str, Tensor]:
    """Move a batch to the device without waiting for it, and convert it there; see `TransportedBatches`."""
    moved = {name: tensor.to(device, non_blocking=device.type == "cuda") for name, tensor in batch.items()}
    flips = moved.pop("flips", None)
    if "images" in moved and moved["images"].dtype == torch.uint8:
        images = moved["images"] if flips is None else mirrored_where(flips, moved["images"], -1)
        moved["images"] = as_floats(images)
    return moved


def mirrored_where(flips: Tensor, images: Tensor, across: int) -> Tensor:
    """Mirror those images (B, ...) along the dimension `across` for which flips (B,) are true; may overwrite images."""
    if images.device.type == "cpu":
        images[flips] = images[flips].flip(across)
        return images
    return torch.where(flips.view(-1, 1, 1, 1), images.flip(across), images)  # the host would wait for a number of rows


def made_ahead(items: Iterable[T], depth: int) -> Iterator[T]:
    """Yield the same items, of which a thread makes up to `depth` before they are asked for."""
    iterator = iter(items)
    with ThreadPoolExecutor(1) as pool:
        waiting = deque(pool.submit(next, iterator, _END) for _ in range(depth))
        try:
            while (item := waiting.popleft().result()) is not _END:
                waiting.append(pool.submit(next, iterator, _END))
                yield item
        finally:
            for future in waiting:
                future.cancel()
