"""Warn of a codebook collapse: few codes in use in several evaluations in a row."""

from collections.abc import MutableMapping
from dataclasses import dataclass

COUNT = "low_usage_evaluations"


@dataclass(frozen=True)
class CollapseConfig:
    """When to warn of a codebook collapse.

    Args:
        usage_below: share of the codes in use on held-out images below which an evaluation counts as low; 0: never.
        evaluations: number of low evaluations in a row before a warning, and between two warnings.
    """

    usage_below: float = 0.05
    evaluations: int = 3

    def check(self) -> None:
        """Raise ValueError for a number that cannot work."""
        if not 0 <= self.usage_below <= 1:
            raise ValueError(f"collapse.usage_below is a share from 0 to 1, got {self.usage_below}")
        if self.evaluations < 1:
            raise ValueError(f"collapse.evaluations must be at least 1, got {self.evaluations}")

    def warning(self, counts: MutableMapping[str, int], usage: float, perplexity: float, codes: int) -> str | None:
        """Count an evaluation in the run's `counts`; return the warning that is due, or None."""
        counts[COUNT] = counts.get(COUNT, 0) + 1 if usage < self.usage_below else 0
        if counts[COUNT] == 0 or counts[COUNT] % self.evaluations:
            return None
        return (
            f"the codebook collapses: held-out images use {usage:.1%} of {codes} codes, with a perplexity of "
            f"{perplexity:.1f}, and less than {self.usage_below:.1%} in each of the last {counts[COUNT]} evaluations; "
            "a quantizer that keeps its codes in use (model.quantizer arc, cvq, simvq), a smaller model.codebook_size "
            "or a lower optim.lr may help"
        )
