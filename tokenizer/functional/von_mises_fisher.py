"""The von Mises-Fisher distribution on the unit sphere of R^m: samples, and KL divergence from the uniform one.

Its density at a direction y is C_m(kappa) exp(kappa mean . y). It is the posterior of hyperspherical VAEs (Davidson et
al. 2018).
"""

import math
from typing import Any

import torch
from torch import Tensor

from tokenizer.functional.float64 import real_dtype
from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.vectors import refuse_second_derivative, unit_vectors

# At least two thirds of the proposals are accepted: a token is left with a probability below 3^-26 = 4e-13.
_ROUNDS = 26
# Below this value of sqrt(nu^2 + kappa^2) the power series is used, above it the uniform expansion, whose first
# neglected term is then below 1e-10.
_LARGE = 64.0
# Terms of the power series for kappa up to _LARGE: the first neglected one is below 1e-16 of the sum.
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
    """Sample a direction: unit means (B, ..., m), concentrations kappa (B, ..., 1) > 0 -> (B, ..., m), for m >= 2.

    The gradient reaches mean and kappa through the accepted proposal; the dependence of the acceptance on kappa is
    ignored (Wood's rejection sampling, as in Davidson et al. 2018).
    """
    pull, spread = _pull_and_spread(concentration, mean.shape[-1])
    direction = _accepted_direction(mean, pull.detach(), noise)
    along, across = direction[..., :1], direction[..., 1:]
    scale = 1 + pull * along
    # Map uniform directions to proposals by contracting the sphere towards its first pole.
    return _from_pole(torch.cat([(along + pull) / scale, spread * across / scale], dim=-1), mean)


def kl_to_uniform(concentration: Tensor, dimensions: int) -> Tensor:
    """Compute the KL divergence in nats from the uniform distribution on the sphere of R^m: kappas > 0 -> their shape.

    Needs m = `dimensions` >= 2. Computed in float64 with errors below 1e-9 nats (in float32 on a device without it),
    finite for every finite kappa; only first derivatives exist.
    """
    return _KLToUniform.apply(concentration, dimensions / 2 - 1)


def _pull_and_spread(concentration: Tensor, dimensions: int) -> tuple[Tensor, Tensor]:
    """Compute x_0 of Wood's proposal and sqrt(1 - x_0^2), without a cancelling difference for large kappa."""
    free = float(dimensions - 1)
    total = free + torch.hypot(2 * concentration, torch.full_like(concentration, free))
    return 2 * concentration / total, (2 * free / total).sqrt()


@torch.compiler.disable  # as many rounds as a compiler would write out
@torch.no_grad()
def _accepted_direction(mean: Tensor, pull: Tensor, noise: ImageNoise) -> Tensor:
    """Draw directions (B, ..., m) until Wood's test accepts the proposal of each token; the first accepted one counts.

    After `_ROUNDS` rounds the last proposal counts, accepted or not.

    A uniform direction u determines a whole proposal: (1 - u_1) / 2 is Beta((m - 1) / 2, (m - 1) / 2), and the other
    components point in a uniform direction. With t = x_0 u_1 the logarithm of the acceptance ratio is (m - 1) (t / (1 +
    t) - log(1 + t)).
    """
    direction = torch.zeros_like(mean)
    waiting = torch.ones_like(pull, dtype=torch.bool)
    thresholds = noise.uniform(pull.expand(*pull.shape[:-1], _ROUNDS)).log()
    for threshold in thresholds.split(1, dim=-1):
        # Every image draws in every round, so that its noise does not depend on the other images.
        proposed = unit_vectors(noise.normal(mean))
        t = pull * proposed[..., :1]
        # At t = -1 the ratio is 0 but evaluates to NaN. A kappa of NaN is accepted.
        rejected = (threshold > (mean.shape[-1] - 1) * (t / (1 + t) - t.log1p())) | (t <= -1)
        direction = torch.where(waiting, proposed, direction)
        waiting &= rejected
        # On a device the host would wait for the answer.
        if waiting.device.type == "cpu" and not waiting.any():
            break
    return direction


def _from_pole(directions: Tensor, mean: Tensor) -> Tensor:
    """Reflect directions (..., m) so that the first pole maps to the mean (..., m) (Householder).

    The mirror is built from the pole that is farther from the mean, so it is never degenerate.
    """
    side = torch.where(mean[..., :1] >= 0, 1.0, -1.0).to(mean.dtype)
    normal = torch.cat([mean[..., :1] + side, mean[..., 1:]], dim=-1)
    along_normal = (directions * normal).sum(dim=-1, keepdim=True) / normal.square().sum(dim=-1, keepdim=True)
    return side * (2 * along_normal * normal - directions)


class _KLToUniform(torch.autograd.Function):
    """KL = kappa A - log(0F1(nu + 1, kappa^2 / 4)), with nu = m / 2 - 1 and A = I_(nu + 1) / I_nu."""

    @staticmethod
    def forward(ctx: Any, concentration: Tensor, order: float) -> Tensor:
        kappa = concentration.to(real_dtype(concentration.device))
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
    """Compute the KL and its derivative by kappa for kappas up to _LARGE; all terms are positive."""
    kappa = kappa.clamp(max=_LARGE)
    x = kappa.square() / 4
    # 0F1 at nu + 1 and nu + 2, by Horner's scheme from the last term on.
    own = next_order = one = torch.ones_like(x)
    for k in range(_SERIES_TERMS, 0, -1):
        own = torch.addcmul(one, own, x, value=1 / (k * (order + k)))
        next_order = torch.addcmul(one, next_order, x, value=1 / (k * (order + 1 + k)))
    ratio = kappa / (2 * (order + 1)) * next_order / own  # A
    slope_of_ratio = 1 - ratio.square() - (2 * order + 1) * ratio / kappa
    return kappa * ratio - own.log(), kappa * slope_of_ratio


def _uniform_expansion(kappa: Tensor, order: float) -> tuple[Tensor, Tensor]:
    """Compute the KL and its derivative by kappa for a large R = sqrt(nu^2 + kappa^2), without cancellation."""
    radius = torch.hypot(kappa, torch.full_like(kappa, order))
    t = (order / radius).square()
    rest = (kappa / radius).square()  # 1 - t
    value = order * ((order + radius) / 2).log() - order - math.lgamma(order + 1)
    value = value + (2 * math.pi * radius).log() / 2 - rest / 2
    # Derivative by log kappa: dR = rest R, dt = -2 rest t.
    slope = order * kappa / (order + radius) * (kappa / radius) + rest / 2 - t * rest
    for k, coefficients in enumerate(_LOG_DEBYE, start=1):
        for j, coefficient in enumerate(coefficients):
            n, term = k + 2 * j, coefficient * t**j / radius**k
            value = value - term * (1 + n * rest)
            slope = slope + term * n * rest * (1 + n * rest - 2 * t)
    return value, slope / kappa
