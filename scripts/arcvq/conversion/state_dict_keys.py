"""Parameter names of public code: ArcVQ-VAE's two networks, of which the larger is taming-transformers' VQGAN."""

import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor


class NamedTensors:
    """Tensors by their public names.

    Args:
        tensors: by public name.
        source: name of the file in error messages.
    """

    def __init__(self, tensors: dict[str, Tensor], source: str):
        self.tensors = tensors
        self.source = source

    def shape(self, name: str, ndim: int = 4) -> tuple[int, ...]:
        """Return the shape of a tensor; ValueError if it is missing or has not `ndim` dimensions."""
        if name not in self.tensors:
            raise ValueError(f"{self.source} lacks {name}")
        shape = tuple(self.tensors[name].shape)
        if len(shape) != ndim or 0 in shape:
            raise ValueError(f"{self.source}: {name} is of {shape}, and not of {ndim} dimensions")
        return shape

    def count(self, pattern: str) -> int:
        """Count the different numbers that the pattern's group matches in the names."""
        return len({match[1] for name in self.tensors if (match := re.match(pattern, name))})


@dataclass(frozen=True)
class PublicNetwork:
    """The names of one network's tensors in public code.

    Args:
        network: VQTokenizer's name for the network.
        landmark: name of a tensor that only this network and similar ones have.
        second_landmark: beginning of names that the similar ones lack.
        parts: beginnings of the names of all its tensors.
        codebook: possible names of the codebook, the usual one first.
        names: pattern of a VQTokenizer's name, without `.weight` and `.bias` -> the public name; level `{up}` counts
            from the opposite end.
        sizes: (tensors, image size) -> constructor arguments of VQTokenizer.
        image_size: the usual one.
    """

    network: str
    landmark: str
    second_landmark: str
    parts: tuple[str, ...]
    codebook: tuple[str, ...]
    names: dict[str, str]
    sizes: Callable[[NamedTensors, int], dict[str, Any]]
    image_size: int

    def public_name(self, own_name: str, num_levels: int) -> str:
        """Return the public name of a VQTokenizer's parameter; only a VQGAN uses `num_levels`."""
        layer, _, kind = own_name.rpartition(".")
        for pattern, public in self.names.items():
            if match := re.fullmatch(pattern, layer):
                up = num_levels - 1 - int(match[1]) if "{up}" in public else None
                return f"{match.expand(public.replace('{up}', str(up)))}.{kind}"
        raise AssertionError(f"{own_name} has no public name")


def _conv_sizes(public: NamedTensors, _: int) -> dict[str, Any]:
    hidden, in_channels, *_ = public.shape("_encoder._conv_1.weight")
    layers = public.count(r"_encoder\._residual_stack\._layers\.(\d+)\.")
    options = {}
    if layers:
        options["residual_channels"] = public.shape("_encoder._residual_stack._layers.0._block.1.weight")[0]
    return {
        "in_channels": in_channels,
        "hidden_channels": 2 * hidden,
        "num_residual_layers": layers,
        "network_options": options,
    }


