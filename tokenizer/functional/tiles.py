"""Sizes of the parts in which large tables are computed: an (N, K) table of tokens and codes tile by tile."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Tiles:
    """Sizes that suit a kind of device.

    Attributes:
        entries: entries of a tile of the (N, K) table.
        codes: most codes of a tile.
        look_up: tokens of a part of the straight-through look-up.
        noise: words of noise that are drawn at a time.
        few_launches: whether a launch costs more than the work that it could save.
    """

    entries: int
    codes: int
    look_up: int
    noise: int
    few_launches: bool


TILES = {
    # A tile of 2 Mi float32 is 8 MiB and fits into a processor's caches, and so do the 4,096 differences of a
    # part and 64 Ki words. With more than 512 codes a tile has few tokens, and the search becomes slower.
    "cpu": Tiles(entries=1 << 21, codes=512, look_up=4096, noise=1 << 16, few_launches=False),
}
# Accelerators have no such cache, and the host needs microseconds to launch a kernel: few, large tiles, of at most
# 256 MiB. The 65,536 x 512 table of a batch is one of them. With 8,192 codes a tile has as many tokens, so that its
# factors are read least often.
ACCELERATOR_TILES = Tiles(entries=1 << 26, codes=1 << 13, look_up=1 << 26, noise=1 << 26, few_launches=True)


def tiles_of(device: torch.device) -> Tiles:
    """Return the sizes for a device."""
    return TILES.get(device.type, ACCELERATOR_TILES)


def tile_shape(tokens: Tensor, codebook: Tensor, entries: int | None = None) -> tuple[int, int]:
    """Choose the tokens and codes of one tile of the (N, K) table, with at most `entries_of_tile` entries."""
    entries = entries_of_tile(tokens, entries)
    codes = max(1, min(len(codebook), tiles_of(tokens.device).codes, entries))
    return entries // codes, codes


def concatenate(parts: list[Tensor], dim: int = 0) -> Tensor:
    """Concatenate `parts`, without a copy of a single one."""
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)


def entries_of_tile(tokens: Tensor, entries: int | None = None) -> int:
    """Return `entries`, or the default number of entries of a tile for the device of `tokens` if it is None."""
    return tiles_of(tokens.device).entries if entries is None else entries


def blocks(length: int, size: int) -> Iterator[slice]:
    """Yield the slices of `size` that cover `length`, the last one possibly shorter; one empty slice for length 0."""
    return (slice(start, min(start + size, length)) for start in range(0, max(1, length), size))
