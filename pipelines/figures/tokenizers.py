"""Trained tokenizers -> figures 1 and 2 of the paper (ArcVQ-VAE, arXiv 2605.13517), for any list of tokenizers.

Each function writes one PNG and returns the numbers that it has drawn, by tokenizer, as JSON holds them. Everything is
computed in float64. Figures are drawn on their own canvas: matplotlib's backend and pyplot stay as the caller has them.
"""

import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.figures.grids import UNUSED, USED, draw_norms
from pipelines.figures.principal_plane import principal_plane
from tokenizer.data.subsets import evenly_spaced_indices
from tokenizer.functional.usage import perplexity, usage

TOKENS = "#a7aeb8"
COLUMNS = 3  # tokenizers beside each other, at most
MAX_POINTS = 20_000  # of a kind in a plane
TITLE = 40  # letters of a name in a line


class NotDrawable(ValueError):
    """A figure that cannot be had of one of the tokenizers."""


@dataclass(frozen=True)
class TokenizerTensors:
    """Hold the data that figures 1 to 3 are drawn of.

    Attributes:
        name: of the tokenizer.
        tokens: float (N, C), the latent tokens of held-out images, before quantisation; N > 0.
        codebook: float (K, D), the effective table; None without codes.
        counts: int64 (K,), how often each code occurs on these images; at least one does. None without codes.
        radius: of the ball that bounds the codes; infinite without one.

    Raises:
        ValueError: tensors that do not fit together, or that hold NaN or infinity.
    """

    name: str
    tokens: Tensor
    codebook: Tensor | None = None
    counts: Tensor | None = None
    radius: float = math.inf

    def __post_init__(self):
        if self.tokens.ndim != 2 or 0 in self.tokens.shape or not torch.isfinite(self.tokens).all():
            raise ValueError(f"tokens of {self.name} are {tuple(self.tokens.shape)}, not (N, C), or are not finite")
        if self.codebook is None:
            return
        if self.codebook.ndim != 2 or self.counts is None or self.counts.shape != self.codebook.shape[:1]:
            found = None if self.counts is None else tuple(self.counts.shape)
            raise ValueError(f"codebook of {self.name} is {tuple(self.codebook.shape)} with counts {found}")
        if not torch.isfinite(self.codebook).all() or not self.counts.any():
            raise ValueError(f"codebook of {self.name} holds NaN or infinity, or none of its codes is used")


def plot_planes(tokenizers: Sequence[TokenizerTensors], path: str | Path) -> dict[str, Any]:
    """Figure 1: tokens and codes in the plane of the tokens' two first principal components, for each tokenizer.

    A code's area grows with its use. Below is the same plane about the codes alone, which may lie closer together than
    the tokens by far. Of more than 20,000 tokens, used or unused codes as many are drawn, evenly taken.

    Raises:
        NotDrawable: codes of another size than the tokens, which have no place in their plane.
    """
    for tokenizer in tokenizers:
        if tokenizer.codebook is not None and tokenizer.codebook.shape[1] != tokenizer.tokens.shape[1]:
            raise NotDrawable(
                f"tokenizer {tokenizer.name!r} has latent tokens of {tokenizer.tokens.shape[1]} channels and codes of "
                f"{tokenizer.codebook.shape[1]}: they lie in no common plane; leave it out"
            )
    has_codes = any(tokenizer.codebook is not None for tokenizer in tokenizers)
    figure, blocks = panel_grid(len(tokenizers), 4.8, 4.9, parts=2 if has_codes else 1)
    numbers = {}
    for panels, tokenizer in zip(blocks, tokenizers, strict=True):
        mean, axes, shares = principal_plane(tokenizer.tokens)
        tokens = (tokenizer.tokens.double() - mean) @ axes.T
        kinds = [("latent tokens", tokens, TOKENS, torch.full((len(tokens),), 4.0), 0.5)]
        numbers[tokenizer.name] = {"tokens": len(tokens), "variance_shares": shares.tolist()}
        title = "no codes"
        if tokenizer.codebook is not None:
            counts = tokenizer.counts
            codes = (tokenizer.codebook.double() - mean) @ axes.T
            largest = 110 * min(1.0, 300 / int((counts > 0).sum()))  # or many would hide each other
            areas = 10 + largest * counts / counts.max()
            kinds += [
                (kind, codes[chosen], colour, areas[chosen], 0.75)
                for kind, chosen, colour in (("unused codes", counts == 0, UNUSED), ("used codes", counts > 0, USED))
                if chosen.any()
            ]
            numbers[tokenizer.name] |= {"codes": codes.tolist()} | numbers_of_use(counts)
            title = described_use(counts)
        for panel in panels:
            for kind in kinds:
                _scatter(panel, *kind)
            panel.set_xlabel(f"first component ({100 * shares[0]:.0f} % of the variance)")
            panel.set_ylabel(f"second component ({100 * shares[1]:.0f} % of the variance)")
            panel.grid(alpha=0.25)
        panels[0].set_aspect("equal", adjustable="datalim")
        panels[0].set_title(f"{textwrap.fill(tokenizer.name, TITLE)}\n{title}")
        legend = panels[0].legend(loc="upper center", bbox_to_anchor=(0.5, -0.13), ncols=2, fontsize=9, frameon=False)
        for handle in legend.legend_handles:
            handle.set_sizes([36])
            handle.set_alpha(1)
        if tokenizer.codebook is not None:
            _look_at(panels[1], codes)
            panels[1].set_title("the same plane, about the codes", fontsize=11)
        elif has_codes:
            panels[1].remove()
    figure.savefig(path, format="png")
    return numbers


