"""Check options that a config gives by name against the signature of the function or class that takes them."""

import inspect
import math
from collections.abc import Callable, Mapping
from inspect import Parameter
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin

MOST_LAYERS = 1000


def options_of(target: Callable[..., Any], sizes: int) -> dict[str, Parameter]:
    """List the options of a quantizer or network: its arguments after the first `sizes`, by name."""
    return dict(list(inspect.signature(target).parameters.items())[sizes:])


def check_options(kind: str, name: str, options: Mapping[str, Any], known: Mapping[str, Parameter]) -> None:
    """Check the names and types of options.

    An annotation is int, float, bool, a Literal, a tuple of one type and any length, a dict whose content is checked
    elsewhere, or one of these or None.

    Args:
        kind: `quantizer` or `network`, for the error.
        name: name of the quantizer or network, for the error.
        options: values by name.
        known: the options that exist, from `options_of`.

    Raises:
        ValueError: an unknown option, a value of the wrong type, or a number that is negative or not finite.
    """
    for option, value in options.items():
        if option not in known:
            raise ValueError(f"{kind} {name!r} has no option {option!r}; it has {', '.join(known) or 'none'}")
        _check_value(f"{name}.{option}", value, known[option].annotation)


def check_layers(**counts: int) -> None:
    """Raise ValueError for a number of layers that no network has: they are built one by one, for hours at 10^9."""
    for option, count in counts.items():
        if count > MOST_LAYERS:
            raise ValueError(f"{option} must be at most {MOST_LAYERS}, got {count}")


def _check_value(option: str, value: Any, annotation: Any) -> None:
    """Raise ValueError where a value is not of the annotated type."""
    kinds = get_args(annotation) if get_origin(annotation) in (Union, UnionType) else (annotation,)
    if value is None and NoneType in kinds:
        return
    kind = next(kind for kind in kinds if kind is not NoneType)
    described = f"{_described(kind)}{' or null' if NoneType in kinds else ''}"
    if get_origin(kind) is Literal:
        if value not in get_args(kind):
            raise ValueError(f"{option} is one of {', '.join(get_args(kind))}, got {value!r:.80}")
    elif get_origin(kind) is tuple:
        if not isinstance(value, list | tuple) or not all(_fits(one, get_args(kind)[0]) for one in value):
            raise ValueError(f"{option} must be of type {described}, got {value!r:.80}")
        for number in value:
            _check_number(option, number)
    elif get_origin(kind) is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{option} must be of type {described}, got {value!r:.80}")
    elif not _fits(value, kind):
        raise ValueError(f"{option} must be of type {described}, got {value!r:.80}")
    else:
        _check_number(option, value)


def _described(kind: Any) -> str:
    """Name a type as an error does."""
    return f"list of {get_args(kind)[0].__name__}" if get_origin(kind) is tuple else getattr(kind, "__name__", "")


def _fits(value: Any, kind: type) -> bool:
    """Tell whether a value is of a type; an int is a valid float, a bool is no valid int."""
    return type(value) is kind or (kind is float and type(value) is int)


def _check_number(option: str, value: bool | int | float) -> None:
    """Raise ValueError for a number that is negative, infinite, NaN, or too large to be exact as a float."""
    # Weights, rates, counts, widths and angles: none of them has a meaning below 0.
    if type(value) is not bool and not 0 <= value < (2**53 if type(value) is int else math.inf):
        raise ValueError(f"{option} must be finite and not negative, got {value!r:.80}")
