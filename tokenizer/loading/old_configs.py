"""Read tokenizer configs from before `network_options`, when the options of both networks were arguments."""

from collections.abc import Collection, Mapping
from typing import Any

_ONCE_ARGUMENTS = (
    "residual_channels", "strided_layers",  # of conv
    "channel_multipliers", "attention_sizes", "z_channels", "norm_groups",  # of vqgan
)  # fmt: skip


def with_network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Move the old arguments in a tokenizer's config to `network_options`; null meant the default.

    Raises:
        ValueError: an option that the config holds twice.
    """
    old = {name: config[name] for name in _ONCE_ARGUMENTS if config.get(name) is not None}
    moved = {name: value for name, value in config.items() if name not in _ONCE_ARGUMENTS}
    if not old:
        return moved
    options = moved.get("network_options")
    if options is not None and (not isinstance(options, Mapping) or old.keys() & options.keys()):
        raise ValueError(
            f"the config holds {', '.join(old)} next to network_options {options!r:.80}; remove the former"
        )
    return moved | {"network_options": old | (options or {})}


def refuse_old_arguments(names: Collection[str]) -> None:
    """Raise ValueError for an old argument among the arguments of a call; diffusers would ignore it."""
    if given := [name for name in _ONCE_ARGUMENTS if name in names]:
        raise ValueError(f"{given[0]} is no argument of VQTokenizer; it is one of its network_options")


def without_network_options(config: Mapping[str, Any]) -> dict[str, Any]:
    """Move `network_options` in a tokenizer's config back to the top level, with null for arguments not given."""
    flat = {name: value for name, value in config.items() if name != "network_options"}
    return flat | dict.fromkeys(_ONCE_ARGUMENTS) | dict(config.get("network_options") or {})
