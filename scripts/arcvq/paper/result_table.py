"""Write a table of results, our mean and spread over seeds next to the paper's numbers => JSON, markdown, a plot."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from arcvq.paper.tables import METRICS, Table
from arcvq.paper.variants import own_options
from pipelines.figures.tables import plot_histories, plot_table

# Beginning of a metric's name in a result of `arcvq evaluate`; a protocol or extractor may follow.
_BEGINNINGS = {"rfid": ("rfid", "frechet_distance"), "fid": ("fid", "frechet_distance")}


@dataclass
class ResultTable:
    """The measured numbers of all rows and seeds.

    Args:
        rows: names of the rows, in order.
        seeds: seeds of each row.
    """

    rows: Sequence[str]
    seeds: Sequence[int]
    numbers: dict[str, dict[int, dict[str, float]]] = field(default_factory=dict)
    histories: dict[str, dict[int, list[dict[str, float]]]] = field(default_factory=dict)

    def add(self, row: str, seed: int, numbers: dict[str, float], history: Sequence[dict[str, float]] = ()) -> None:
        """Add the numbers of a row for a seed, by their names in a result of `arcvq evaluate`.

        Each entry of `history` has a `step`, and the metrics of the held-out split at that step.
        """
        self.numbers.setdefault(row, {})[seed] = numbers
        if history:
            self.histories.setdefault(row, {})[seed] = list(history)

    def name_of(self, metric: str) -> str | None:
        """Return the full name of a metric of METRICS, with its protocol; None where it was not measured."""
        found = [name for seeds in self.numbers.values() for numbers in seeds.values() for name in numbers]
        beginnings = _BEGINNINGS.get(metric, (metric,))
        return next((name for name in found if name.replace("[", "-").split("-")[0].split("@")[0] in beginnings), None)

    def values(self, row: str, metric: str) -> list[float]:
        """Return a metric's number for each seed that has it."""
        name = self.name_of(metric)
        seeds = self.numbers.get(row, {})
        found = [seeds[seed][name] for seed in self.seeds if name in seeds.get(seed, {})]
        return [value for value in found if not isinstance(value, str)]  # JSON holds infinity as a word


def write_table(results: ResultTable, table: Table, data: str, facts: dict[str, Any], stem: Path) -> None:
    """Write stem.json, stem.md and stem.png, and print the table."""
    metrics = dict.fromkeys((*table.metrics, "usage", "perplexity"))
    names = {metric: name for metric in metrics if (name := results.name_of(metric)) is not None}
    rows = {}
    for name, row in table.rows.items():
        seeds = {metric: results.values(name, metric) for metric in names}
        rows[name] = {
            "config": row.config,
            "options": own_options(row.config),
            "paper": dict(zip(table.metrics, row.paper[data], strict=True)) if data in row.paper else {},
            "ours": {metric: summary(values) for metric, values in seeds.items() if values},
            "all": results.numbers.get(name, {}),
            "history": results.histories.get(name, {}),
        }
    orders = {metric: in_order(rows, metric) for metric in table.metrics if metric in names}
    result = {"protocol": facts | {"seeds": list(results.seeds), "metrics": names}, "order": orders, "rows": rows}
    text = markdown(result)
    stem.parent.mkdir(parents=True, exist_ok=True)
    write = {suffix: stem.with_name(f"{stem.name}.{suffix}") for suffix in ("json", "md", "png")}
    write["json"].write_text(json.dumps(result, indent=2) + "\n")
    write["md"].write_text(text, encoding="utf-8")
    labels = {metric: _label(metric, name) for metric, name in names.items()}
    ours = {label: {row: results.values(row, metric) for row in rows} for metric, label in labels.items()}
    paper = {label: {row: of["paper"].get(metric) for row, of in rows.items()} for metric, label in labels.items()}
    if names:
        plot_table(list(rows), _present(ours), _present(paper), write["png"])
    if results.histories:
        write["history"] = stem.with_name(f"{stem.name}-history.png")
        plot_histories(results.histories, [metric for metric in ("psnr", "usage") if metric in names], write["history"])
    print(text)
    print(f"table: {', '.join(map(str, write.values()))}")


def _label(metric: str, name: str) -> str:
    """Return the short name of a metric for the plot, without its protocol."""
    return "Frechet distance" if name.startswith("frechet_distance") else METRICS.get(metric, (metric,))[0]


def _present(numbers: dict[str, dict[str, Any]]) -> dict[str, dict[str, Any]]:
    """Leave out the rows without a number."""
    return {name: {row: value for row, value in rows.items() if value} for name, rows in numbers.items()}


def summary(values: Sequence[float]) -> dict[str, Any]:
    """Return mean, spread (largest minus smallest), and the numbers of the seeds."""
    return {"mean": fmean(values), "spread": max(values) - min(values), "seeds": list(values)}


