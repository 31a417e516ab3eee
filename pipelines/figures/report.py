"""Write pictures, numbers and commands to one self-contained HTML page, which loads nothing else."""

import base64
import html
import io
import numbers
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from PIL import Image


@dataclass(frozen=True)
class Picture:
    """A picture of the report.

    Args:
        image: a PIL image, or the path of an image file.
        caption: the line below it.
        pixelated: whether pixels are shown as squares, enlarged by a whole factor if the page has room.
    """

    image: Image.Image | str | Path
    caption: str = ""
    pixelated: bool = False


@dataclass(frozen=True)
class Section:
    """A part of the report; empty fields do not appear.

    Args:
        title: its heading.
        text: paragraphs, separated by an empty line.
        pictures: shown one below the other.
        numbers: a table of names and values; text is shown unchanged, numbers are rounded.
        commands: shown as lines to copy.
    """

    title: str
    text: str = ""
    pictures: tuple[Picture, ...] = ()
    numbers: Mapping[str, str | float | int] | None = None
    commands: tuple[str, ...] = ()


def write_report(path: str | Path, title: str, sections: Sequence[Section]) -> None:
    """Write one HTML file that contains everything it shows, for wide or narrow, light or dark screens.

    Pictures are embedded losslessly, and all text is escaped. The file is replaced as a whole: after a failure, an
    earlier report is unchanged.

    Raises:
        OSError: a picture cannot be read (the message names it) or the report cannot be written.
    """
    path = Path(path)
    contents = "".join(f'<a href="#s{i}">{html.escape(section.title)}</a>' for i, section in enumerate(sections))
    body = "".join(f'<section id="s{i}">{_section(section)}</section>\n' for i, section in enumerate(sections))
    page = PAGE.format(title=html.escape(title), style=STYLE, contents=contents, body=body)
    unfinished = path.with_name(f".{path.name}.tmp")
    try:
        unfinished.write_text(page, encoding="utf-8")
        unfinished.replace(path)
    finally:
        unfinished.unlink(missing_ok=True)


PAGE_WIDTH = 1100  # CSS pixels
PAGE = """<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{title}</title>
<style>{style}</style>
</head>
<body>
<h1>{title}</h1>
<nav>{contents}</nav>
{body}</body>
</html>
"""
STYLE = """
:root { color-scheme: light dark; --text: #1b1f24; --page: #fff; --quiet: #5a626c; --line: #d5d9de; --link: #1b5aa0; }
@media (prefers-color-scheme: dark) {
  :root { --text: #e3e6ea; --page: #16191d; --quiet: #a3abb5; --line: #3b4048; --link: #86b8f0; } }
body { max-width: PAGE_WIDTHpx; margin: 0 auto; padding: 1rem; font: 1rem/1.5 system-ui, sans-serif;
  color: var(--text); background: var(--page); overflow-wrap: anywhere; }
h1 { font-size: 1.7rem; line-height: 1.2; margin: .6rem 0; }
h2 { font-size: 1.25rem; margin: 2rem 0 .6rem; padding-top: .8rem; border-top: 1px solid var(--line); }
a { color: var(--link); margin-right: 1.2rem; display: inline-block; }
p, figcaption { max-width: 44rem; }
figure { margin: 1rem 0; overflow-x: auto; }
img { display: block; max-width: 100%; height: auto; background: #fff; }
.pixelated { image-rendering: pixelated; }
figcaption { color: var(--quiet); font-size: .9rem; margin-top: .3rem; position: sticky; left: 0; }
table { border-collapse: collapse; margin: 1rem 0; }
th, td { padding: .25rem 0; border-bottom: 1px solid var(--line); text-align: left; vertical-align: top; }
th { font-weight: normal; padding-right: 2rem; }
td { text-align: right; font-variant-numeric: tabular-nums; }
pre { border: 1px solid var(--line); border-radius: 6px; padding: .7rem .9rem; overflow-x: auto; font-size: .88rem; }
""".replace("PAGE_WIDTH", str(PAGE_WIDTH))


def _section(section: Section) -> str:
    parts = [f"<h2>{html.escape(section.title)}</h2>"]
    parts += [f"<p>{html.escape(text.strip())}</p>" for text in section.text.split("\n\n") if text.strip()]
    if section.numbers:
        cells = [(html.escape(name), html.escape(_digits(value))) for name, value in section.numbers.items()]
        rows = "\n".join(f"<tr><th>{name}</th><td>{value}</td></tr>" for name, value in cells)
        parts.append(f"<table>\n{rows}\n</table>")
    parts += [_figure(picture) for picture in section.pictures]
    if section.commands:
        parts.append(f"<pre><code>{html.escape(chr(10).join(section.commands))}</code></pre>")
    return "\n".join(parts)


def _digits(value: str | float | int) -> str:
    if isinstance(value, str):
        return value
    if isinstance(value, numbers.Integral):
        return f"{value:,}"
    return f"{value:,.0f}" if 1000 <= abs(value) < 1e9 else f"{value:.4g}"


def _figure(picture: Picture) -> str:
    image = picture.image if isinstance(picture.image, Image.Image) else Image.open(picture.image)
    png = io.BytesIO()
    image.save(png, format="PNG")
    data = base64.b64encode(png.getvalue()).decode("ascii")
    # Wide pictures scroll sideways, so that text stays readable and a pixel is at least one screen pixel.
    if picture.pixelated:
        width, narrowest = image.width * max(1, min(8, (PAGE_WIDTH - 32) // image.width)), image.width
    else:  # the size given by its resolution: plots have more than a screen's 96 dots per inch
        width = narrowest = round(image.width * min(1.0, 96 / image.info.get("dpi", (96,))[0]))
    caption = html.escape(picture.caption)
    shape = f'width="{width}" style="min-width: min({narrowest}px, 36rem)"' + ' class="pixelated"' * picture.pixelated
    shown = f'<img {shape} alt="{caption}" src="data:image/png;base64,{data}">'
    return f"<figure>{shown}<figcaption>{caption}</figcaption></figure>"
