"""Start a tokenizer's training from a trained tokenizer: of all its parts, or of the decoder alone."""

import json
from typing import Any, Literal

from jsonargparse import Namespace

from arcvq.cli.parser import ScriptParser
from arcvq.runs.results import find_tokenizer, load_tokenizer
from priors.latents import tokenizer_fingerprint
from tokenizer import VQTokenizer
from tokenizer.loading.model_folder import read_model_config
from tokenizer.quantizers import QUANTIZERS


def add_start_options(parser: ScriptParser) -> None:
    """Declare the options of a training that starts from a trained tokenizer."""
    parser.add_argument(
        "--start_from",
        type=str | None,
        default=None,
        help="folder of a trained tokenizer whose weights the training starts from; None: random weights",
    )
    parser.add_argument(
        "--stage",
        type=Literal["whole", "decoder"],
        default="whole",
        help="what is trained; decoder: encoder and codebook, and so all codes and latents, stay those of start_from",
    )


def check_start(config: Namespace) -> None:
    """Raise ValueError if there is no tokenizer in `start_from`, or one with other options than the model's."""
    if config.start_from is None:
        if config.stage == "decoder":
            raise ValueError(
                "stage decoder trains the decoder of a trained tokenizer: name its folder with --start_from runs/NAME"
            )
        return
    if config.codebook_file is not None:
        raise ValueError("start_from and codebook_file both set the codebook: leave one of them out")
    theirs = read_model_config(VQTokenizer, find_tokenizer(config.start_from))
    for name, ours in config.model.as_dict().items():
        if _plain(ours) != _plain(theirs.get(name)):
            raise ValueError(
                f"model.{name} is {ours}, the tokenizer in {config.start_from!r} has {theirs.get(name)}: take its "
                f"options with --config {config.start_from}/config.yaml"
            )


def load_start(tokenizer: VQTokenizer, folder: str) -> str:
    """Load the weights of the trained tokenizer in `folder`, with its quantizer's step; return their fingerprint.

    Raises:
        ValueError: it was trained on images of another size or number of channels.
    """
    trained = load_tokenizer(folder)
    for name in ("in_channels", "image_size"):
        if trained.config[name] != tokenizer.config[name]:
            raise ValueError(
                f"the tokenizer in {folder!r} has {name} {trained.config[name]}, the images {tokenizer.config[name]}; "
                "set data.channels and data.image_size to what it was trained on"
            )
    tokenizer.load_state_dict(trained.state_dict())
    return tokenizer_fingerprint(trained)


def _plain(option: Any) -> str:
    """Write an option as JSON, in which tuples are lists and an empty dictionary is none.

    Rates per step are left out, which may be scaled to another length.
    """
    return json.dumps(_without_rates(option) or None, sort_keys=True)


def _without_rates(option: Any) -> Any:
    """Leave the rates per step out of a quantizer's options, and of those nested in them."""
    if not isinstance(option, dict):
        return option
    rates = {rate for quantizer in QUANTIZERS.values() for rate in quantizer.rates_per_step}
    kept = {name: _without_rates(value) for name, value in option.items() if name not in rates}
    return {name: value for name, value in kept.items() if value != {}}