def in_order(rows: dict[str, Any], metric: str) -> dict[str, Any] | None:
    """Count the pairs of rows that have the paper's order here; None where the paper ranks no pair.

    A pair is `open`, neither confirmed nor denied, where the numbers of its seeds overlap or a row has a single seed.
    """
    both = [row for row in rows.values() if row["paper"].get(metric) is not None and metric in row["ours"]]
    found = {"as_in_the_paper": 0, "reversed": 0, "open": 0}
    for first, second in combinations(both, 2):
        theirs = first["paper"][metric] - second["paper"][metric]
        ours = [a - b for a in first["ours"][metric]["seeds"] for b in second["ours"][metric]["seeds"]]
        if not theirs:
            continue
        if min(len(row["ours"][metric]["seeds"]) for row in (first, second)) < 2:
            found["open"] += 1
        elif all(difference * theirs > 0 for difference in ours):
            found["as_in_the_paper"] += 1
        elif all(difference * theirs < 0 for difference in ours):
            found["reversed"] += 1
        else:
            found["open"] += 1
    return found if sum(found.values()) else None


def markdown(result: dict[str, Any]) -> str:
    """Format the table with its protocol."""
    facts, names = result["protocol"], result["protocol"]["metrics"]
    trainings = {"tokenizers": facts["training"], **facts["priors"]}
    training = "; ".join(
        f"{of}: {', '.join(f'{name} {value}' for name, value in its.items())}" for of, its in trainings.items()
    )
    seeds = ", ".join(map(str, facts["seeds"]))
    heads = [_head(metric, name) for metric, name in names.items()]
    measured_at = (
        "" if facts["measured_at"] == [facts["commit"]] else f"; measured at {', '.join(facts['measured_at'])}"
    )
    lines = [
        f"# {facts['table']}, {facts['data']}: {facts['title']}",
        "",
        f"Budget {facts['budget']}. {training}; seeds {seeds}. Mean of the seeds, ± half of their spread; the paper's "
        f"number in brackets. {_measured_on(facts)}`{facts['command']}`, commit {facts['commit']}{measured_at}.",
        "",
        f"| | {' | '.join(heads)} |",
        "|---|" + "---|" * len(names),
    ]
    for name, row in result["rows"].items():
        lines.append(f"| {name} (`{row['config']}`) | {' | '.join(_cell(metric, row) for metric in names)} |")
    lines += ["", *_own_options(result["rows"])]
    for metric, order in result["order"].items():
        if order is not None:
            counts = ", ".join(f"{count} {what.replace('_', ' ')}" for what, count in order.items())
            ours = f", here by {names[metric]}" if _is_other(metric, names[metric]) else ""
            ranked = f"Pairs that the paper ranks by {METRICS[metric][0]}{ours}: {counts}"
            lines += [f"{ranked} (open: the seeds overlap, or one is alone).", ""]
    lines += [f"Failed: {failure}" for failure in facts["failures"]]
    return "\n".join(lines).rstrip() + "\n"


def _measured_on(facts: dict[str, Any]) -> str:
    """Say which images the rows are measured on, where these are not the test split's."""
    number = facts.get("hold_out", 0)
    of = "images held out of the training split, which no row trains on; the test split is not read"
    return f"Measured on {number:,} {of}. " if number else ""


def _own_options(rows: dict[str, Any]) -> list[str]:
    """List the options of the rows that their configs and the other rows do not have."""
    listed = [
        f"`{row['config']}`: {', '.join(f'{name} {value}' for name, value in row['options'].items())}"
        for row in rows.values()
        if row.get("options")
    ]
    return [f"Options of single rows, which come before those above. {'; '.join(listed)}.", ""] if listed else []


def _head(metric: str, name: str) -> str:
    """Make a column's heading: metric, better direction, and the paper's metric where it is another one."""
    if metric not in METRICS:
        return name
    paper = f"; the paper's: {METRICS[metric][0]}" if _is_other(metric, name) else ""
    return f"{name} ({METRICS[metric][1]} is better{paper})"


def _is_other(metric: str, name: str) -> bool:
    """Whether the metric uses other networks than the paper's, Inception and the VGG of LPIPS."""
    return name.startswith("frechet_distance") or (metric == "lpips" and "vgg" not in name)


def _cell(metric: str, row: dict[str, Any]) -> str:
    ours, paper = row["ours"].get(metric), row["paper"].get(metric)
    if ours is None:
        text = "-"
    else:
        largest = max(map(abs, ours["seeds"]))
        digits = 4 if largest < 1 else 2 if largest < 100 else 1
        spread = f" ± {ours['spread'] / 2:.{digits}f}" if len(ours["seeds"]) > 1 else ""
        text = f"{ours['mean']:.{digits}f}{spread}"
    return text if paper is None else f"{text} ({paper:g})"
