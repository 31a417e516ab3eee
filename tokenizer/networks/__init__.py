"""The networks by name: encoder, images => latents, and decoder, quantised latents => images.

Add a network:

1. Write one file, `tokenizer/networks/NAME.py`: a subclass of `Encoder`, a subclass of `Decoder` (their contract is in
   base.py), and a function that builds them:

       def make_NAME(sizes: NetworkSizes, my_option: int = 4) -> Network

   It checks the sizes and raises a ValueError that names the option and its value. The arguments after `sizes` are the
   options of the network, `--model.network_options.my_option 4` on the command line. Each has a default and an
   annotation that `tokenizer.option_checks` knows; names and types are checked from the signature before the call.
2. Add one line to NETWORKS.
3. Write one config, configs/DATASET/CONFIG.yaml, with `model: {network: NAME, network_options: {my_option: 4}}`.
4. Write one test, tests/tokenizer/networks/test_NAME.py. tests/tokenizer/networks/test_contract.py checks shapes,
   downsampling, last layer and gradient checkpointing of every network in NETWORKS.
"""

import importlib
from collections.abc import Callable
from typing import Any

from tokenizer.networks.base import Decoder, Encoder, Network, NetworkSizes
from tokenizer.option_checks import check_options, options_of

# name -> "module:function". A module is imported only when its network is built, because diffusers' autoencoders, which
# df, movq and vqgan need, take seconds to import.
NETWORKS: dict[str, str] = {
    "conv": "tokenizer.networks.conv:make_conv",
    "df": "tokenizer.networks.df:make_df",
    "maskgit": "tokenizer.networks.maskgit:make_maskgit",
    "movq": "tokenizer.networks.movq:make_movq",
    "vit": "tokenizer.networks.vit:make_vit",
    "vqgan": "tokenizer.networks.vqgan:make_vqgan",
}


def make_network(name: str, sizes: NetworkSizes, options: dict[str, Any]) -> Network:
    """Check the sizes and options of the network called `name`; return the functions that build its two halves.

    Args:
        name: one of NETWORKS.
        sizes: the sizes that every network has.
        options: the network's own arguments, by name.

    Raises:
        ValueError: an unknown name or option, or an option of the wrong type; a size that cannot work.
    """
    check_network(name, options)
    return _load(name)(sizes, **options)


def check_network(name: str, options: dict[str, Any]) -> None:
    """Raise ValueError for an unknown name or option, or an option of the wrong type."""
    if name not in NETWORKS:
        raise ValueError(f"unknown network {name!r}; there are {', '.join(NETWORKS)}")
    check_options("network", name, options, options_of(_load(name), sizes=1))


def network_options() -> set[str]:
    """List the options of all networks; this imports their modules."""
    return {option for name in NETWORKS for option in options_of(_load(name), sizes=1)}


def _load(name: str) -> Callable[..., Network]:
    """Import a network's module and return its function."""
    module, function = NETWORKS[name].split(":")
    return getattr(importlib.import_module(module), function)


__all__ = [
    "NETWORKS",
    "Decoder",
    "Encoder",
    "Network",
    "NetworkSizes",
    "check_network",
    "make_network",
    "network_options",
]
