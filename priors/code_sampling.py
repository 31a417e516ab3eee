"""Logits, uniform numbers -> codes: guidance, temperature, top-k and top-p."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from priors.number_arguments import as_number, as_whole_number, described


@dataclass(frozen=True)
class CodeSampler:
    """How a code is drawn from its logits; in the order of the arguments.

    Args:
        guidance_scale: s in u + s (c - u), of logits c for the label and u for the null class; 1 is c.
        temperature: divides the logits, > 0.
        top_k: keeps the k most likely codes.
        top_p: keeps the smallest set of codes whose probability reaches p.

    Raises:
        TypeError: one of them is no number.
        ValueError: one of them is out of range.
    """

    guidance_scale: float
    temperature: float
    top_k: int | None
    top_p: float | None

    def __post_init__(self) -> None:
        numbers = {name: as_number(name, getattr(self, name)) for name in ("guidance_scale", "temperature")}
        if self.top_k is not None:
            numbers["top_k"] = as_whole_number("top_k", self.top_k)
        if self.top_p is not None:
            numbers["top_p"] = as_number("top_p", self.top_p)
        for name, number in numbers.items():
            object.__setattr__(self, name, number)  # those of numpy and torch as Python's own
        if not 0 <= self.guidance_scale < math.inf:
            raise ValueError(f"guidance_scale must be at least 0 and finite, got {self.guidance_scale}")
        if not self.temperature > 0:
            raise ValueError(f"temperature must be above 0, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"top_k must be at least 1, got {self.top_k}")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, got {self.top_p}")

    @property
    def is_guided(self) -> bool:
        """Whether the logits of the null class are needed."""
        return self.guidance_scale != 1

    def __call__(self, logits: Tensor, uniform: Tensor) -> Tensor:
        """Logits (B, K), or where it is guided (2B, K), the null class first; uniform numbers (B,) -> codes (B,)."""
        logits = logits.float()
        if self.is_guided:
            unconditional, conditional = logits.chunk(2)
            logits = unconditional + self.guidance_scale * (conditional - unconditional)
        # The largest is 0: divided by whatever temperature it stays, and others become -inf at most.
        logits = logits - logits.amax(dim=1, keepdim=True)
        probabilities = restrict(logits / self.temperature, self.top_k, self.top_p).softmax(dim=1)
        return inverse_cdf(probabilities, uniform)


def restrict(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Logits (B, K) with the codes outside top-k, then outside top-p, at -inf."""
    if top_k is None and top_p is None:
        return logits
    ordered, order = logits.sort(dim=1, descending=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    if top_p is not None:
        probabilities = ordered.softmax(dim=1)
        # A code stays while the probability before it is below p, so the first always stays.
        ordered[probabilities.cumsum(dim=1) - probabilities >= top_p] = -torch.inf
    return torch.empty_like(logits).scatter_(1, order, ordered)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """The code at which the cumulative probability (B, K) passes the uniform number (B,)."""
    cumulative = probabilities.double().cumsum(dim=1)
    # Scaled by the total, which is 1 but for rounding: a number near 1 then never passes the last possible code.
    threshold = uniform.double().unsqueeze(1) * cumulative[:, -1:]
    return torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=probabilities.shape[1] - 1)


def check_given_codes(given: Any, shape: tuple[int, ...], codebook_size: int) -> None:
    """Checks codes that are to be completed, -1 where one is to be drawn.

    Raises:
        TypeError: no tensor.
        ValueError: of another shape or type, or beyond the codebook.
    """
    remedy = "take them from vqvae.encode_codes, and set -1 where one is to be drawn"
    if not isinstance(given, Tensor):
        raise TypeError(f"given codes are a Tensor, int64 {shape}, got {described(given)}; {remedy}")
    if tuple(given.shape) != shape or given.dtype != torch.int64:
        raise ValueError(f"given codes are int64 {shape}, got {given.dtype} {tuple(given.shape)}; {remedy}")
    if given.min() < -1 or given.max() >= codebook_size:
        found = f"{given.min().item()} to {given.max().item()}"
        raise ValueError(f"given codes are 0 to {codebook_size - 1}, or -1 to be drawn, got {found}; {remedy}")
