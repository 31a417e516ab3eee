"""Scale a quantizer's schedules to a training of another length than the one they are meant for."""

import json
from collections.abc import Mapping
from typing import Any

from jsonargparse import Namespace

from arcvq.cli.parser import ScriptParser
from tokenizer.option_checks import options_of
from tokenizer.quantizers import QUANTIZERS


def add_schedule_option(parser: ScriptParser) -> None:
    """Declare the option of the length that a quantizer's rates per step are meant for."""
    parser.add_argument(
        "--schedule_length",
        type=int | None,
        default=None,
        help="length of the training that the quantizer's rates per step (arc_decay, ball_growth, temperature_decay) "
        "are meant for: they are multiplied by it over optim.max_steps; None: as they are",
    )


def check_schedule(config: Namespace) -> None:
    """Raise ValueError for a length below one step."""
    if config.schedule_length is not None and config.schedule_length < 1:
        raise ValueError(f"schedule_length must be at least 1, or None, got {config.schedule_length}")


def scaled_rates(config: Namespace) -> dict[str, Any]:
    """Return the quantizer's rates per step for `optim.max_steps`, as options; none without `schedule_length`."""
    if config.schedule_length is None:
        return {}
    factor = config.schedule_length / config.optim.max_steps
    return _scaled(config.model.quantizer, config.model.quantizer_options or {}, factor)


def with_scaled_rates(config: Namespace) -> dict[str, Any]:
    """Return the model's options, by name, with the scaled rates."""
    options, rates = config.model.as_dict(), scaled_rates(config)
    return options | ({"quantizer_options": (options["quantizer_options"] or {}) | rates} if rates else {})


def described_schedule(config: Namespace) -> str:
    """Say in a line what `schedule_length` changes."""
    rates = scaled_rates(config)
    if not rates:
        return f"schedule_length: quantizer {config.model.quantizer!r} has no rates per step"
    return f"schedule_length: {config.schedule_length:,} steps in {config.optim.max_steps:,}, {json.dumps(rates)}"


def _scaled(name: str, given: Mapping[str, Any], factor: float) -> dict[str, Any]:
    """Scale the rates per step of the quantizer `name` with the options `given`, and those of its base quantizer."""
    defaults = options_of(QUANTIZERS[name], sizes=2)
    rates = {rate: factor * given.get(rate, defaults[rate].default) for rate in QUANTIZERS[name].rates_per_step}
    if "base_options" in defaults:
        own = given.get("base_options") or {}
        if of_base := _scaled(given.get("base", defaults["base"].default), own, factor):
            rates["base_options"] = {**own, **of_base}
    return rates
