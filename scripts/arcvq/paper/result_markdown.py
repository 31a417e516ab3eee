"""Format a table of results as markdown: the numbers, what the trainings have cost, and the protocol."""

from typing import Any

from arcvq.paper.tables import METRICS
from arcvq.paper.training_cost import FINISHED, HOURS, NO_CHECKPOINT, NOT_BEGUN, NOT_RECORDED


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
        "" if facts["measured_at"] in ([], [facts["commit"]]) else f"; measured at {', '.join(facts['measured_at'])}"
    )
    lines = [
        f"# {facts['table']}, {facts['data']}: {facts['title']}",
        "",
        f"Budget {facts['budget']}. {training}; seeds {seeds}. Mean of the seeds, ± half of their spread; the paper's "
        f"number in brackets. {_measured_on(facts)}`{facts['command']}`, commit {facts['commit']}{measured_at}.",
        "",
        f"| | {' | '.join(heads)} |" if names else "| nothing is measured yet |",
        "|---|" + "---|" * len(names),
    ]
    for name, row in result["rows"].items():
        state = "" if row["state"] == FINISHED else f", {row['state']}"
        cells = (f"{name} (`{row['config']}`){state}", *(_cell(metric, row) for metric in names))
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", *_own_options(result["rows"]), *_trainings(result["rows"])]
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
    """Tell whether the metric uses other networks than the paper's, Inception and the VGG of LPIPS."""
    return name.startswith("frechet_distance") or (metric == "lpips" and "vgg" not in name)


def _trainings(rows: dict[str, Any]) -> list[str]:
    """List what the trainings have cost, and the settings in which a given run is not the table's."""
    lines, given = [], []
    for name, row in rows.items():
        for seed, parts in row["trainings"].items():
            for part, cost in parts.items():
                training = f"{name}, seed {seed}" + ("" if part == "tokenizer" else f", {part}")
                lines.append(f"| {training} | {' | '.join(_cost(cost))} |")
                if cost["own_settings"] is not None:
                    settings = (f"{of} {own} (the table: {its})" for of, (own, its) in cost["own_settings"].items())
                    given.append(f"{training} is the given run {cost['run']}: {', '.join(settings) or 'as the table'}.")
    if not lines:
        return []
    head = ["| training | state | hours | processor | threads | commits |", "|---|---|---|---|---|---|"]
    return [*head, *lines, "", f"{HOURS}.", "", *(line for text in given for line in (text, ""))]


def _cost(cost: dict[str, Any]) -> list[str]:
    hours = NOT_RECORDED if cost["hours"] is None else f"{cost['hours']:.2f}"
    if cost["state"] in (NOT_BEGUN, NO_CHECKPOINT):
        return [cost["state"], "-", "-", "-", "-"]
    if cost["hours"] is not None and cost["logged_steps"] != cost["step"]:
        hours += f" for {cost['logged_steps']:,} steps"
    found = [", ".join(map(str, cost[name])) for name in ("processors", "threads", "commits")]
    return [cost["state"], hours, *(text or NOT_RECORDED for text in found)]


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
