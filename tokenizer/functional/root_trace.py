"""The trace of the square root of a covariance matrix."""

import math

import torch
from torch import Tensor

from tokenizer.functional.float64 import where_float64

# Least variance in the root: a direction without any has a finite gradient.
_LEAST = 1e-6


def root_trace(covariance: Tensor) -> Tensor:
    """Compute tr S^(1/2) of a positive semi-definite S (D, D) whose eigenvalues count as at least 1e-6: a scalar.

    A CPU takes the eigenvalues. There a matrix that is not finite counts as the identity, as its eigenvalues would be
    an error. Elsewhere see `root_trace_by_products`, which takes float64.
    """
    if not takes_eigenvalues(covariance.device):
        return root_trace_by_products(covariance)
    values = where_float64(covariance)  # Metal has no decomposition
    values = torch.where(values.isfinite().all(), values, torch.eye(len(values)).to(values))
    return torch.linalg.eigvalsh(values).clamp(min=_LEAST).sqrt().sum().to(covariance.device)


def takes_eigenvalues(device: torch.device) -> bool:
    """Tell whether `root_trace` decomposes: on a GPU that makes the host wait to learn whether it succeeded."""
    return device.type in ("cpu", "mps")


def root_trace_by_products(covariance: Tensor) -> Tensor:
    """Compute `root_trace` by products of float64 matrices alone; only first derivatives exist.

    1e-6 and 8 tr S times float64's epsilon are added to the eigenvalues. A matrix that is not finite gives NaN. The
    coupled iteration of Newton and Schulz (Higham 2008, "Functions of Matrices", eq. 6.35) is queued as a whole.
    """
    with torch.no_grad():
        share = 8 * torch.finfo(torch.float64).eps  # of the least eigenvalue in the trace
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        trace = covariance.trace() + _LEAST
        root, inverse = covariance / trace + (share + _LEAST / trace) * identity, identity
        # Eigenvalues of at most 1: a root far below 1 grows by 3 / 2 each time; close to 1 its error is squared.
        for _ in range(math.ceil(math.log(share**-0.5, 1.5)) + 6):
            step = torch.addmm(identity, inverse, root, beta=1.5, alpha=-0.5)
            root, inverse = root @ step, step @ inverse
        value, slope = root.trace() * trace.sqrt(), inverse / (2 * trace.sqrt())
    # The gradient of the trace of the root is half the inverse root.
    linear = (slope * covariance).sum()
    return value + (linear - linear.detach())