def _vqgan_sizes(public: NamedTensors, image_size: int) -> dict[str, Any]:
    hidden, in_channels, *_ = public.shape("encoder.conv_in.weight")
    levels = range(public.count(r"encoder\.down\.(\d+)\."))
    widths = [public.shape(f"encoder.down.{level}.block.0.conv1.weight")[0] for level in levels]
    if widths[:1] != [hidden] or any(width % hidden for width in widths):
        raise ValueError(
            f"{public.source} has levels of {widths} channels after a first convolution of {hidden}; the first level "
            "must have as many, and each other a multiple"
        )
    z_channels, codebook_dim = public.shape("encoder.conv_out.weight")[0], public.shape("quant_conv.weight")[0]
    attends = [level for level in levels if public.count(rf"encoder\.down\.{level}\.attn\.(\d+)\.")]
    return {
        "in_channels": in_channels,
        "hidden_channels": hidden,
        "num_residual_layers": public.count(r"encoder\.down\.0\.block\.(\d+)\."),
        "network_options": {
            "channel_multipliers": tuple(width // hidden for width in widths),
            "attention_sizes": tuple(image_size >> level for level in attends),
            "z_channels": None if z_channels == codebook_dim else z_channels,
        },
    }


_DOWN, _UP = r"encoder\.network\.down_blocks\.(\d+)", r"decoder\.network\.up_blocks\.(\d+)"
_PARTS = r"(norm1|conv1|norm2|conv2)"
_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", r"to_out\.0": "proj_out"}

PUBLIC_NETWORKS = (
    PublicNetwork(
        network="conv",
        landmark="_encoder._conv_1.weight",
        second_landmark="_encoder._conv_2.",
        parts=("_encoder.", "_pre_vq_conv.", "_vq_vae.", "_decoder."),
        codebook=("_vq_vae.embedding.weight", "_vq_vae._embedding.weight"),
        names={
            r"encoder\.conv_in": "_encoder._conv_1",
            r"encoder\.conv_down": "_encoder._conv_2",
            r"encoder\.conv_mid": "_encoder._conv_3",
            r"encoder\.conv_out": "_pre_vq_conv",
            r"decoder\.conv_in": "_decoder._conv_1",
            r"decoder\.conv_up": "_decoder._conv_trans_1",
            r"decoder\.conv_out": "_decoder._conv_trans_2",
            r"(encoder|decoder)\.residual\.(\d+)\.conv1": r"_\1._residual_stack._layers.\2._block.1",
            r"(encoder|decoder)\.residual\.(\d+)\.conv2": r"_\1._residual_stack._layers.\2._block.3",
        },
        sizes=_conv_sizes,
        image_size=32,
    ),
    PublicNetwork(
        network="vqgan",
        landmark="encoder.conv_in.weight",
        second_landmark="encoder.down.0.block.",
        parts=("encoder.", "quant_conv.", "quantize.", "post_quant_conv.", "decoder."),
        codebook=("quantize.embedding.weight",),
        names={
            r"(encoder|decoder)\.network\.(conv_in|conv_out)": r"\1.\2",
            r"(encoder|decoder)\.network\.conv_norm_out": r"\1.norm_out",
            r"encoder\.(quant_conv)": r"\1",
            r"decoder\.(post_quant_conv)": r"\1",
            rf"(encoder|decoder)\.network\.mid_block\.resnets\.0\.{_PARTS}": r"\1.mid.block_1.\2",
            rf"(encoder|decoder)\.network\.mid_block\.resnets\.1\.{_PARTS}": r"\1.mid.block_2.\2",
            rf"{_DOWN}\.resnets\.(\d+)\.{_PARTS}": r"encoder.down.\1.block.\2.\3",
            rf"{_UP}\.resnets\.(\d+)\.{_PARTS}": r"decoder.up.{up}.block.\2.\3",
            rf"{_DOWN}\.resnets\.(\d+)\.conv_shortcut": r"encoder.down.\1.block.\2.nin_shortcut",
            rf"{_UP}\.resnets\.(\d+)\.conv_shortcut": r"decoder.up.{up}.block.\2.nin_shortcut",
            rf"{_DOWN}\.downsamplers\.0\.conv": r"encoder.down.\1.downsample.conv",
            rf"{_UP}\.upsamplers\.0\.conv": "decoder.up.{up}.upsample.conv",
        }
        | {
            pattern + own_name: name + public
            for own_name, public in _ATTENTION.items()
            for pattern, name in (
                (r"(encoder|decoder)\.network\.mid_block\.attentions\.0\.", r"\1.mid.attn_1."),
                (rf"{_DOWN}\.attentions\.(\d+)\.", r"encoder.down.\1.attn.\2."),
                (rf"{_UP}\.attentions\.(\d+)\.", r"decoder.up.{up}.attn.\2."),
            )
        },
        sizes=_vqgan_sizes,
        image_size=256,
    ),
)
