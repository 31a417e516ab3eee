"""Plot sample quality against steps, for each scheduler and guidance scale."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter, ScalarFormatter


@dataclass(frozen=True)
class SchedulerPoint:
    """The distance of samples that a scheduler produced in a number of steps, at a guidance scale."""

    scheduler: str
    guidance_scale: float
    steps: int
    distance: float


def plot_schedulers(points: Sequence[SchedulerPoint], metric: str, path: str | Path) -> None:
    """Save a PNG with a panel per guidance scale and a line per scheduler, both axes logarithmic.

    Args:
        points: points in any order.
        metric: name of the distance, for the axis.
        path: path of the PNG.

    Raises:
        ValueError: no points.
    """
    if not points:
        raise ValueError("there are no points to draw")
    scales = sorted({point.guidance_scale for point in points})
    schedulers = list(dict.fromkeys(point.scheduler for point in points))
    figure = Figure(figsize=(3.1 * len(scales) + 0.7, 3.6), dpi=150, layout="constrained")
    panels = figure.subplots(1, len(scales), sharey=True, squeeze=False)[0]
    ticks = sorted({point.steps for point in points})
    for panel, scale in zip(panels, scales, strict=True):
        for index, scheduler in enumerate(schedulers):
            line = sorted(
                (point.steps, point.distance)
                for point in points
                if (point.scheduler, point.guidance_scale) == (scheduler, scale)
            )
            panel.plot(*zip(*line, strict=True), marker="os^Dv"[index % 5], label=scheduler, markersize=4)
        panel.set(xscale="log", yscale="log", xlabel="steps", title=f"guidance {scale:g}")
        panel.set_xticks(ticks, [str(tick) for tick in ticks])
        panel.xaxis.set_minor_formatter(NullFormatter())
        for formatter in (panel.yaxis.set_major_formatter, panel.yaxis.set_minor_formatter):
            formatter(ScalarFormatter())
        panel.grid(alpha=0.25, which="both")
    panels[0].set_ylabel(metric)
    panels[0].legend()
    figure.savefig(path, format="png")
