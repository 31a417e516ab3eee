"""diffusers' decorators of models, with types: a type checker keeps the signature of what they decorate."""

from collections.abc import Callable
from typing import Any, TypeVar

from diffusers.configuration_utils import register_to_config as _register_to_config
from diffusers.utils.accelerate_utils import apply_forward_hook as _apply_forward_hook

_Decorated = TypeVar("_Decorated", bound=Callable[..., Any])


def register_to_config(init: _Decorated) -> _Decorated:
    """Decorate a constructor: its arguments become the model's `config`."""
    return _register_to_config(init)


def apply_forward_hook(method: _Decorated) -> _Decorated:
    """Decorate a public method: accelerate's offloading moves the model to its device as for `forward`."""
    return _apply_forward_hook(method)
