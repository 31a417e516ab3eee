"""Format the results of `arcvq faults` as markdown tables."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any


def fault_tables(content: Mapping[str, Any]) -> str:
    """Format the sections in a results file, one table each."""
    makers = {"kills": _kills, "states": _states, "nan": _nan, "inputs": _inputs}
    tables = (list(make(content[name]["rows"])) for name, make in makers.items() if name in content)
    return "\n\n".join("\n".join(f"| {' | '.join(cells)} |" for cells in lines) for lines in tables)


def _kills(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """Make a line for each training, and a column for each way to run it."""
    placed: dict[str, dict[str, str]] = {}
    for name, row in rows.items():
        training, _, way = name.partition(", ")
        found = f"{row['equal']} of {row['kills']} ({row['while saving']})"
        placed.setdefault(training, {})[way or "1 process"] = found
    ways = sorted({way for found in placed.values() for way in found})
    yield ["killed; equal bit for bit (killed while saving)", *ways]
    yield ["---"] * (1 + len(ways))
    for training, found in placed.items():
        yield [training, *(found.get(way, "-") for way in ways)]


def _states(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["fault", "status", "newest complete after it", "ends equal"]
    yield ["---"] * 4
    for name, row in rows.items():
        yield [name, str(row["status"]), row["kept"], "yes" if row["equal"] else "NO"]


def _nan(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    """Make a line for each training, with its terms."""
    placed: dict[str, list[tuple[str, str, Mapping[str, Any]]]] = {}
    for name, row in rows.items():
        training, _, rest = name.rpartition(": ")
        term, _, kind = rest.rpartition(", ")
        placed.setdefault(training, []).append((term, kind, row))
    yield ["NaN in", "terms", "named first", "status once, for good", "saved weights finite"]
    yield ["---"] * 5
    for training, found in placed.items():
        terms = list(dict.fromkeys(term for term, _, _ in found))
        named = sum(f" {term.partition('@')[0]} is not finite" in " ".join(row["said"]) for term, _, row in found)
        finite = sum(row["finite"] for _, _, row in found)
        statuses = "; ".join(", ".join(_statuses(found, kind)) for kind in ("once", "for good"))
        yield [training, ", ".join(terms), f"{named} of {len(found)}", statuses, f"{finite} of {len(found)}"]


def _statuses(found: Sequence[tuple[str, str, Mapping[str, Any]]], kind: str) -> list[str]:
    return sorted({str(row["status"]) for _, of_kind, row in found if of_kind == kind})


def _inputs(rows: Mapping[str, Mapping[str, Any]]) -> Iterator[list[str]]:
    yield ["broken", "inputs", "taken", "refused in one line", "else", "slowest", "peak of memory"]
    yield ["---"] * 7
    for name, row in rows.items():
        other = row["inputs"] - row.get("taken", 0) - row.get("refused", 0)
        counts = (row["inputs"], row.get("taken", 0), row.get("refused", 0), other)
        yield [name, *(f"{count:,}" for count in counts), f"{row['slowest_s']} s", f"{row['peak_memory_gib']} GiB"]
