"""Scale a quantizer's schedules to a training of another length than the one they are meant for."""

from typing import Any

from jsonargparse import Namespace

from arcvq.cli.parser import ScriptParser
from tokenizer.option_checks import options_of
from tokenizer.quantizers import QUANTIZERS


def add_rate_option(parser: ScriptParser) -> None:
    """Declare the option of the length that a quantizer's rates per step are meant for."""
    parser.add_argument(
        "--rates_for_steps",
        type=int | None,
        default=None,
        help="length of the training that the quantizer's rates per step (arc_decay, ball_growth, temperature_decay) "
        "are meant for: they are multiplied by it over optim.max_steps; None: as they are",
    )


def check_rates(config: Namespace) -> None:
    """Raise ValueError for a length below one step."""
    if config.rates_for_steps is not None and config.rates_for_steps < 1:
        raise ValueError(f"rates_for_steps must be at least 1, or None, got {config.rates_for_steps}")


def scaled_rates(config: Namespace) -> dict[str, float]:
    """Return the quantizer's rates per step for `optim.max_steps`; none without `rates_for_steps`."""
    if config.rates_for_steps is None:
        return {}
    quantizer, given = QUANTIZERS[config.model.quantizer], config.model.quantizer_options or {}
    defaults = options_of(quantizer, sizes=2)
    factor = config.rates_for_steps / config.optim.max_steps
    return {name: factor * given.get(name, defaults[name].default) for name in quantizer.rates_per_step}


def with_scaled_rates(config: Namespace) -> dict[str, Any]:
    """Return the model's options, by name, with the scaled rates."""
    options, rates = config.model.as_dict(), scaled_rates(config)
    return options | ({"quantizer_options": (options["quantizer_options"] or {}) | rates} if rates else {})
