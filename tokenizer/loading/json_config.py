"""The JSON files of a model's folder, which somebody else may have written: read within bounds, checked by type."""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST_FILE = 2**20  # bytes; 1,000 class names take some 30,000

# What diffusers notes beside the arguments.
_NOTES = ("_class_name", "_diffusers_version", "_name_or_path")


def read_json(file: Path) -> dict[str, Any]:
    """The object in a JSON file.

    Raises:
        ValueError: no such file, one of another kind or above LARGEST_FILE, or one that holds something else, NaN
            among it; infinity is in the configs of some of diffusers' schedulers.
    """
    if not file.is_file():  # a device or a pipe might never end
        raise ValueError(f"{file} is not there, or no file; name a folder that save_pretrained has written")
    try:
        with file.open("rb") as opened:
            content = opened.read(LARGEST_FILE + 1)
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    if len(content) > LARGEST_FILE:
        raise ValueError(f"{file} is larger than {LARGEST_FILE} bytes, which no config is; get the folder anew")
    try:
        found = json.loads(content.decode(), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}; get the folder anew") from error
    if not isinstance(found, dict):
        raise ValueError(f"{file} holds a {type(found).__name__} and not an object; get the folder anew")
    return found


def check_arguments(
    target: Callable, config: Mapping[str, Any], file: Path, others: bool = False, skip: tuple[str, ...] = ()
) -> None:
    """Checks that a config holds arguments of a class, or function, each of the type that is annotated.

    Args:
        target: the class.
        config: arguments by name, and diffusers' notes.
        file: where it was read.
        others: whether there may be further names.
        skip: names that are checked elsewhere.

    Raises:
        ValueError: a name that the class does not have, or a value of another type.
    """
    parameters, hints = inspect.signature(target).parameters, get_type_hints(getattr(target, "__init__", target))
    for name, value in config.items():
        if name in _NOTES and isinstance(value, str | None):
            continue
        if name not in parameters and not others:
            raise ValueError(
                f"{file}: {target.__name__} has no argument {name!r:.80}; it has {', '.join(parameters)}; "
                "remove it, or get a version of this project that knows it"
            )
        if name in parameters and name not in skip:
            wanted, default = hints.get(name, Any), parameters[name].default
            # diffusers' own defaults are not all of the type that they are annotated with.
            if not _fits(value, wanted) and not (type(value) is type(default) and value == default):
                described = wanted.__name__ if isinstance(wanted, type) else str(wanted).replace("typing.", "")
                raise ValueError(f"{file}: {name} must be {described}, got {value!r:.80}; get the folder anew")


def _fits(value: Any, wanted: Any) -> bool:
    """Whether a value of a JSON file is what an annotation asks for; a list may stand for a tuple."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and Ellipsis not in inner:
        return (
            isinstance(value, list)
            and len(value) == len(inner)
            and all(_fits(one, kind) for one, kind in zip(value, inner, strict=True))
        )
    if origin in (tuple, list):
        return isinstance(value, list) and all(_fits(one, inner[0]) for one in value)
    if wanted is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is {tuple: list, None: NoneType}.get(wanted, origin or wanted)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number of JSON")
    return float(name)
