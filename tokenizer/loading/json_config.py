"""Read the JSON files of a saved model, and check the names in them."""

import inspect
import json
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

# diffusers writes these next to the arguments.
_NOTES = ("_class_name", "_diffusers_version", "_name_or_path")


def read_json(file: Path) -> dict[str, Any]:
    """Read the object in a JSON file.

    Raises:
        ValueError: the file is missing, unreadable or no JSON, or holds no object.
    """
    if not file.is_file():
        raise ValueError(f"{file} is not there, or no file; name a folder that save_pretrained has written")
    try:
        content = json.loads(file.read_bytes())
    except OSError as error:
        raise ValueError(f"{file} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}; get the folder anew") from error
    if not isinstance(content, dict):
        raise ValueError(f"{file} holds a {type(content).__name__} and not an object; get the folder anew")
    return content


def check_arguments(target: Callable, config: Mapping[str, Any], file: Path) -> None:
    """Raise ValueError for a name in a config that is no argument of the class; diffusers would ignore it."""
    arguments: Collection[str] = inspect.signature(target).parameters
    for name in config:
        if name not in arguments and name not in _NOTES:
            raise ValueError(
                f"{file}: {target.__name__} has no argument {name!r:.80}; it has {', '.join(arguments)}; "
                "remove it, or get a version of this project that knows it"
            )
