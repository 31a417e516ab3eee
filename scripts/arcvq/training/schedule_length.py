"""Scale a quantizer's schedules to a training of another length than the one they are meant for."""

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


def scaled_rates(config: Namespace) -> dict[str, float]:
    """Return the quantizer's rates per step for `optim.max_steps`; none without `schedule_length`."""
    if config.schedule_length is None:
        return {}
    quantizer, given = QUANTIZERS[config.model.quantizer], config.model.quantizer_options or {}
    defaults = options_of(quantizer, sizes=2)
    factor = config.schedule_length / config.optim.max_steps
    return {name: factor * given.get(name, defaults[name].default) for name in quantizer.rates_per_step}


def with_scaled_rates(config: Namespace) -> dict[str, Any]:
    """Return the model's options, by name, with the scaled rates."""
    options, rates = config.model.as_dict(), scaled_rates(config)
    return options | ({"quantizer_options": (options["quantizer_options"] or {}) | rates} if rates else {})
