"""Draw a table of results: each metric of our runs and of the paper by row; and metrics over steps."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib import colormaps
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from pipelines.figures.grids import UNUSED, USED

COLUMNS = 3
CURVE_COLUMNS = 2
DASHES = ("-", "--", "-.", (0, (4, 1, 1, 1, 1, 1)))  # of the seeds
PAPER_DASHES = ":"
GREY = "0.4"


def plot_table(
    rows: Sequence[str],
    metrics: Mapping[str, Mapping[str, Sequence[float]]],
    paper: Mapping[str, Mapping[str, float]],
    path: str | Path,
) -> None:
    """Save a PNG with a panel per metric and a line per row: our mean as a dot, the paper's number as a hollow mark.

    The bar at a dot spans the smallest to the largest seed. Our numbers use the lower axis, the paper's a separate
    upper one, so that rankings can be compared although protocols differ. Rows without a finite number of ours are left
    out of a panel; metrics without any are left out.

    Args:
        rows: names of the rows, from top to bottom.
        metrics: metrics[metric][row]: the numbers of the seeds; only the given `rows` are drawn.
        paper: paper[metric][row]: the paper's number, if any.
        path: path of the PNG.

    Raises:
        ValueError: no finite number of ours at all.
    """
    panels_of = {}
    for metric, by_row in metrics.items():
        finite = {row: [value for value in by_row.get(row, ()) if math.isfinite(value)] for row in rows}
        if shown := {row: values for row, values in finite.items() if values}:
            panels_of[metric] = shown
    if not panels_of:
        raise ValueError("metrics hold no finite number for any of the rows; pass at least one")
    columns = min(COLUMNS, len(panels_of))
    lines = math.ceil(len(panels_of) / columns)
    longest = max(len(row) for shown in panels_of.values() for row in shown)
    most = max(map(len, panels_of.values()))
    size = ((3.0 + 0.08 * longest) * columns, (1.3 + 0.27 * most) * lines + 0.5)
    figure = Figure(figsize=(max(5.5, size[0]), size[1]), dpi=160, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    any_paper = False
    for panel, (metric, shown) in zip(panels, panels_of.items(), strict=False):
        means = [sum(values) / len(values) for values in shown.values()]
        below = [mean - min(values) for mean, values in zip(means, shown.values(), strict=True)]
        above = [max(values) - mean for mean, values in zip(means, shown.values(), strict=True)]
        # The mean of equal numbers may round to outside their range, but a bar's length must not be negative.
        bars = [[max(0.0, length) for length in side] for side in (below, above)]
        panel.errorbar(means, range(len(shown)), xerr=bars, fmt="o", markersize=6, capsize=3, color=USED)
        panel.set_yticks(range(len(shown)), list(shown))
        panel.set_ylim(len(shown) - 0.4, -0.6)
        panel.set_title(metric, fontsize=11)
        panel.margins(x=0.08)
        axes = [(panel, USED)]
        published = paper.get(metric, {})
        marks = [
            (published[row], index) for index, row in enumerate(shown) if math.isfinite(published.get(row, math.nan))
        ]
        if marks:
            upper = panel.twiny()
            upper.plot(*zip(*marks, strict=True), "D", markersize=9, markerfacecolor="none", color=UNUSED)
            upper.margins(x=0.08)
            axes.append((upper, UNUSED))
            any_paper = True
        for axis, colour in axes:
            axis.tick_params(axis="x", colors=colour, labelsize=9)
            axis.xaxis.set_major_locator(MaxNLocator(4))
        panel.grid(alpha=0.25)
    for panel in panels[len(panels_of) :]:
        panel.remove()
    legend = [Line2D([], [], marker="o", linestyle="-", color=USED, label="ours: mean, smallest to largest seed")]
    if any_paper:
        hollow = {"marker": "D", "markerfacecolor": "none", "markersize": 8, "linestyle": ""}
        legend.append(Line2D([], [], color=UNUSED, label="the paper's number (upper axis)", **hollow))
    figure.legend(handles=legend, loc="outside lower center", ncols=1 if columns == 1 else 2, frameon=False)
    figure.savefig(path, format="png")


def plot_histories(
    histories: Mapping[str, Mapping[int, Sequence[Mapping[str, float]]]],
    metrics: Sequence[str],
    path: str | Path,
    paper: Mapping[str, Mapping[str, float]] | None = None,
) -> None:
    """Save a PNG with a panel per metric: its value over the steps of each row's training, a thin line per seed.

    A row has its colour in all panels, a seed its dashes. The paper's number is a dotted horizontal line in the colour
    of its row.

    Args:
        histories: histories[row][seed]: entries with a `step` and numbers; some may lack the metric.
        metrics: names of the metrics.
        path: path of the PNG.
        paper: paper[metric][row]: the paper's number, if any; only rows with a history are drawn.

    Raises:
        ValueError: no metric to show.
    """
    if not metrics:
        raise ValueError("metrics is empty; name at least one")
    columns = min(CURVE_COLUMNS, len(metrics))
    lines = math.ceil(len(metrics) / columns)
    figure = Figure(figsize=(1.5 + 4.2 * columns, 0.5 + 3.5 * lines), dpi=160, layout="constrained")
    panels = figure.subplots(lines, columns, squeeze=False).flatten()
    colours, seeds = colormaps["tab20"].colors, sorted({seed for of_row in histories.values() for seed in of_row})
    colour_of = {row: colours[index % len(colours)] for index, row in enumerate(histories)}
    dashes_of = {seed: DASHES[index % len(DASHES)] for index, seed in enumerate(seeds)}
    any_paper = False
    for panel, metric in zip(panels, metrics, strict=False):
        for row, of_row in histories.items():
            for seed, entries in of_row.items():
                points = [(entry["step"], entry[metric]) for entry in entries if metric in entry]
                if points:
                    style = {"color": colour_of[row], "linestyle": dashes_of[seed]}
                    panel.plot(*zip(*points, strict=True), marker=".", markersize=3, linewidth=1, **style)
            published = (paper or {}).get(metric, {}).get(row, math.nan)
            if math.isfinite(published):
                panel.axhline(published, color=colour_of[row], linestyle=PAPER_DASHES, linewidth=1)
                any_paper = True
        panel.set_title(metric, fontsize=11)
        panel.set_xlabel("step")
        panel.set_xlim(left=0)
        panel.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        panel.grid(alpha=0.25)
    for panel in panels[len(metrics) :]:
        panel.remove()
    legend = [Line2D([], [], color=colour, label=row) for row, colour in colour_of.items()]
    if len(seeds) > 1:
        legend += [Line2D([], [], color=GREY, linestyle=dashes_of[seed], label=f"seed {seed}") for seed in seeds]
    if any_paper:
        legend.append(Line2D([], [], color=GREY, linestyle=PAPER_DASHES, label="the paper's number"))
    figure.legend(handles=legend, loc="outside right center", frameon=False, fontsize=9)
    figure.savefig(path, format="png")
