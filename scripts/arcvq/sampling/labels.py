"""The class label of each sample: balanced, random, or from a text file."""

import re
from collections.abc import Sequence
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from jsonargparse import Namespace
from torch import Tensor

from pipelines.class_conditional import ClassConditionalPipeline

PER_CLASS = 8  # images of each class by default

# Limits on a file of labels and on its lines: a larger file is not one of labels.
LABELS_BYTES, LINE_LENGTH = 2**26, 1000


def class_labels(number: int, classes: Sequence[int], scheme: str, seed: int) -> Tensor:
    """Assign one of `classes` to each image, int64 (number,).

    Args:
        number: of images.
        classes: class ids.
        scheme: `balanced` takes the classes in turn, `random` draws them from `seed`.
        seed: of the random scheme.
    """
    if scheme == "balanced":
        indices = torch.arange(number) % len(classes)
    else:
        indices = torch.from_numpy(np.random.default_rng(seed).integers(len(classes), size=number))
    return torch.tensor(classes)[indices]


def wanted_labels(pipeline: ClassConditionalPipeline, config: Namespace) -> Tensor:
    """Return the label of each image that the options ask for, int64 (n,).

    Raises:
        ValueError: a label is no class, options exclude each other, or a file has too few labels.
    """
    if config.labels in ("balanced", "random"):
        classes = label_ids(pipeline, config.class_labels)
        pipeline.check_labels(classes, len(pipeline.class_names))
        if config.num_images is None and config.labels == "balanced":
            return torch.tensor(classes).repeat_interleave(config.per_class)
        number = config.per_class * len(classes) if config.num_images is None else config.num_images
        return class_labels(number, classes, config.labels, config.seed)
    if config.class_labels is not None:
        raise ValueError(f"--class_labels and the file --labels {config.labels} both say which classes: leave one out")
    if config.per_class != PER_CLASS:
        raise ValueError(f"--per_class {config.per_class} changes nothing beside the file --labels {config.labels}")
    return _labels_from_file(pipeline, Path(config.labels), config.num_images)


def _labels_from_file(pipeline: ClassConditionalPipeline, file: Path, number: int | None) -> Tensor:
    """Read the labels of `number` images, one from each line; of all lines if it is None."""
    lines = label_lines(file)
    number = len(lines) if number is None else number
    if not 1 <= number <= len(lines):
        raise ValueError(f"{file} has {len(lines)} labels, one in each line, for {number} images")
    ids: dict[str, int] = {}  # lines repeat, so each text is looked up once
    for line, text in islice(lines.items(), number):
        if text in ids:
            continue
        try:
            (ids[text],) = label_ids(pipeline, [text])
            pipeline.check_labels(ids[text], len(pipeline.class_names))
        except ValueError as error:
            raise ValueError(f"line {line} of {file}: {error}") from error
    return torch.tensor([ids[text] for text in islice(lines.values(), number)])


def label_lines(file: Path) -> dict[int, str]:
    """Read the lines of a text file that are not blank, by line number from 1 on.

    Raises:
        ValueError: it is not a text file, or too large for one of labels.
    """
    try:
        if not file.is_file():
            raise ValueError(f"labels is balanced, random, or a text file that is there, got {str(file)!r}")
        if (size := file.stat().st_size) > LABELS_BYTES:
            raise ValueError(
                f"{file} has {size:,} bytes, more than {LABELS_BYTES:,}; --labels takes an id or a name per line"
            )
        lines = file.read_text(encoding="utf-8").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is no text file; --labels takes an id or a name per line") from error
    long = next((number for number, line in enumerate(lines, start=1) if len(line) > LINE_LENGTH or "\0" in line), None)
    if long is not None:
        raise ValueError(f"line {long} of {file} is no id or name; --labels takes one per line")
    return {number: line.strip() for number, line in enumerate(lines, start=1) if line.strip()}


def label_ids(pipeline: ClassConditionalPipeline, names: list[str] | None) -> list[int]:
    """Convert class ids or names, given as text, to ids; None gives all classes.

    A text that is the name of a class is taken as a name, even if it looks like an id.
    """
    known = pipeline.class_names
    if names is None:
        return list(known)
    numbers = re.compile(r"-?\d{1,18}")  # a 64-bit integer holds any number of 18 digits
    return [
        int(name) if numbers.fullmatch(name) and name not in known.values() else pipeline.get_label_ids(name)[0]
        for name in names
    ]
