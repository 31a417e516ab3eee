"""Convert formulas to MathML, add pages from the root of the repository, and link source files, for mkdocs.

Formulas are converted when the site is built, so that a page needs neither a network nor a script to show them.
"""

import html
import logging
import re
from pathlib import Path
from typing import Any

from latex2mathml.converter import convert
from mkdocs.structure.files import File, Files

log = logging.getLogger("mkdocs.hooks")
ROOT = Path(__file__).resolve().parents[1]
# Pages that lie in the root, where code forges look for them.
PAGES = {"contributing.md": "CONTRIBUTING.md", "changelog.md": "CHANGELOG.md"}

_LINK = re.compile(r"\[([^\]]*)\]\(([^)\s]+)\)")
_MATH = re.compile(r'<(span|div) class="arithmatex">\\(?P<open>[(\[])(?P<tex>.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: Any) -> Files:
    """Add the pages that lie in the root of the repository."""
    for name, source in PAGES.items():
        files.append(File.generated(config, name, abs_src_path=str(ROOT / source)))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    """Turn a link to a file outside docs/ into a link to the repository's page, or into its name where none is set."""
    folder = ROOT if page.file.src_uri in PAGES else ROOT / "docs" / Path(page.file.src_uri).parent

    def moved(match: re.Match[str]) -> str:
        text, target = match.groups()
        if re.match(r"[a-z]+:|#|/", target):
            return match.group()
        name, _, anchor = target.partition("#")
        place = (folder / name).resolve()
        if not place.exists():
            log.warning("%s links to %s, which is not there", page.file.src_uri, target)
            return match.group()
        if place.is_relative_to(ROOT / "docs"):
            inside = place.relative_to(ROOT / "docs")
            return f"[{text}]({inside}{'#' * bool(anchor)}{anchor})" if folder == ROOT else match.group()
        page_name = {source: name for name, source in PAGES.items()}.get(str(place.relative_to(ROOT)))
        if page_name is not None:
            return f"[{text}]({page_name}{'#' * bool(anchor)}{anchor})"
        if config.repo_url:
            return f"[{text}]({config.repo_url.rstrip('/')}/blob/main/{place.relative_to(ROOT)})"
        return text if "`" in text or not re.search(r"[/.]", text) else f"`{text}`"

    # Code is left as it is: a link in it is none.
    parts = re.split(r"(^```.*?^```$|`[^`\n]*`(?!\]))", markdown, flags=re.DOTALL | re.MULTILINE)
    return "".join(part if index % 2 else _LINK.sub(moved, part) for index, part in enumerate(parts))


def on_page_content(content: str, page: Any, config: Any, files: Files) -> str:
    r"""Replace formulas, \(...\) and \[...\], by MathML."""

    def mathml(match: re.Match[str]) -> str:
        display = "block" if match["open"] == "[" else "inline"
        return convert(html.unescape(match["tex"]).strip(), display=display)

    return _MATH.sub(mathml, content)
