"""Write a table of results, our mean and spread over seeds next to the paper's numbers => JSON, markdown, a plot."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations
from pathlib import Path
from statistics import fmean
from typing import Any

from arcvq.paper.result_markdown import markdown
from arcvq.paper.tables import METRICS, Table
from arcvq.paper.training_cost import FAILED, FINISHED, TrainingCost
from arcvq.paper.variants import own_options
from pipelines.figures.tables import plot_histories, plot_table

# Metrics over the steps, by their names in a history.
CURVES = ("psnr", "usage", "perplexity", "share_on_ball")

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
    trainings: dict[str, dict[int, dict[str, TrainingCost]]] = field(default_factory=dict)

    def add(
        self,
        row: str,
        seed: int,
        numbers: dict[str, float],
        history: Sequence[dict[str, float]] = (),
        trainings: Mapping[str, TrainingCost] | None = None,
    ) -> None:
        """Add the numbers of a row for a seed, by their names in a result of `arcvq evaluate`.

        Each entry of `history` has a `step`, and metrics at that step. `trainings` are the row's, by part.
        """
        if numbers:
            self.numbers.setdefault(row, {})[seed] = numbers
        if history:
            self.histories.setdefault(row, {})[seed] = list(history)
        if trainings:
            self.trainings.setdefault(row, {})[seed] = dict(trainings)

    def states(self, row: str) -> dict[int, str]:
        """Say of each seed whose tokenizer is not finished how far it is."""
        of_seeds = {seed: parts["tokenizer"].state for seed, parts in self.trainings.get(row, {}).items()}
        return {seed: state for seed, state in of_seeds.items() if state != FINISHED}

    def is_finished(self, row: str) -> bool:
        """Tell whether the row's numbers are those of finished trainings."""
        return not self.numbers.get(row, {}).keys() <= self.states(row).keys()

    def state_of(self, row: str) -> str:
        """Describe in a few words how far the trainings of a row are; empty where all are finished."""
        states = self.states(row)
        every = len(states) == len(self.trainings.get(row, {}))
        if every and len(set(states.values())) == 1:
            return next(iter(states.values()))
        apart = ", not in the mean" if states.keys() & self.numbers.get(row, {}).keys() and not every else ""
        return ", ".join(f"seed {seed}: {state}" for seed, state in states.items()) + apart

    def name_of(self, metric: str) -> str | None:
        """Return the full name of a metric of METRICS, with its protocol; None where it was not measured."""
        found = [name for seeds in self.numbers.values() for numbers in seeds.values() for name in numbers]
        beginnings = _BEGINNINGS.get(metric, (metric,))
        return next((name for name in found if name.replace("[", "-").split("-")[0].split("@")[0] in beginnings), None)

    def values(self, row: str, metric: str) -> list[float]:
        """Return a metric's number for each seed that has it: of the finished trainings, if any of the row is."""
        name, unfinished = self.name_of(metric), self.states(row) if self.is_finished(row) else ()
        seeds = {seed: numbers for seed, numbers in self.numbers.get(row, {}).items() if seed not in unfinished}
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
            "state": results.state_of(name) or (FINISHED if name in results.numbers else FAILED),
            "is_finished": results.is_finished(name),
            "history": results.histories.get(name, {}),
            "trainings": {
                seed: {part: asdict(cost) for part, cost in parts.items()}
                for seed, parts in results.trainings.get(name, {}).items()
            },
        }
    orders = {metric: in_order(rows, metric) for metric in table.metrics if metric in names}
    result = {"protocol": facts | {"seeds": list(results.seeds), "metrics": names}, "order": orders, "rows": rows}
    text = markdown(result)
    stem.parent.mkdir(parents=True, exist_ok=True)
    write = {suffix: stem.with_name(f"{stem.name}.{suffix}") for suffix in ("json", "md", "png")}
    write["json"].write_text(json.dumps(result, indent=2) + "\n")
    write["md"].write_text(text, encoding="utf-8")
    labels = {metric: _label(metric, name) for metric, name in names.items()}
    shown = {row: ", ".join(part for part in (row, results.state_of(row)) if part) for row in rows}
    ours = {label: {shown[row]: results.values(row, metric) for row in rows} for metric, label in labels.items()}
    paper = {
        label: {shown[row]: of["paper"].get(metric) for row, of in rows.items()} for metric, label in labels.items()
    }
    if names:
        plot_table(list(shown.values()), _present(ours), _present(paper), write["png"])
    else:
        del write["png"]
    histories = {shown[row]: seeds for row, seeds in results.histories.items()}
    entries = [entry for seeds in histories.values() for of_seed in seeds.values() for entry in of_seed]
    if curves := [metric for metric in CURVES if any(metric in entry for entry in entries)]:
        write["history"] = stem.with_name(f"{stem.name}-history.png")
        published = {metric: {shown[row]: of["paper"].get(metric) for row, of in rows.items()} for metric in curves}
        plot_histories(histories, curves, write["history"], _present(published))
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
    Rows of trainings that are not at their end are in no pair.
    """
    compared = [row for row in rows.values() if row.get("is_finished", True)]
    both = [row for row in compared if row["paper"].get(metric) is not None and metric in row["ours"]]
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
