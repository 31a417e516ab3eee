"""Draw images and numbers: grids, samples by class, the codebook, training curves.

Images are uint8 (n, C, H, W) with 1 or 3 channels, and their pixels are never changed: grids are tiled without scaling
or enlarged by a whole factor, and all pictures are PNGs. Figures have their own canvas: matplotlib's backend and pyplot
state are not touched.
"""

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import EngFormatter, MaxNLocator
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from tokenizer.functional.usage import perplexity, usage

GREY = 128  # of gaps and empty cells
COMPARISON_COLUMNS = 16
MAX_CLASSES = 20
MAX_CODES = 1024  # in the distance matrix
LINEAR_NAMES = ("lr", "usage", "perplexity", "psnr", "ssim", "images")  # last words of metrics drawn on a linear scale
USED, UNUSED = "#2563a8", "#d1541f"


def image_grid(images: Tensor, columns: int) -> Image.Image:
    """Tile images row by row, unscaled, with a gap of one grey pixel; the last row may be shorter.

    `images`: uint8 (n, C, H, W), n > 0, C 1 or 3. Fewer images than `columns` give a narrower picture.

    Raises:
        ValueError: the images are not such a tensor, or `columns` is below 1.
    """
    _check_images(images)
    if columns < 1:
        raise ValueError(f"columns must be at least 1, got {columns}")
    return _tile(images.split(columns))


def save_comparison(originals: Tensor, reconstructions: Tensor, path: str | Path) -> None:
    """Save a PNG of row pairs: up to 16 originals, their reconstructions below; both uint8 (n, C, H, W).

    Raises:
        ValueError: the two are not image batches of one shape.
    """
    _check_images(originals)
    _check_images(reconstructions)
    if originals.shape != reconstructions.shape:
        shapes = f"{tuple(originals.shape)} and {tuple(reconstructions.shape)}"
        raise ValueError(f"originals and reconstructions differ in shape, {shapes}; pass one reconstruction per image")
    pairs = zip(originals.split(COMPARISON_COLUMNS), reconstructions.split(COMPARISON_COLUMNS), strict=True)
    _tile([row for pair in pairs for row in pair]).save(path, format="PNG")


def save_samples(images: Tensor, path: str | Path, columns: int = 10) -> None:
    """Save `image_grid(images, columns)` as a PNG."""
    image_grid(images, columns).save(path, format="PNG")


