"""The quantizers by name. A new one is one file here and one line in `QUANTIZERS`."""

import inspect
import math
from typing import Any, Literal, get_args, get_origin

from tokenizer.quantizers.arc import ArcQuantizer
from tokenizer.quantizers.base import Quantizer, QuantizerOutput
from tokenizer.quantizers.cosine import CosineQuantizer
from tokenizer.quantizers.cvq import CVQQuantizer
from tokenizer.quantizers.ema import EMAQuantizer
from tokenizer.quantizers.fc import FCQuantizer
from tokenizer.quantizers.hvq import HVQQuantizer
from tokenizer.quantizers.hyperspherical_vae import HypersphericalVAEQuantizer
from tokenizer.quantizers.ibq import IBQQuantizer
from tokenizer.quantizers.lc import LCQuantizer
from tokenizer.quantizers.rotation import RotationQuantizer
from tokenizer.quantizers.rq import RQQuantizer
from tokenizer.quantizers.simvq import SimVQQuantizer
from tokenizer.quantizers.sq import SQQuantizer
from tokenizer.quantizers.vae import VAEQuantizer
from tokenizer.quantizers.vaevq import VAEVQQuantizer
from tokenizer.quantizers.vq import VQQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "arc": ArcQuantizer,
    "cosine": CosineQuantizer,
    "cvq": CVQQuantizer,
    "ema": EMAQuantizer,
    "fc": FCQuantizer,
    "hvq": HVQQuantizer,
    "hyperspherical_vae": HypersphericalVAEQuantizer,
    "ibq": IBQQuantizer,
    "lc": LCQuantizer,
    "rotation": RotationQuantizer,
    "rq": RQQuantizer,
    "simvq": SimVQQuantizer,
    "sq": SQQuantizer,
    "vae": VAEQuantizer,
    "vaevq": VAEVQQuantizer,
    "vq": VQQuantizer,
}


def make_quantizer(name: str, codebook_size: int, codebook_dim: int, options: dict[str, Any]) -> Quantizer:
    """Build the quantizer called `name`; `options` are the further arguments of its constructor.

    Raises:
        ValueError: an unknown name or option, an option of the wrong type, or a negative number; the message names it.
    """
    if name not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {name!r}; there are {', '.join(QUANTIZERS)}")
    parameters = dict(list(inspect.signature(QUANTIZERS[name]).parameters.items())[2:])
    for option, value in options.items():
        if option not in parameters:
            raise ValueError(f"quantizer {name!r} has no option {option!r}; it has {', '.join(parameters)}")
        _check_type(name, option, value, parameters[option].annotation)
    return QUANTIZERS[name](codebook_size, codebook_dim, **options)


def _check_type(name: str, option: str, value: Any, annotation: Any) -> None:
    if get_origin(annotation) is Literal:
        if value not in get_args(annotation):
            raise ValueError(f"{name}.{option} is one of {', '.join(get_args(annotation))}, got {value!r}")
    # An int is accepted as a float; a bool is not accepted as an int.
    elif type(value) is not annotation and not (annotation is float and type(value) is int):
        raise ValueError(f"{name}.{option} must be of type {annotation.__name__}, got {value!r}")
    # Options are weights, rates, counts and angles: none is negative, and an int must be exact as a float.
    elif type(value) is not bool and not 0 <= value < (2**53 if type(value) is int else math.inf):
        raise ValueError(f"{name}.{option} must be finite and not negative, got {value!r}")


__all__ = ["QUANTIZERS", "Quantizer", "QuantizerOutput", "make_quantizer"]
