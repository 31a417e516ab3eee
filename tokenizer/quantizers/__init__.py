"""The quantizers by name. A new one is one file here and one line in `QUANTIZERS`."""

from typing import Any

from tokenizer.option_checks import check_options, options_of
from tokenizer.quantizers.arc import ArcQuantizer
from tokenizer.quantizers.arc_vae import ArcVAEQuantizer
from tokenizer.quantizers.base import Quantizer, QuantizerOutput
from tokenizer.quantizers.bsq import BSQQuantizer
from tokenizer.quantizers.cosine import CosineQuantizer
from tokenizer.quantizers.cvq import CVQQuantizer
from tokenizer.quantizers.ema import EMAQuantizer
from tokenizer.quantizers.fc import FCQuantizer
from tokenizer.quantizers.fsq import FSQQuantizer
from tokenizer.quantizers.hvq import HVQQuantizer
from tokenizer.quantizers.hyperspherical_vae import HypersphericalVAEQuantizer
from tokenizer.quantizers.ibq import IBQQuantizer
from tokenizer.quantizers.lc import LCQuantizer
from tokenizer.quantizers.lfq import LFQQuantizer
from tokenizer.quantizers.product import ProductQuantizer
from tokenizer.quantizers.rotation import RotationQuantizer
from tokenizer.quantizers.rq import RQQuantizer
from tokenizer.quantizers.simvq import SimVQQuantizer
from tokenizer.quantizers.sq import SQQuantizer
from tokenizer.quantizers.vae import VAEQuantizer
from tokenizer.quantizers.vaevq import VAEVQQuantizer
from tokenizer.quantizers.vq import VQQuantizer

QUANTIZERS: dict[str, type[Quantizer]] = {
    "arc": ArcQuantizer,
    "arc_vae": ArcVAEQuantizer,
    "bsq": BSQQuantizer,
    "cosine": CosineQuantizer,
    "cvq": CVQQuantizer,
    "ema": EMAQuantizer,
    "fc": FCQuantizer,
    "fsq": FSQQuantizer,
    "hvq": HVQQuantizer,
    "hyperspherical_vae": HypersphericalVAEQuantizer,
    "ibq": IBQQuantizer,
    "lc": LCQuantizer,
    "lfq": LFQQuantizer,
    "product": ProductQuantizer,
    "rotation": RotationQuantizer,
    "rq": RQQuantizer,
    "simvq": SimVQQuantizer,
    "sq": SQQuantizer,
    "vae": VAEQuantizer,
    "vaevq": VAEVQQuantizer,
    "vq": VQQuantizer,
}


def make_quantizer(name: str, codebook_size: int, codebook_dim: int, options: dict[str, Any]) -> Quantizer:
    """Build the quantizer called `name`.

    Args:
        name: one of QUANTIZERS.
        codebook_size: K, the number of codes.
        codebook_dim: D, the channels of the decoder's input.
        options: the other arguments of the quantizer's constructor, by name.

    Raises:
        ValueError: an unknown name or option, or an option of the wrong type or below 0; the error names it.
    """
    check_quantizer(name, options)
    return QUANTIZERS[name](codebook_size, codebook_dim, **options)


def check_quantizer(name: str, options: dict[str, Any]) -> None:
    """Raise ValueError for an unknown name or option, or an option of the wrong type or below 0."""
    if name not in QUANTIZERS:
        raise ValueError(f"unknown quantizer {name!r}; there are {', '.join(QUANTIZERS)}")
    known = options_of(QUANTIZERS[name], sizes=2)
    check_options("quantizer", name, options, known)
    if "base" in known:  # a quantizer around another one
        check_quantizer(options.get("base", known["base"].default), options.get("base_options") or {})


def quantizer_options() -> set[str]:
    """List the options of all quantizers."""
    return {option for quantizer in QUANTIZERS.values() for option in options_of(quantizer, sizes=2)}


__all__ = ["QUANTIZERS", "Quantizer", "QuantizerOutput", "check_quantizer", "make_quantizer", "quantizer_options"]
