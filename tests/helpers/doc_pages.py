"""The pages of the documentation as tests read them: fenced blocks, inline code, links, headings."""

import re
from dataclasses import dataclass
from pathlib import Path

from places import ROOT

# Results are kept as they were written, with the commands of their time.
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")] + sorted(
    (ROOT / "docs").glob("*.md")
)

_FENCE = re.compile(
    r"^(?P<indent> *)```(?P<language>\S*)[^\n]*\n(?P<text>.*?)^(?P=indent)```$", re.DOTALL | re.MULTILINE
)


@dataclass(frozen=True)
class Block:
    """A fenced block of a page; `line` is the number of its first line."""

    page: Path
    line: int
    language: str
    text: str

    def __str__(self) -> str:
        return f"{self.page.name}:{self.line}"


def blocks(page: Path) -> list[Block]:
    """The fenced blocks of a page."""
    text, found = page.read_text(encoding="utf-8"), []
    for match in _FENCE.finditer(text):
        indent = len(match["indent"])
        lines = "\n".join(line[indent:] for line in match["text"].splitlines())
        found.append(Block(page, text[: match.start()].count("\n") + 2, match["language"], lines))
    return found


def prose(page: Path) -> str:
    """A page without its fenced blocks."""
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def inline_code(page: Path) -> list[str]:
    """The code between single backticks; a line break in it is a space."""
    return [" ".join(code.split()) for code in re.findall(r"`([^`]+)`", prose(page))]


def links(page: Path) -> list[str]:
    """The targets of a page's links and pictures."""
    return re.findall(r"\]\(([^)\s]+)\)", re.sub(r"`[^`]+`(?!\])", "", prose(page)))


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as Markdown's own and a code forge's rules agree on them."""
    headings = re.findall(r"^#+ +(.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[\s-]+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}
