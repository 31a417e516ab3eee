"""Draw figures 1 and 2 of the paper (ArcVQ-VAE, arXiv 2605.13517), for any list of trained tokenizers.

Each function writes one PNG and returns the drawn numbers by tokenizer, as stored in JSON. Everything is computed in
float64. Figures have their own canvas: matplotlib's backend and pyplot state are not touched.
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
COLUMNS = 3  # most tokenizers next to each other
MAX_POINTS = 20_000  # most points of a kind in a plane
TITLE = 40  # characters of a name per line


class NotDrawable(ValueError):
    """A figure that one of the tokenizers does not allow."""


@dataclass(frozen=True)
class TokenizerTensors:
    """Data of a tokenizer for figures 1 to 3.

    Attributes:
        name: name of the tokenizer.
        tokens: float (N, C), the latent tokens of held-out images, before quantisation; N > 0.
        codebook: float (K, D), the effective table; None for a continuous tokenizer.
        counts: int64 (K,), how often each code occurs on these images, not all zero; None for a continuous tokenizer.
        radius: radius of the ball that bounds the codes; infinite without a ball.

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
            shape = None if self.counts is None else tuple(self.counts.shape)
            raise ValueError(f"codebook of {self.name} is {tuple(self.codebook.shape)} with counts {shape}")
        if not torch.isfinite(self.codebook).all() or not self.counts.any():
            raise ValueError(f"codebook of {self.name} holds NaN or infinity, or none of its codes is used")


def plot_planes(tokenizers: Sequence[TokenizerTensors], path: str | Path) -> dict[str, Any]:
    """Draw figure 1: tokens and codes in the plane of the tokens' first two principal components, for each tokenizer.

    A code's area grows with its use. A second panel shows the same plane around the codes alone, which may lie much
    closer together than the tokens. Of more than 20,000 tokens, used codes or unused codes, 20,000 evenly spaced ones
    are drawn.

    Raises:
        NotDrawable: codes of another size than the tokens, which have no position in their plane.
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
            largest = 110 * min(1.0, 300 / int((counts > 0).sum()))  # smaller if many would hide each other
            areas = 10 + largest * counts / counts.max()
            kinds += [
                (kind, codes[mask], colour, areas[mask], 0.75)
                for kind, mask, colour in (("unused codes", counts == 0, UNUSED), ("used codes", counts > 0, USED))
                if mask.any()
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
    """Draw figure 2: each code's norm against its use, and the ball's radius as a line, one panel per tokenizer.

    A radius above 1.5 times the largest norm is only named in the legend, because the line would compress the codes.

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
    """Raise NotDrawable if a tokenizer has no codes."""
    for tokenizer in tokenizers:
        if tokenizer.codebook is None:
            raise NotDrawable(f"tokenizer {tokenizer.name!r} has no codes, of which this figure is; leave it out")


def numbers_of_use(counts: Tensor) -> dict[str, Any]:
    """Return the counts (K,), the share of used codes and the perplexity, as stored in JSON."""
    return {
        "counts": counts.tolist(),
        "share_used": usage(counts).item(),
        "perplexity": perplexity(counts).item(),
    }


def described_use(counts: Tensor) -> str:
    """Describe the share of used codes in words."""
    return f"{100 * usage(counts):.1f} % of {len(counts):,} codes used"


def panel_grid(number: int, width: float, height: float, parts: int = 1) -> tuple[Figure, list[list[Axes]]]:
    """Create a figure of `number` blocks, each of `parts` panels one below the other; panel sizes in inches."""
    rows = math.ceil(number / COLUMNS)
    columns = math.ceil(number / rows)
    size = (width * columns + 0.4, height * rows * parts + 0.3)
    figure = Figure(figsize=size, dpi=160, layout="constrained")
    panels = figure.subplots(rows * parts, columns, squeeze=False)
    cells = [divmod(i, columns) for i in range(rows * columns)]
    blocks = [[panels[row * parts + part, column] for part in range(parts)] for row, column in cells]
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
    """Show the smallest square around the points (N, 2), with a margin."""
    low, high = points.amin(dim=0), points.amax(dim=0)
    centre, half = ((low + high) / 2).tolist(), 0.55 * (high - low).max().item() or 1.0
    panel.set(xlim=(centre[0] - half, centre[0] + half), ylim=(centre[1] - half, centre[1] + half))
    panel.set_aspect("equal")
