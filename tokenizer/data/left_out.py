"""Count the files of a data set's folder that are not read, for the printed summary."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass
class LeftOut:
    """The unused files of a folder.

    Attributes:
        hidden: files whose name or folder begins with a dot, or that an operating system created.
        endings: number of files per ending that is no image's.
        splits: number of images of each unused split.
        others: number of other files, by a description.
    """

    hidden: int = 0
    endings: Counter[str] = field(default_factory=Counter)
    splits: Mapping[str, int] = field(default_factory=dict)
    others: Counter[str] = field(default_factory=Counter)

    def __str__(self) -> str:
        """`3 hidden, 2 unreadable names (.csv, .xyz)`; empty where nothing is left out."""
        parts = [f"{self.hidden} hidden"] if self.hidden else []
        if number := sum(self.endings.values()):
            parts.append(f"{number} unreadable {'name' if number == 1 else 'names'} ({listed(sorted(self.endings))})")
        parts += [f"{number} of split {name}" for name, number in self.splits.items() if number]
        parts += [f"{number} {words}" for words, number in sorted(self.others.items())]
        return ", ".join(parts)


def listed(names: list[str], most: int = 10) -> str:
    """Join names with commas; names beyond `most` become dots."""
    return ", ".join(names[:most]) + (", ..." if len(names) > most else "")