def plot_norms(tokenizers: Sequence[TokenizerTensors], path: str | Path) -> dict[str, Any]:
    """Figure 2: each code's norm against how often it is used, and the ball's radius as a line, one panel each.

    A radius above 1.5 times the largest norm is said and not drawn: the line would press the codes together.

    Raises:
        NotDrawable: a tokenizer without codes.
    """
    refuse_continuous(tokenizers)
    figure, blocks = panel_grid(len(tokenizers), 4.8, 4.4)
    numbers = {}
    for (panel,), tokenizer in zip(blocks, tokenizers, strict=True):
        norms, counts = torch.linalg.vector_norm(tokenizer.codebook.double(), dim=1), tokenizer.counts
        draw_norms(panel, norms, counts)
        panel.set_ylabel("times used on the held-out images")
        use = f"{described_use(counts)}, perplexity {perplexity(counts):.1f}"
        panel.set_title(f"{textwrap.fill(tokenizer.name, TITLE)}\n{use}")
        bounded = math.isfinite(tokenizer.radius)
        if bounded:
            label = f"ball of radius {tokenizer.radius:.4g}"
            if tokenizer.radius <= 1.5 * norms.max():
                panel.axvline(tokenizer.radius, color="black", linestyle="--", linewidth=1, label=label)
            else:
                panel.plot([], [], color="black", linestyle="--", linewidth=1, label=f"{label}, not shown")
        panel.legend(loc="upper center", ncols=2, fontsize=9)
        numbers[tokenizer.name] = {"norms": norms.tolist(), "radius": tokenizer.radius if bounded else None}
        numbers[tokenizer.name] |= numbers_of_use(counts)
    figure.savefig(path, format="png")
    return numbers


def refuse_continuous(tokenizers: Sequence[TokenizerTensors]) -> None:
    """Raises NotDrawable where one has no codes."""
    for tokenizer in tokenizers:
        if tokenizer.codebook is None:
            raise NotDrawable(f"tokenizer {tokenizer.name!r} has no codes, of which this figure is; leave it out")


def numbers_of_use(counts: Tensor) -> dict[str, Any]:
    """Counts (K,), the share of the codes used and their perplexity, as JSON holds them."""
    return {
        "counts": counts.tolist(),
        "share_used": usage(counts).item(),
        "perplexity": perplexity(counts).item(),
    }


def described_use(counts: Tensor) -> str:
    """The share of the codes used, in words."""
    return f"{100 * usage(counts):.1f} % of {len(counts):,} codes used"


def panel_grid(number: int, width: float, height: float, parts: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """A figure of `number` blocks, each of `parts` panels one below the other; sizes of a panel in inches."""
    rows = math.ceil(number / COLUMNS)
    columns = math.ceil(number / rows)
    size = (width * columns + 0.4, height * rows * parts + 0.3)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    panels = figure.subplots(rows * parts, columns, squeeze=False)
    places = [divmod(i, columns) for i in range(rows * columns)]
    blocks = [[panels[row * parts + part, column] for part in range(parts)] for row, column in places]
    for block in blocks[number:]:
        for panel in block:
            panel.remove()
    return figure, blocks[:number]


def _scatter(panel: Axes, kind: str, points: Tensor, colour: str, areas: Tensor, alpha: float) -> None:
    shown = evenly_spaced_indices(len(points), MAX_POINTS)
    label = f"{len(points):,} {kind}" + (f" ({len(shown):,} shown)" if len(shown) < len(points) else "")
    x, y = points[shown].T.numpy()
    panel.scatter(x, y, s=areas[shown].numpy(), c=colour, alpha=alpha, linewidths=0, label=label)


def _look_at(panel: Axes, points: Tensor) -> None:
    """Shows the smallest square, and a margin, about the points (N, 2)."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    centre, half = ((low + high) / 2).tolist(), 0.55 * (high - low).max().item() or 1.0
    panel.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
    panel.set_aspect("equal")
