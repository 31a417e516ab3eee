"""The von Mises-Fisher distribution on the unit sphere of R^m: samples, and how far it is from the uniform one.

Its density at a direction y is C_m(kappa) exp(kappa mean . y). Hyperspherical VAEs (Davidson et al. 2018) have it for
their posterior.
"""

import math
from typing import Any

import torch
from torch import Tensor

from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.vectors import refuse_second_derivative, unit_vectors

# Below this sqrt(nu^2 + kappa^2) the power series is summed; from there on the uniform expansion, whose next term is
# below 1e-10.
_LARGE = 64.0
# Of the power series, for kappa up to _LARGE: the next one is below 1e-16 of the sum.
_SERIES_TERMS = 120
# log of the uniform expansion of I_nu (Debye's: DLMF 10.41.3, 10.41.10): the coefficients of (nu / R)^(2j) / R^k, with
# k from 1 and j from 0, R = sqrt(nu^2 + kappa^2).
_LOG_DEBYE = (
    (1 / 8, -5 / 24),
    (1 / 16, -3 / 8, 5 / 16),
    (25 / 384, -531 / 640, 221 / 128, -1105 / 1152),
    (13 / 128, -71 / 32, 531 / 64, -339 / 32, 565 / 128),
    (1073 / 5120, -50049 / 7168, 186821 / 4608, -44899 / 512, 82825 / 1024, -82825 / 3072),
)


def sample(mean: Tensor, concentration: Tensor, noise: ImageNoise) -> Tensor:
    """A direction of each distribution: means (B, ..., m) of length 1, kappas (B, ..., 1) > 0 -> (B, ..., m).

    With m >= 2. The gradient goes to mean and kappa along the accepted proposal's path; that the acceptance depends on
    kappa is not in it (Wood's rejection sampling, as Davidson et al. 2018 use it).
    """
    pull, spread = _pull_and_spread(concentration, mean.shape[-1])
    direction = _accepted_direction(mean, pull.detach(), noise)
    along, across = direction[..., :1], direction[..., 1:]
    scale = 1 + pull * along
    # The sphere is drawn towards its first pole: uniform directions become proposals.
    return _from_pole(torch.cat([(along + pull) / scale, spread * across / scale], dim=-1), mean)


def kl_to_uniform(concentration: Tensor, dimensions: int) -> Tensor:
    """KL divergence from the uniform distribution on the sphere of R^m, m >= 2, in nats: kappas > 0 -> their shape.

    Computed in float64, finite for every finite kappa, with errors below 1e-9 nats; first derivatives only.
    """
    return _KLToUniform.apply(concentration, dimensions / 2 - 1)


def _pull_and_spread(concentration: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """x_0 of Wood's proposal, and sqrt(1 - x_0^2), without a difference in which a large kappa would vanish."""
    free = float(dimensions - 1)
    total = free + torch.hypot(2 * concentration, torch.full_like(concentration, free))
    return 2 * concentration / total, (2 * free / total).sqrt()


@torch.compiler.disable
@torch.no_grad()
def _accepted_direction(mean: Tensor, pull: Tensor, noise: ImageNoise) -> Tensor:
    """Directions (B, ..., m) whose proposals Wood's test accepts, the first ones of each token.

    A uniform direction u holds all of a proposal: (1 - u_1) / 2 is Beta((m - 1) / 2, (m - 1) / 2), and its other
    components point anywhere. With t = x_0 u_1 the logarithm of the test's ratio is (m - 1) (t / (1 + t) - log(1 + t)).
    """
    direction = torch.zeros_like(mean)
    waiting = torch.ones_like(pull, dtype=torch.bool)
    while True:  # two of three proposals are accepted, or more
        # Every image draws in every round, so that its noise is its own.
        proposed, threshold = unit_vectors(noise.normal(mean)), noise.uniform(pull).log()
        t = pull * proposed[..., :1]
        # At t = -1 the ratio is 0 but computed as NaN. A kappa of NaN is not rejected: it would be for ever.
        rejected = (threshold > (mean.shape[-1] - 1) * (t / (1 + t) - t.log1p())) | (t <= -1)
        direction = torch.where(waiting & ~rejected, proposed, direction)
        waiting &= rejected
        if not waiting.any():
            return direction


def _from_pole(directions: Tensor, mean: Tensor) -> Tensor:
    """Turns directions (..., m) so that the first pole comes to the mean (..., m): a Householder reflection.

    Of the two poles it is the one farther from the mean that the mirror stands against, so that it is never degenerate.
    """
    side = torch.where(mean[..., :1] >= 0, 1.0, -1.0).to(mean.dtype)
    normal = torch.cat([mean[..., :1] + side, mean[..., 1:]], dim=-1)
    along_normal = (directions * normal).sum(dim=-1, keepdim=True) / normal.square().sum(dim=-1, keepdim=True)
    return side * (2 * along_normal * normal - directions)


class _KLToUniform(torch.autograd.Function):
    """KL = kappa A - log(0F1(nu + 1, kappa^2 / 4)), with nu = m / 2 - 1 and A = I_(nu + 1) / I_nu."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, order: float) -> Tensor:
        kappa = concentration.double()
        is_large = torch.hypot(kappa, torch.full_like(kappa, order)) >= _LARGE
        value, slope = (
            torch.where(is_large, *pair)
            for pair in zip(_uniform_expansion(kappa, order), _power_series(kappa, order), strict=True)
        )
        ctx.save_for_backward(slope.to(concentration.dtype))
        return value.to(concentration.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        refuse_second_derivative("the divergence of von Mises-Fisher distributions")
        (slope,) = ctx.saved_tensors
        return gradient * slope, None


def _power_series(kappa: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """KL and its derivative by kappa, for kappas up to _LARGE: all terms are positive."""
    kappa = kappa.clamp(max=_LARGE)
    x = kappa.square() / 4
    own, next_order = torch.ones_like(x), torch.ones_like(x)  # 0F1 at nu + 1 and nu + 2, from the last term on
    for k in range(_SERIES_TERMS, 0, -1):
        own = 1 + own * x / (k * (order + k))
        next_order = 1 + next_order * x / (k * (order + 1 + k))
    ratio = kappa / (2 * (order + 1)) * next_order / own  # A
    slope_of_ratio = 1 - ratio.square() - (2 * order + 1) * ratio / kappa
    return kappa * ratio - own.log(), kappa * slope_of_ratio


def _uniform_expansion(kappa: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """KL and its derivative by kappa, for a large R = sqrt(nu^2 + kappa^2), with no difference of large numbers."""
    radius = torch.hypot(kappa, torch.full_like(kappa, order))
    t = (order / radius).square()
    rest = (kappa / radius).square()  # 1 - t
    value = order * ((order + radius) / 2).log() - order - math.lgamma(order + 1)
    value = value + (2 * math.pi * radius).log() / 2 - rest / 2
    # By log kappa: R grows by rest R, t shrinks by 2 rest t.
    slope = order * kappa / (order + radius) * (kappa / radius) + rest / 2 - t * rest
    for k, coefficients in enumerate(_LOG_DEBYE, start=1):
        for j, coefficient in enumerate(coefficients):
            n, term = k + 2 * j, coefficient * t**j / radius**k
            value = value - term * (1 + n * rest)
            slope = slope + term * n * rest * (1 + n * rest - 2 * t)
    return value, slope / kappa
