"""The trace of the square root of a covariance, by products of matrices alone."""

import math

import torch
from torch import Tensor


def root_trace(covariance: Tensor) -> Tensor:
    """Compute tr S^(1/2) of a positive semi-definite S (D, D): a scalar. Only first derivatives exist.

    8 tr S times the dtype's epsilon is added to the eigenvalues, so that directions without variance have a finite
    gradient. A matrix that is not finite gives NaN. The coupled iteration of Newton and Schulz (Higham 2008, "Functions
    of Matrices", eq. 6.35) is queued as a whole; a decomposition makes the host wait to learn whether it succeeded.
    """
    with torch.no_grad():
        share = 8 * torch.finfo(covariance.dtype).eps  # of the least eigenvalue in the trace, at least
        identity = torch.eye(len(covariance), dtype=covariance.dtype, device=covariance.device)
        trace = covariance.trace()
        # Without any variance the trace is 0, and numbers below `tiny` are too coarse to be divided by their trace.
        limits = torch.finfo(covariance.dtype)
        trace = trace + limits.tiny / limits.eps
        root, inverse = covariance / trace + share * identity, identity
        # Eigenvalues of at most 1: a root far below 1 grows by 3 / 2 each time; close to 1 its error is squared.
        for _ in range(math.ceil(math.log(share**-0.5, 1.5)) + 6):
            step = torch.addmm(identity, inverse, root, beta=1.5, alpha=-0.5)
            root, inverse = root @ step, step @ inverse
        value, slope = root.trace() * trace.sqrt(), inverse / (2 * trace.sqrt())
    # The gradient of the trace of the root is half the inverse root.
    linear = (slope * covariance).sum()
    return value + (linear - linear.detach())
