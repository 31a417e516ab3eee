"""Convert number arguments of Python, numpy or torch, and refuse values that only look like numbers."""

import reprlib
from typing import Any

import numpy as np
from torch import Tensor

_SHOWN = (bool, int, float, complex, str, bytes, list, tuple, dict, set, range, np.generic)
_LONGEST = 80  # characters of a description


def as_number(name: str, value: Any) -> float:
    """Convert the argument `name` to float: an int, a float, a numpy number, or a tensor of one element.

    Raises:
        TypeError: anything else; text and truth values are no numbers.
        ValueError: a number beyond the range of a float.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, int | float):
        raise TypeError(f"{name} must be a number, got {described(value)}; give one such as 1.0, or leave it out")
    try:
        return float(plain)
    except OverflowError as error:
        raise ValueError(f"{name} must be finite, got {described(value)}; give a smaller number") from error


def as_whole_number(name: str, value: Any) -> int:
    """Convert the argument `name` to int: an int, a numpy integer, or an integer tensor of one element.

    Raises:
        TypeError: anything else, including 10.0, which may come from an unintended division.
    """
    plain = _plain(value)
    if isinstance(plain, bool) or not isinstance(plain, int):
        raise TypeError(f"{name} must be a whole number, got {described(value)}; give one such as 10, or leave it out")
    return plain


def described(value: Any) -> str:
    """Describe an argument's value in one line for an error."""
    if isinstance(value, Tensor) and value.is_nested:  # has no shape
        return "a nested Tensor"
    if isinstance(value, Tensor | np.ndarray):
        return f"a {type(value).__name__} of {value.dtype} {tuple(value.shape)}"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    if value is not None and not isinstance(value, _SHOWN):  # its repr may be a whole network
        return f"a {type(value).__name__}"
    text = " ".join(reprlib.repr(value).split())
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}..."


def _plain(value: Any) -> Any:
    """Return the Python number in a numpy scalar, or in a tensor or array of one element; other values unchanged."""
    if isinstance(value, Tensor):
        return value.item() if not (value.is_meta or value.is_nested) and value.numel() == 1 else value
    if isinstance(value, np.ndarray | np.generic):
        return value.item() if value.size == 1 else value
    return value
