"""Images that are read from shards on demand: in order, or in the shuffled order of a training."""

import hashlib
import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any
from weakref import WeakValueDictionary

import numpy as np
import PIL.Image
import torch

from tokenizer.data.bad_images import BadImages
from tokenizer.data.dataset import FramedImages, as_floats, framed_pixels
from tokenizer.data.decoding import ImageError, convert, decode_image, image_header
from tokenizer.data.framing import Framing, uniform_draws
from tokenizer.data.streaming.order import StreamOrder
from tokenizer.data.streaming.shards import Block, Shard, checked

# Shards whose metadata are read in parallel: over a network, latency dominates.
INDEX_THREADS = 16

# Most bytes of images that the fingerprint reads per shard: 19 MB for ImageNet's 294 shards.
FINGERPRINT_BYTES = 1 << 16


@dataclass(eq=False, repr=False)
class StreamedImages(FramedImages):
    """Images and labels in shards; built by `load_images` if `data.streaming` is true.

    Items by index, in the order of the shards, and attributes are those of an `ImageDataset`. One block is cached, so
    reading in order reads each block once.

    Raises:
        DataError: from an item: its shard cannot be read, or its image or label is unusable.
    """

    shards: Sequence[Shard]
    framing: Framing
    channels: int
    class_names: list[str]
    shuffle_buffer: int
    name: str
    split: str
    bad_images: BadImages | None = None
    label_values: np.ndarray | None = None  # label value of each class id in the shards; None: the id itself

    def __post_init__(self):
        per_shard = [len(shard.counts) for shard in self.shards]
        self.counts = np.concatenate([shard.counts for shard in self.shards])  # samples of all blocks
        self._first = np.cumsum(self.counts) - self.counts  # sample of each block
        self._shard = np.repeat(np.arange(len(self.shards)), per_shard)
        self._first_block = np.cumsum(per_shard) - per_shard  # of each shard
        self._last_read: tuple[int, Block] | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {**vars(self), "_last_read": None}

    @cached_property
    def labels(self) -> torch.Tensor:
        """All labels in order, int64 (n,), read on first access."""
        with ThreadPoolExecutor(INDEX_THREADS) as pool:
            labels = np.concatenate(list(pool.map(lambda shard: shard.read_labels(), self.shards)))
        return torch.from_numpy(self._class_ids(labels))

    def __len__(self) -> int:
        return int(self.counts.sum())

    def __getitem__(self, index: int | list[int]) -> dict[str, torch.Tensor]:
        if isinstance(index, list):
            items = [self[number] for number in index]
            return {name: torch.stack([item[name] for item in items]) for name in items[0]}
        pixels, label = self._usable(index, self._in_order)
        return {"images": as_floats(pixels), "labels": torch.tensor(label)}

    def pixel_batch(self, indices: list[int]) -> dict[str, torch.Tensor]:
        """Return the batch of the indices with the images as uint8."""
        pixels, labels = zip(*(self._usable(index, self._in_order) for index in indices), strict=True)
        return {"images": torch.stack(pixels), "labels": torch.tensor(labels)}

    def decode(self, index: int | list[int]) -> torch.Tensor:
        """Decode the image, uint8 (channels, image_size, image_size), or (b, ...) for a list. Raises as an item."""
        if isinstance(index, list):
            return torch.stack([self.decode(number) for number in index])
        return self._usable(index, self._in_order)[0]

    def stored(self, index: int) -> tuple[PIL.Image.Image, str]:
        """Decode the image as `decode_image` does, and return its name for errors."""
        return self._decoded(self._block_in_order(index), index)

    def header(self, index: int) -> tuple[str, tuple[int, int]]:
        """Read the mode and the size (width, height) of the image at an index, without decoding its pixels."""
        encoded, where = self._encoded(self._block_in_order(index), index)
        return image_header(io.BytesIO(encoded), where)

    def try_image(self, index: int) -> None:
        """Raise ImageError if the image at an index is unusable."""
        self._in_order(index)

    def stream(
        self, positions: Sequence[int], batch_size: int, seed: int, steps: range
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield for each step the images uint8 (e, C, S, S) and labels (e,) at e positions of the global batch.

        The order is that of `StreamOrder`, with random crops and flips as in training. The blocks of the positions'
        current windows are held in memory.
        """
        order = StreamOrder(self.counts, batch_size, seed, self.shuffle_buffer)
        blocks: WeakValueDictionary[int, Block] = WeakValueDictionary()  # positions share blocks
        windows: dict[int, tuple[tuple[int, ...], np.ndarray, dict[int, Block]]] = {}
        for step in steps:
            samples = []
            for position in positions:
                place = order.place(step, position)
                window = windows.get(position)
                if window is None or window[0] != place[:-1]:
                    indices = order.window(*place[:-1])
                    held = {}
                    for number in np.unique(self._block_of(indices[indices >= 0])).tolist():
                        if (block := blocks.get(number)) is None:
                            block = blocks[number] = self._read(number)
                        held[number] = block
                    window = windows[position] = (place[:-1], indices, held)
                read = partial(self._drawn, seed, place.epoch, window[2])
                samples.append(self._usable(int(window[1][place.position]), read))
            yield torch.stack([pixels for pixels, _ in samples]), torch.tensor([label for _, label in samples])

    def fingerprint(self) -> str:
        """Compute the SHA-256 (hex) of the shards' contents, the image size and the channels; cached.

        Hashes each shard's name, length, columns, labels, positions and lengths of the images, and the bytes of some
        images in the middle. A copy of the shards elsewhere has the same fingerprint.
        """
        return self._fingerprint

    @cached_property
    def _fingerprint(self) -> str:
        digest = hashlib.sha256(f"streamed {self.image_size} {self.channels} {self.framing.resize_to}".encode())
        with ThreadPoolExecutor(INDEX_THREADS) as pool:
            for shard, images in zip(self.shards, pool.map(_image_digest, self.shards), strict=True):
                digest.update(f"\0{shard.file.path}\0{shard.file.size} {shard.counts.sum()} {images}".encode())
        digest.update(self.labels.numpy().astype("<i8").tobytes())
        return digest.hexdigest()

    def sample(self) -> list[int]:
        """List the indices of the images in the first block of the first, the middle and the last shard."""
        blocks = sorted({int(self._first_block[shard]) for shard in (0, len(self.shards) // 2, len(self.shards) - 1)})
        return [int(self._first[block]) + index for block in blocks for index in range(int(self.counts[block]))]

    def _class_ids(self, labels: np.ndarray) -> np.ndarray:
        return labels if self.label_values is None else np.searchsorted(self.label_values, labels)

    def _block_of(self, index: int | np.ndarray) -> np.ndarray:
        return np.searchsorted(self._first, index, side="right") - 1

    def _block_in_order(self, index: int) -> Block:
        if not 0 <= index < len(self):
            raise IndexError(f"index {index} is not in 0..{len(self) - 1}")
        number = int(self._block_of(index))
        last_read = self._last_read  # threads may read at once
        if last_read is None or last_read[0] != number:
            last_read = self._last_read = (number, self._read(number))
        return last_read[1]

    def _read(self, number: int) -> Block:
        shard = self._shard[number]
        return self.shards[shard].read(int(number - self._first_block[shard]))

    def _in_order(self, index: int) -> tuple[torch.Tensor, int]:
        return self._sample(self._block_in_order(index), index, None)

    def _drawn(self, seed: int, epoch: int, held: dict[int, Block], index: int) -> tuple[torch.Tensor, int]:
        number = int(self._block_of(index))
        if number not in held:  # a replacement of an unusable image at a block's end
            held[number] = self._read(number)
        return self._sample(held[number], index, uniform_draws(seed, epoch, [index])[0])

    def _sample(self, block: Block, index: int, draws: np.ndarray | None) -> tuple[torch.Tensor, int]:
        image, where = self._decoded(block, index)
        image = convert(image, self.channels, where)  # rebinding frees a large original
        label = self._class_ids(block.labels[index - int(self._first[self._block_of(index)])])
        return framed_pixels(image, where, self.framing, draws), int(label)

    def _decoded(self, block: Block, index: int) -> tuple[PIL.Image.Image, str]:
        encoded, where = self._encoded(block, index)
        return decode_image(encoded, where), where

    def _encoded(self, block: Block, index: int) -> tuple[Any, str]:
        """Return the encoded image and its name for errors; raise ImageError if it is missing."""
        number = int(self._block_of(index))
        shard = self._shard[number]
        row = index - int(self._first[self._first_block[shard]])
        where = f"image {row} of shard {self.shards[shard].file.name}"
        encoded = block.images[index - int(self._first[number])]
        if encoded is None:
            raise ImageError(f"{where} is missing; remove the row")
        return encoded, where


def _image_digest(shard: Shard) -> str:
    layout, (first, last) = shard.image_layout()
    middle, half = (first + last) // 2, FINGERPRINT_BYTES // 2
    span = max(first, middle - half), min(last, middle + half)
    content = checked(lambda: shard.file.span(*span), shard.file)
    return hashlib.sha256(layout + b"\0" + content).hexdigest()
