"""Directions of vectors: (..., D) -> rows of length 1."""

import torch
from torch import Tensor


def unit_vectors(vectors: Tensor) -> Tensor:
    """Rows of `vectors` (..., D) at length 1; a zero row stays zero. Neither tiny nor huge rows under- or overflow."""
    return directions_and_lengths(vectors)[0]


def directions_and_lengths(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """The unit vectors (..., D) of `vectors` (..., D), and the lengths (..., 1) that were taken from them.

    The length of a zero row is given as 1, so that dividing by it is safe. A length beyond the type's range is inf.
    """
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)  # vector_norm(ord=inf) takes ten times as long
    largest = torch.where(largest > 0, largest, 1)
    scaled = vectors / largest
    # A zero row has length 0 here; 1 instead keeps it, and its gradient, finite.
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    length = torch.where(length > 0, length, 1)
    return scaled / length, length * largest


def at_least_float32(vectors: Tensor, like: Tensor) -> Tensor:
    """`vectors` in float32, or in float64 where `like` is."""
    return vectors.to(torch.promote_types(like.dtype, torch.float32))