def save_class_samples(
    images: Tensor,
    labels: Tensor | Sequence[int],
    class_names: Sequence[str] | Mapping[int, str],
    path: str | Path,
    per_class: int = 10,
) -> None:
    """Save a PNG with one row per occurring class, in the order of the labels, with the class's name on the left.

    Args:
        images: uint8 (n, C, H, W), n > 0, C 1 or 3; small images are enlarged by a whole factor.
        labels: int64 (n,), the class of each image.
        class_names: `class_names[label]` names a class; of names with commas the first part is shown.
        path: path of the PNG.
        per_class: images per row, the first ones of the class. Only the first 20 classes are drawn; a note says so.

    Raises:
        ValueError: no such images, other than one label per image, a class without a name, or `per_class` below 1.
    """
    _check_images(images)
    labels = torch.as_tensor(labels)
    if labels.shape != images.shape[:1]:
        raise ValueError(f"labels are {tuple(labels.shape)} for {len(images)} images; pass one label per image")
    if per_class < 1:
        raise ValueError(f"per_class must be at least 1, got {per_class}")
    images, labels = images.cpu(), labels.cpu()
    classes = labels.unique().tolist()
    shown = classes[:MAX_CLASSES]
    named = class_names if isinstance(class_names, Mapping) else range(len(class_names))
    if unnamed := [label for label in shown if label not in named]:
        raise ValueError(f"class {unnamed[0]} has no name; class_names has {len(class_names)}")
    names = [str(class_names[label]).split(",")[0] for label in shown]
    names = [name if len(name) <= 24 else f"{name[:23]}…" for name in names]
    note = f"the first {len(shown)} of {len(classes)} classes" if len(classes) > len(shown) else ""

    grid = _tile([images[labels == label][:per_class] for label in shown])
    factor = max(1, round(64 / images.shape[2]))
    grid = grid.resize((grid.width * factor, grid.height * factor), Image.Resampling.NEAREST)
    row_height = (images.shape[2] + 1) * factor
    # matplotlib's font has more glyphs than Pillow's.
    font_path = Path(matplotlib.get_data_path(), "fonts", "ttf", "DejaVuSans.ttf")
    font = ImageFont.truetype(font_path, size=max(15, row_height // 8))
    margin = int(font.size) // 2
    left = math.ceil(max(font.getlength(name) for name in names)) + 2 * margin
    width = max(left + grid.width, math.ceil(font.getlength(note)) + 2 * margin)
    picture = Image.new(grid.mode, (width, grid.height + (4 * margin if note else 0)), "white")
    picture.paste(grid, (left, 0))
    draw = ImageDraw.Draw(picture)
    for row, name in enumerate(names):
        draw.text((left - margin, (row + 0.5) * row_height), name, "black", font, anchor="rm")
    draw.text((margin, grid.height + 2 * margin), note, "black", font, anchor="lm")
    picture.save(path, format="PNG")


def plot_codebook(codebook: Tensor, counts: Tensor, path: str | Path) -> None:
    """Save a PNG of two panels: each code's norm against its use, and the codes' Euclidean distances by use.

    Args:
        codebook: float (K, D), finite, any K; distances are those of the at most 1024 most used codes.
        counts: int64 (K,), how often each code occurs on the held-out split; not all zero.
        path: path of the PNG.

    Raises:
        ValueError: the shapes do not fit, a code is not finite, a count is negative, or no code occurs.
    """
    codebook, counts = codebook.detach().cpu(), counts.cpu()
    if codebook.ndim != 2 or not codebook.is_floating_point() or counts.shape != codebook.shape[:1]:
        shapes = f"{codebook.dtype} {tuple(codebook.shape)} with counts {tuple(counts.shape)}"
        raise ValueError(f"codebook is {shapes}, not floating point (K, D) with counts (K,)")
    if not torch.isfinite(codebook).all() or (counts < 0).any() or not counts.any():
        raise ValueError("the codebook holds NaN or infinity, or counts are negative or all zero")
    codebook = codebook.float()
    size = len(codebook)

    figure = Figure(figsize=(10, 4.6), dpi=160, layout="constrained")
    scatter, matrix = figure.subplots(1, 2)
    draw_norms(scatter, codebook.norm(dim=1), counts)
    scatter.set_title(f"usage {100 * usage(counts):.1f} %, perplexity {perplexity(counts):.1f} of {size:,}")

    order = counts.argsort(descending=True, stable=True)[:MAX_CODES]
    # Not with a matrix product, whose rounding gives a code a distance to itself or its copies.
    distances = torch.cdist(codebook[order], codebook[order], compute_mode="donot_use_mm_for_euclid_dist")
    others = distances[~torch.eye(len(order), dtype=torch.bool)]  # zeros of the diagonal would take half the colours
    lowest, highest = (others.min().item(), others.max().item()) if len(others) else (0.0, 1.0)
    drawn = matrix.imshow(distances.numpy(), vmin=lowest, vmax=highest, cmap="viridis")
    figure.colorbar(drawn, ax=matrix, extend="min" if lowest > 0 else "neither", label="Euclidean distance")
    matrix.set(xlabel="code, most used first", ylabel="code, most used first")
    matrix.set_title(f"distances, the {MAX_CODES} most used of {size:,} codes" if size > MAX_CODES else "distances")
    for axis in (matrix.xaxis, matrix.yaxis):
        axis.set_major_locator(MaxNLocator(6, integer=True))
    figure.savefig(path, format="png")


def draw_norms(panel: Axes, norms: Tensor, counts: Tensor) -> None:
    """Draw norms of codes, (K,), against their counts, int64 (K,), on a scale that is logarithmic above 1."""
    used = counts > 0
    for name, colour, mask in (("used", USED, used), ("unused", UNUSED, ~used)):
        if mask.any():
            label = f"{int(mask.sum()):,} {name}"
            x, y = norms[mask].numpy(), counts[mask].numpy()
            panel.scatter(x, y, s=14, alpha=0.6, linewidths=0, color=colour, label=label)
    panel.set_yscale("symlog", linthresh=1, linscale=0.5)  # symlog, so that 0 can be shown
    panel.set_ylim(-0.3, 5.0 * int(counts.max()))  # room for the legend
    panel.set(xlabel="norm of the code", ylabel="times used on the held-out split")
    panel.legend(loc="upper center", ncols=2)
    panel.grid(alpha=0.25)


def read_metrics(path: str | Path) -> list[dict[str, float]]:
    """Read the records of a metrics.jsonl, {"step": ..., name: value, ...}, in order.

    An incomplete last line, as a killed process leaves it, is ignored.

    Raises:
        ValueError: any other line is no record with a step; the message gives its number.
    """
    records = []
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            record = json.loads(line)
        except json.JSONDecodeError as error:
            if number == len(lines):
                break
            raise ValueError(f"line {number} of {path} is no JSON ({error})") from error
        if not isinstance(record, dict) or "step" not in record:
            raise ValueError(f'line {number} of {path} is no record with a "step"')
        records.append(record)
    return records


def plot_curves(metrics: Sequence[Mapping[str, float]], path: str | Path) -> None:
    """Save a PNG of small panels, one per name, with its values against the step; lr is the last.

    A positive loss that spans more than a factor of 10 gets a logarithmic scale. NaN and infinity are gaps; the panel's
    title counts them.

    Args:
        metrics: records {"step": step, name: value, ...} as from `read_metrics`; each may hold other names.
        path: path of the PNG.

    Raises:
        ValueError: a record has no step, or no record has another name.
    """
    if stepless := [record for record in metrics if "step" not in record]:
        raise ValueError(f"a record of metrics has no step: {stepless[0]}")
    # A dict keeps the order in which the names first occur.
    names = list(dict.fromkeys(name for record in metrics for name in record if name != "step"))
    if not names:
        raise ValueError("metrics hold no values to plot; pass at least one record with a step and a value")
    names.sort(key=lambda name: name == "lr")
    last_step = max(record["step"] for record in metrics)

    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(max(4.5, 3.3 * columns), 2.3 * rows + 0.3), dpi=160, layout="constrained")
    panels = figure.subplots(rows, columns, squeeze=False).flatten()
    for panel, name in zip(panels, names, strict=False):
        points = [(record["step"], record[name]) for record in metrics if name in record]
        steps, values = torch.tensor(points, dtype=torch.float64).T
        finite = torch.isfinite(values)
        marker = "." if len(values) <= 40 else ""
        panel.plot(steps.numpy(), values.where(finite, torch.nan).numpy(), color=USED, linewidth=1.3, marker=marker)
        lost = int((~finite).sum())
        panel.set_title(f"{name} ({lost} of {len(values)} not finite)" if lost else name, fontsize=11)
        drawn = values[finite]
        if (
            name.split("_")[-1] not in LINEAR_NAMES
            and len(drawn)
            and drawn.min() > 0
            and drawn.max() > 10 * drawn.min()
        ):
            panel.set_yscale("log")
        panel.set_xlim(-0.03 * last_step, max(1.03 * last_step, 1))
        panel.xaxis.set_major_locator(MaxNLocator(4, integer=True, steps=[1, 2, 5, 10]))
        panel.xaxis.set_major_formatter(EngFormatter(sep=""))
        panel.grid(alpha=0.25)
    for panel in panels[len(names) :]:
        panel.remove()
    figure.supxlabel("step", fontsize=11)
    figure.savefig(path, format="png")


def _check_images(images: Tensor) -> None:
    if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or 0 in images.shape:
        kind = f"{images.dtype} {tuple(images.shape)}"
        raise ValueError(f"images are {kind}, not uint8 (n, C, H, W) with C 1 or 3 and n above 0")


def _tile(rows: Sequence[Tensor]) -> Image.Image:
    """Tile rows of images, each uint8 (1 to columns, C, H, W), on one canvas."""
    _, channels, height, width = rows[0].shape
    columns = max(len(row) for row in rows)
    shape = (channels, len(rows) * (height + 1) - 1, columns * (width + 1) - 1)
    canvas = torch.full(shape, GREY, dtype=torch.uint8)
    for i, row in enumerate(rows):
        for j, image in enumerate(row.cpu()):
            top, left = i * (height + 1), j * (width + 1)
            canvas[:, top : top + height, left : left + width] = image
    pixels = canvas[0] if channels == 1 else canvas.permute(1, 2, 0)
    return Image.fromarray(pixels.contiguous().numpy())
