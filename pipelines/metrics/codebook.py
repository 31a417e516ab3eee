"""Measure the geometry of a codebook: norms, distances between codes, effective rank, share on the ball."""

import math

import torch
from torch import Tensor

from tokenizer.functional.float64 import as_float64


def codebook_geometry(codebook: Tensor, radius: float | None = None) -> dict[str, float]:
    """Compute geometric statistics of a codebook (K, D), floating point, in float64.

    Args:
        codebook: the effective table.
        radius: radius of the ball that bounds it; None or infinite: no ball.

    Returns:
        norm_mean, norm_min, norm_max: Euclidean lengths of the codes. distance_mean, distance_min: over all pairs of
            codes (nan for a single code). effective_rank: exp of the entropy of the singular values of the centred
            table divided by their sum, from 1 to min(K - 1, D) (Roy and Vetterli 2007); 0 if all codes are equal.
            share_on_ball: share of codes whose norm is the radius, only with a ball.

    Raises:
        ValueError: a codebook of another shape or dtype, or with values that are not finite.
    """
    if codebook.ndim != 2 or not codebook.is_floating_point() or codebook.numel() == 0:
        raise ValueError(f"the codebook is {codebook.dtype} {tuple(codebook.shape)}, not floating point (K, D)")
    if not torch.isfinite(codebook).all():
        raise ValueError("the codebook holds NaN or infinity; the model diverged")
    table = as_float64(codebook.detach())
    norms = torch.linalg.vector_norm(table, dim=1)
    mean, smallest = _distances(table)
    result = {
        "norm_mean": norms.mean().item(),
        "norm_min": norms.min().item(),
        "norm_max": norms.max().item(),
        "distance_mean": mean,
        "distance_min": smallest,
        "effective_rank": effective_rank(table - table.mean(dim=0), rounding=_rounding(table)),
    }
    if radius is not None and math.isfinite(radius):
        # The table is float32, so a norm that was set to the radius deviates by rounding.
        result["share_on_ball"] = (norms >= radius * (1 - 1e-6)).double().mean().item()
    return result


def effective_rank(matrix: Tensor, rounding: float = 0.0) -> float:
    """Compute exp of the entropy of normalised singular values (Roy and Vetterli 2007); 0 if all <= `rounding`."""
    values = torch.linalg.svdvals(as_float64(matrix))
    if values.max() <= rounding:
        return 0.0
    shares = values / values.sum()
    return torch.exp(-torch.special.xlogy(shares, shares).sum()).item()


def _rounding(table: Tensor) -> float:
    """Bound the rounding error that remains when the mean is subtracted from a table of equal codes."""
    return torch.finfo(torch.float64).eps * table.numel() * table.abs().max().item()


def _distances(table: Tensor) -> tuple[float, float]:
    """Compute the mean and smallest distance over all pairs of rows, a block of rows at a time."""
    total, smallest = 0.0, math.inf
    for start in range(0, len(table), 256):
        rows = table[start : start + 256]
        distances = torch.cdist(rows, table, compute_mode="donot_use_mm_for_euclid_dist")
        total += distances.sum().item()
        distances[torch.arange(len(rows)), torch.arange(start, start + len(rows))] = torch.inf
        smallest = min(smallest, distances.min().item())
    pairs = len(table) * (len(table) - 1)
    return (total / pairs, smallest) if pairs else (math.nan, math.nan)
