"""Distances between the codes of trained tokenizers: figure 3 of the paper (ArcVQ-VAE, arXiv 2605.13517)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.ticker import MaxNLocator
from torch import Tensor

from pipelines.figures.grids import USED
from pipelines.figures.tokenizers import (
    TITLE,
    TokenizerTensors,
    described_use,
    numbers_of_use,
    panel_grid,
    refuse_continuous,
)
from tokenizer.data.subsets import evenly_spaced_indices

MAX_CODES = 512  # in a distance matrix
MAX_PAIRED = 4096  # codes in the histogram of pairs
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)
BINS = 60
# Largest ratio of two tokenizers' largest distances on one scale; beyond it, one of them would have a single colour.
COMPARABLE = 4.0


def plot_distances(tokenizers: Sequence[TokenizerTensors], path: str | Path) -> dict[str, Any]:
    """Draw figure 3: for each tokenizer the matrix of its codes' Euclidean distances, and a histogram of used pairs.

    The matrix has the codes sorted by use, most used first; of more than 512 codes, 512 evenly spaced in that order.
    The histogram has all pairs of used codes; of more than 4096 codes, of 4096 evenly spaced ones. The matrices share
    one colour scale and the histograms one axis, unless largest distances differ by more than a factor of 4.

    Returns:
        The drawn numbers by tokenizer, as stored in JSON.

    Raises:
        NotDrawable: a tokenizer without codes.
    """
    refuse_continuous(tokenizers)
    orders, matrices, pairs = [], [], []
    for tokenizer in tokenizers:
        codebook, order = tokenizer.codebook.double(), tokenizer.counts.argsort(descending=True, stable=True)
        orders.append(order[evenly_spaced_indices(len(order), MAX_CODES)])
        # Not with a matrix product, whose rounding gives a code a distance to itself or its copies.
        codes = codebook[orders[-1]]
        matrices.append(torch.cdist(codes, codes, compute_mode="donot_use_mm_for_euclid_dist"))
        used = codebook[tokenizer.counts > 0]
        pairs.append(torch.pdist(used[evenly_spaced_indices(len(used), MAX_PAIRED)]))
    ranges = [_range(matrix) for matrix in matrices]
    tops = [distances.max().item() if len(distances) else 0.0 for distances in pairs]
    highest = [high for _, high in ranges if high > 0]
    shared = not highest or max(highest) <= COMPARABLE * min(highest)
    if shared:
        ranges = [(min(low for low, _ in ranges), max(highest, default=0.0))] * len(ranges)
        tops = [max(tops)] * len(tops)

    figure, panels = panel_grid(len(tokenizers), 4.4, 4.0, parts=2)
    numbers = {}
    drawn = []
    for i, tokenizer in enumerate(tokenizers):
        heat, below = panels[i]
        drawn.append(heat.imshow(matrices[i].numpy(), vmin=ranges[i][0], vmax=ranges[i][1] or 1.0, cmap="viridis"))
        selection = f", {len(orders[i])} of {len(tokenizer.counts):,}" if len(orders[i]) < len(tokenizer.counts) else ""
        heat.set(xlabel=f"code, most used first{selection}", ylabel="code, most used first")
        heat.set_title(f"{textwrap.fill(tokenizer.name, TITLE)}\n{described_use(tokenizer.counts)}")
        for axis in (heat.xaxis, heat.yaxis):
            axis.set_major_locator(MaxNLocator(5, integer=True))
        if not shared:
            figure.colorbar(drawn[-1], ax=heat, extend="min", label="Euclidean distance, a scale of its own")
        bins, edges = torch.histogram(pairs[i], BINS, range=(0.0, tops[i] or 1.0))
        below.stairs(100 * bins / max(1, len(pairs[i])), edges, fill=True, color=USED)
        below.set(xlabel="Euclidean distance", ylabel="% of the pairs")
        below.set_ylim(0, None if len(pairs[i]) else 1)
        below.set_title(f"{len(pairs[i]):,} pairs of used codes", fontsize=11)
        below.grid(alpha=0.25)
        quantiles = torch.quantile(pairs[i], torch.tensor(QUANTILES).double()).tolist() if len(pairs[i]) else []
        numbers[tokenizer.name] = {
            "codes": orders[i].tolist(),
            "colours": list(ranges[i]),
            "pairs": len(pairs[i]),
            "quantiles": dict(zip(map(str, QUANTILES), quantiles, strict=False)),
            "histogram": {"pairs": bins.long().tolist(), "edges": edges.tolist()},
        } | numbers_of_use(tokenizer.counts)
    if shared:
        heats = [heat for heat, _ in panels]
        figure.colorbar(drawn[0], ax=heats, extend="min", label="Euclidean distance", shrink=0.6)
    figure.savefig(path, format="png")
    return numbers


def _range(matrix: Tensor) -> tuple[float, float]:
    """Return the smallest and largest distance of two codes; zeros of the diagonal would take half the colours."""
    others = matrix[~torch.eye(len(matrix), dtype=torch.bool)]
    return (others.min().item(), others.max().item()) if len(others) else (0.0, 0.0)
