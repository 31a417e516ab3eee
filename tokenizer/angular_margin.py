"""SAMP, the spherical angular-margin prior, as pure functions (ArcVQ-VAE, arXiv 2605.13517, section 3).

latents (N, D), codebook (K, D) -> arc_loss
codebook (K, D), radius         -> codebook inside the ball
step                            -> radius of the ball, weight of the arc loss
"""

import math

import torch
import torch.distributed as dist
from torch import Tensor

from tokenizer.functional.arc_tiles import ArcLossFunction
from tokenizer.functional.distributed import all_gather_with_gradient, all_reduce_sum_with_gradient
from tokenizer.functional.float64 import real_dtype
from tokenizer.functional.vectors import unit_vectors

# exp() of a larger exponent overflows float32; a ball of radius e^80 constrains no codebook that float32 can hold.
_LARGEST_EXPONENT = 80.0


def arc_loss(
    latents: Tensor,
    codebook: Tensor,
    scale: float = 10.0,
    margin: float = 0.1,
    top_k: int = 3,
    tile_entries: int | None = None,
) -> Tensor:
    """Compute the arc-cosine additive-margin loss: it pulls the closest latents towards every code (eqs. 10-12, 17-18).

    For each code k, with P_k the `top_k` latents of smallest angle to it,

        L = -1/K sum_k log( sum_P exp(s cos(theta + m)) / (sum_P exp(s cos(theta + m)) + sum_notP exp(s cos theta)) ).

    The similarities are computed in tiles and never held together; sums are taken in float32 under any autocast. Angles
    and gradients are accurate even for tokens within 5e-4 radians of a code, but in float32 their cosines are equal up
    to rounding, so rounding decides which of them are among the `top_k`.

    Args:
        latents: (N, D) encoder outputs, any floating dtype; the gradient reaches these alone, and only once: a second
            derivative is refused with a RuntimeError.
        codebook: (K, D) table of any floating dtype, treated as a constant.
        scale: s, the inverse temperature, > 0.
        margin: m, added to the angle of a positive pair, in radians, 0 <= m <= pi.
        top_k: positives per code, >= 1; more than N means all N.
        tile_entries: similarities held at once, >= 1; None: the default of the device. Results differ by rounding only.

    Returns:
        The loss, a scalar >= 0 in float32 (float64 for float64 latents).

    Raises:
        ValueError: no latents, no codes, sizes that do not match, or an argument out of its range.
    """
    _check_codes(codebook)
    return arc_terms(latents, codebook, scale, margin, top_k, tile_entries=tile_entries)[0].mean()


def arc_loss_and_codes(
    latents: Tensor, codebook: Tensor, scale: float, margin: float, top_k: int
) -> tuple[Tensor, Tensor]:
    """Compute `arc_loss` and, in the same pass, each latent's code of largest cosine, int64 (N,)."""
    _check_codes(codebook)
    terms, codes = arc_terms(latents, codebook, scale, margin, top_k, search=True)
    return terms.mean(), codes


def global_arc_loss(latents: Tensor, codebook: Tensor, scale: float, margin: float, top_k: int) -> Tensor:
    """Compute `arc_loss` of the latents of all W processes together; each process passes its own (n, D).

    Every process gathers all latents and computes the terms of its K / W codes, so that W processes share the work of
    one. Every process must call this with equally many latents: otherwise the communication fails or hangs.

    Returns:
        The loss, the same scalar on each process. Its gradient with respect to this process's latents is W times the
        loss's own, so that the mean that DistributedDataParallel takes over the processes gives the parameters'
        gradient of one process with the global batch.
    """
    rank, world = dist.get_rank(), dist.get_world_size()
    share = slice(len(codebook) * rank // world, len(codebook) * (rank + 1) // world)
    terms, _ = arc_terms(all_gather_with_gradient(latents), codebook[share], scale, margin, top_k)
    return all_reduce_sum_with_gradient(terms.sum()) / len(codebook)


def arc_terms(
    latents: Tensor,
    codebook: Tensor,
    scale: float,
    margin: float,
    top_k: int,
    search: bool = False,
    tile_entries: int | None = None,
) -> tuple[Tensor, Tensor | None]:
    """Compute the terms (K,) that `arc_loss` averages and, with `search`, the code of each latent (N,)."""
    _check_shapes(latents, codebook)
    check_arc_arguments(scale, margin, top_k)
    if tile_entries is not None and tile_entries < 1:
        raise ValueError(f"arc_loss needs tile_entries >= 1, got {tile_entries}")
    return ArcLossFunction.apply(latents, codebook.detach(), scale, margin, top_k, search, tile_entries)


def check_arc_arguments(scale: float, margin: float, top_k: int) -> None:
    """Raise ValueError if an argument of `arc_loss` is out of its range."""
    if not 0 < scale < math.inf:
        raise ValueError(f"arc_loss needs a finite scale > 0, got {scale}")
    if not 0 <= margin <= math.pi:
        raise ValueError(f"arc_loss needs a margin between 0 and pi radians, got {margin}")
    if top_k < 1:
        raise ValueError(f"arc_loss needs top_k >= 1, got {top_k}")


def project_to_ball(codebook: Tensor, radius: float | Tensor) -> Tensor:
    """Shrink the rows of `codebook` (K, D) outside the ball of `radius` onto its surface (eqs. 6-7).

    Rows inside, including zero rows, are returned unchanged, bit for bit.
    """
    length = torch.linalg.vector_norm(codebook, dim=-1, keepdim=True)
    return torch.where(length > radius, unit_vectors(codebook) * radius, codebook)


def ball_radius(step: Tensor, growth: float) -> Tensor:
    """Compute the radius r_t = exp(alpha t) of the ball after `step` = t updates (eq. 5): a scalar, always finite."""
    return torch.exp((growth * step.to(real_dtype(step.device))).clamp(max=_LARGEST_EXPONENT))


def arc_weight(step: Tensor, initial: float, decay: float) -> Tensor:
    """Compute the weight gamma_t = gamma_0 exp(-lambda t) of the arc loss after `step` = t updates (eq. 13)."""
    return initial * torch.exp(-decay * step.to(real_dtype(step.device)))


def _check_codes(codebook: Tensor) -> None:
    if not len(codebook):
        raise ValueError("arc_loss needs at least one code, got none")


def _check_shapes(latents: Tensor, codebook: Tensor) -> None:
    if latents.ndim != 2 or codebook.ndim != 2 or latents.shape[1] != codebook.shape[1]:
        shapes = f"{tuple(latents.shape)} and {tuple(codebook.shape)}"
        raise ValueError(f"arc_loss takes latents (N, D) and a codebook (K, D), got {shapes}")
    if latents.shape[0] == 0 or latents.shape[1] == 0:
        raise ValueError(f"arc_loss needs at least one latent of one dimension, got {tuple(latents.shape)}")
