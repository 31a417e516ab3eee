"""Sample codes: logits, uniform numbers -> codes, with guidance, temperature, top-k and top-p."""

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from priors.number_arguments import as_number, as_whole_number, described
from tokenizer.functional.float64 import as_float64


@dataclass(frozen=True)
class CodeSampler:
    """Options for drawing a code from its logits, applied in the order of the arguments.

    Args:
        guidance_scale: s in u + s (c - u), with logits c for the label and u for the null class; 1 gives c.
        temperature: divides the logits, > 0.
        top_k: keep the k most likely codes.
        top_p: keep the smallest set of codes whose probability reaches p.

    Raises:
        TypeError: an option is no number.
        ValueError: an option is out of range.
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
            object.__setattr__(self, name, number)  # converts numbers of numpy and torch to Python's
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
        """Draw codes (B,): logits (B, K), or (2B, K) with the null class first if guided; uniform numbers (B,)."""
        logits = logits.float()
        if self.is_guided:
            unconditional, conditional = logits.chunk(2)
            logits = unconditional + self.guidance_scale * (conditional - unconditional)
        # The largest logit becomes 0 and stays 0 at any temperature; the others can only overflow to -inf.
        logits = logits - logits.amax(dim=1, keepdim=True)
        probabilities = restrict(logits / self.temperature, self.top_k, self.top_p).softmax(dim=1)
        return inverse_cdf(probabilities, uniform)


def restrict(logits: Tensor, top_k: int | None, top_p: float | None) -> Tensor:
    """Set the logits (B, K) of codes outside top-k, then outside top-p, to -inf."""
    if top_k is None and top_p is None:
        return logits
    ordered, order = logits.sort(dim=1, descending=True)
    if top_k is not None:
        ordered[:, top_k:] = -torch.inf
    if top_p is not None:
        probabilities = ordered.softmax(dim=1)
        # A code is kept while the probability of the codes before it is below p, so the first is always kept.
        ordered[probabilities.cumsum(dim=1) - probabilities >= top_p] = -torch.inf
    return torch.empty_like(logits).scatter_(1, order, ordered)


def inverse_cdf(probabilities: Tensor, uniform: Tensor) -> Tensor:
    """Find the code at which the cumulative probability (B, K) exceeds the uniform number (B,)."""
    cumulative = as_float64(probabilities).cumsum(dim=1)
    # Scaled by the total (1 up to rounding), so that a number near 1 never exceeds the last possible code.
    threshold = as_float64(uniform).unsqueeze(1) * cumulative[:, -1:]
    codes = torch.searchsorted(cumulative, threshold, right=True).squeeze(1).clamp(max=probabilities.shape[1] - 1)
    return codes.to(probabilities.device)


def check_given_codes(given: Any, shape: tuple[int, ...], codebook_size: int) -> None:
    """Check codes to be completed, with -1 for each code to be drawn.

    Raises:
        TypeError: the codes are no tensor.
        ValueError: the codes have another shape or dtype, or are outside the codebook.
    """
    remedy = "take them from vqvae.encode_codes, and set -1 where one is to be drawn"
    if not isinstance(given, Tensor):
        raise TypeError(f"given codes are a Tensor, int64 {shape}, got {described(given)}; {remedy}")
    if tuple(given.shape) != shape or given.dtype != torch.int64:
        raise ValueError(f"given codes are int64 {shape}, got {given.dtype} {tuple(given.shape)}; {remedy}")
    if given.min() < -1 or given.max() >= codebook_size:
        values = f"{given.min().item()} to {given.max().item()}"
        raise ValueError(f"given codes are 0 to {codebook_size - 1}, or -1 to be drawn, got {values}; {remedy}")
