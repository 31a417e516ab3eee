"""Noise as a function of seed, image and element: any split of a batch and any kind of device draw the same.

The n-th word of an image is the n-th output of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom
number generators") from a start that the same mixer makes of seed and image. It is computed with integer operations of
tensors: the words are equal on all devices, the floating-point numbers made of them up to rounding.
"""

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from tokenizer.functional.tiles import blocks, tiles_of

_WEYL = 0x9E3779B97F4A7C15  # SplitMix64's increment
_MIXER = ((30, 0xBF58476D1CE4E5B9), (27, 0x94D049BB133111EB), (31, None))  # its shifts and factors
# Words that one draw can take of an image; the next draw begins behind them.
_WORDS_OF_DRAW = 1 << 40


def noise_key(seed: int) -> Tensor:
    """Make the key that `ImageNoise` takes for a seed, any integer: an int64 scalar on the CPU.

    Compiled code takes the key: for a seed that is an int it would be compiled anew.
    """
    word = seed % 2**64
    for shift, factor in _MIXER:
        word ^= word >> shift
        word = word * (factor or 1) % 2**64
    return torch.tensor(_signed(word))


class ImageNoise:
    """Noise for the images of a batch; each call draws anew. No draw reads from the device or copies to it.

    Args:
        images: B, the number of images.
        device: device on which the noise is drawn.
        seed: determines the noise together with the images' indices in the global batch; an integer, or its
            `noise_key`; None: draw a key from PyTorch's global generator of the CPU.
        first_image: index of the first image in the global batch, an int or an int64 scalar on the CPU.
    """

    def __init__(
        self, images: int, device: torch.device, seed: int | Tensor | None = None, first_image: int | Tensor = 0
    ):
        if seed is None:
            seed = torch.randint(1 << 62, ())
        elif not isinstance(seed, Tensor):
            seed = noise_key(seed)
        # A scalar on the CPU is an argument of the kernel that adds it.
        starts = torch.arange(images, device=device).add_(first_image).mul_(_signed(_WEYL)).add_(seed)
        self._starts = _mix(starts, torch.empty_like(starts))  # (B,)
        self._draws = 0

    def words(self, count: int) -> Tensor:
        """Draw `count` random words for each image: (B, count) int64, all of its values alike."""
        words = torch.empty(len(self._starts), count, dtype=torch.int64, device=self._starts.device)
        for rows, columns, part, spare in self._tiles(count):
            self._fill(part, spare, self._draws, rows, columns)
            words[rows, columns] = part
        self._draws += 1
        return words

    def normal(self, like: Tensor) -> Tensor:
        """Draw standard normal noise of the shape (B, ...) and dtype of `like`, by the method of Box and Muller."""
        count = _count(like)
        noise = _empty(like, -(-count // 2) * 2)
        is_double = noise.dtype == torch.float64
        radii, angles = noise.chunk(2, dim=1)
        # In float32 a word makes both: with 40 bits the radius goes beyond 7.
        bits = (53, 53) if is_double else (40, 24)
        for rows, columns, words, spare in self._tiles(radii.shape[1]):
            radius, angle = radii[rows, columns], angles[rows, columns]
            self._fill(words, spare, self._draws, rows, columns)
            # Halves are added, because 0 has no logarithm.
            radius.copy_(_top_bits(words, bits[0], spare)).add_(0.5).mul_(2.0 ** -bits[0]).log_().mul_(-2).sqrt_()
            if is_double:
                self._fill(words, spare, self._draws + 1, rows, columns)
                angle.copy_(_top_bits(words, bits[1], spare))
            else:
                angle.copy_(words.bitwise_and_((1 << bits[1]) - 1))
            angle.mul_(2 * math.pi * 2.0 ** -bits[1])
            cosine = angle.cos()
            angle.sin_().mul_(radius)
            radius.mul_(cosine)
        self._draws += 2
        return noise[:, :count].reshape(like.shape).to(like.dtype)

    def integers(self, below: int) -> Tensor:
        """Draw an integer of [0, below) for each image: (B,) int64; `below` is at most 2^31.

        Their probabilities differ by less than below / 2^32 of themselves.
        """
        words = self.words(1).squeeze(1)
        return _top_bits(words, 32, words).mul_(below) >> 32

    def uniform(self, like: Tensor) -> Tensor:
        """Draw uniform noise in [0, 1) of the shape (B, ...) and dtype of `like`, multiples of 2^-24, or of 2^-53."""
        noise = _empty(like, _count(like))
        bits = 53 if noise.dtype == torch.float64 else 24
        for part, integers, spare in self._parts(noise):
            part.copy_(_top_bits(integers, bits, spare)).mul_(2.0**-bits)
        return noise.view(like.shape).to(like.dtype)

    def gumbel(self, like: Tensor) -> Tensor:
        """Draw standard Gumbel noise, -log(-log(uniform)), of the shape (B, ...) and dtype of `like`; always finite."""
        noise = _empty(like, _count(like))
        bits = 53 if noise.dtype == torch.float64 else 31
        for part, integers, spare in self._parts(noise):
            # The noise is large where u, 1 - uniform, is small; therefore u is drawn, with all the bits that there are.
            u = part.copy_(_top_bits(integers, bits, spare)).add_(0.5).mul_(2.0**-bits)
            rest = 1 - u.clamp_(max=1 - torch.finfo(u.dtype).eps / 2)
            # -log(1 - u) is at least u, which it is where 1 - u rounds to 1. (log1p takes ten times as long.)
            torch.maximum(rest.log_().neg_(), u, out=u).log_().neg_()
        return noise.view(like.shape).to(like.dtype)

    def _parts(self, noise: Tensor) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Yield the parts of `noise` (B, n), each with as many integers of as many bits, and memory for as many."""
        numbers = 1 if noise.dtype == torch.float64 else 2  # of a word
        for rows, columns, words, spare in self._tiles(-(-noise.shape[1] // numbers)):
            part = noise[rows, columns.start * numbers : columns.stop * numbers]
            self._fill(words, spare, self._draws, rows, columns)
            if numbers == 2:
                words, spare = words.view(torch.int32), spare.view(torch.int32)
            yield part, words[:, : part.shape[1]], spare[:, : part.shape[1]]
        self._draws += 1

    def _tiles(self, count: int) -> Iterator[tuple[slice, slice, Tensor, Tensor]]:
        """Yield images and words, for all images and `count` words of each, and memory for as many int64, twice."""
        images, device = len(self._starts), self._starts.device
        # A compiler fuses the operations itself.
        most = max(1, images * count) if torch.compiler.is_compiling() else tiles_of(device).noise
        height, width = max(1, most // max(1, count)), min(count, most)
        # Apart: of two halves of one tensor, code that torch 2.14 compiles for AVX2 computes wrong words.
        memory = [torch.empty(min(images, height) * width, dtype=torch.int64, device=device) for _ in range(2)]
        for rows in blocks(images, height):
            for columns in blocks(count, max(1, width)):
                shape = rows.stop - rows.start, columns.stop - columns.start
                yield rows, columns, *(part[: math.prod(shape)].view(shape) for part in memory)

    def _fill(self, words: Tensor, spare: Tensor, draw: int, rows: slice, columns: slice) -> None:
        """Fill `words` with the words `columns` of a draw for the images `rows`; overwrites `spare`."""
        counters = torch.arange(columns.start, columns.stop, device=words.device)
        if torch.compiler.is_compiling():  # as a tensor's values, of which a compiler computes no bounds either
            counters = counters + (self._starts[:1] & 0)
        # Python wraps this product around: a compiler computes it without bounds, and finds it too large.
        first = _signed(draw * _WORDS_OF_DRAW * _WEYL % 2**64)
        torch.add((self._starts[rows] + first).unsqueeze(1), counters, alpha=_signed(_WEYL), out=words)
        _mix(words, spare)


def _mix(words: Tensor, spare: Tensor) -> Tensor:
    """Apply SplitMix64's mixer to int64 `words`, in place; overwrites `spare`."""
    for shift, factor in _MIXER:
        words.bitwise_xor_(_top_bits(words, 64 - shift, spare))
        if factor is not None:
            words.mul_(_signed(factor))
    return words


def _top_bits(integers: Tensor, bits: int, out: Tensor) -> Tensor:
    """Take the highest `bits` of int32 or int64 `integers`, as numbers from 0 on, into `out`."""
    # A shift of signed integers repeats the sign, which the mask removes.
    torch.bitwise_right_shift(integers, integers.itemsize * 8 - bits, out=out)
    return out.bitwise_and_((1 << bits) - 1)


def _signed(word: int) -> int:
    """Return the int64 with the bits of a `word` in [0, 2^64)."""
    return word - (1 << 64) if word >= 1 << 63 else word


def _count(like: Tensor) -> int:
    """Return the number of elements of each image of `like` (B, ...)."""
    return math.prod(like.shape[1:])


def _empty(like: Tensor, count: int) -> Tensor:
    """Allocate noise (B, count) in the dtype of `like` (B, ...), but float32 at least."""
    return torch.empty(len(like), count, dtype=torch.promote_types(like.dtype, torch.float32), device=like.device)
