"""Read the JSON files of a saved model within bounds, and check their arguments by name and type."""

import inspect
import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

LARGEST_FILE = 2**20  # bytes; 1,000 class names take some 30,000

# diffusers writes these next to the arguments.
_NOTES = ("_class_name", "_diffusers_version", "_name_or_path")


def read_json(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: the file is missing, unreadable, larger than LARGEST_FILE or no JSON, or holds no object, or a NaN;
            infinity is in the configs of some of diffusers' schedulers.
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
        config = json.loads(content.decode(), parse_constant=_constant)
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{file} is not valid JSON: {error}; get the folder anew") from error
    if not isinstance(config, dict):
        raise ValueError(f"{file} holds a {type(config).__name__} and not an object; get the folder anew")
    return config


def check_arguments(
    target: Callable, config: Mapping[str, Any], file: Path, others: bool = False, skip: tuple[str, ...] = ()
) -> None:
    """Check that a config holds arguments of a class or function, each of its annotated type.

    Args:
        target: the class.
        config: arguments by name, and diffusers' notes.
        file: the file that holds the config, for the error.
        others: whether further names are allowed.
        skip: names that are checked elsewhere.

    Raises:
        ValueError: an unknown name, or a value of another type.
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
    """Tell whether a value of a JSON file is of an annotated type; a list may stand for a tuple."""
    origin, inner = get_origin(wanted), get_args(wanted)
    if wanted is Any:
        return True
    if origin in (Union, UnionType):
        return any(_fits(value, kind) for kind in inner)
    if origin is Literal:
        return value in inner
    if origin is tuple and Ellipsis not in inner:
        return (
            isinstance(value, list)
            and len(value) == len(inner)
            and all(_fits(item, kind) for item, kind in zip(value, inner, strict=True))
        )
    if origin in (tuple, list):
        return isinstance(value, list) and all(_fits(item, inner[0]) for item in value)
    if wanted is float:
        return type(value) is int or (type(value) is float and math.isfinite(value))
    return type(value) is {tuple: list, None: NoneType}.get(wanted, origin or wanted)


def _constant(name: str) -> float:
    if name == "NaN":
        raise ValueError("NaN is no number of JSON")
    return float(name)
