"""Find the one tokenizer of public code in a file's tensors, plain or averaged (EMA), and rename its tensors."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from arcvq.conversion.state_dict_keys import PUBLIC_NETWORKS, NamedTensors, PublicNetwork
from tokenizer import VQTokenizer

# Of each network of this project, whatever its quantizer.
_OURS = ("encoder.network.conv_in.weight", "encoder.conv_down.weight")

# ema, EMA-1, ema2, net_ema, emaModel, modelEMA, EMAModel; not schema.
_EMA = re.compile(r"((?<![A-Za-z])(ema|Ema|EMA)|(?<=[a-z])(Ema|EMA))(?![a-z])")


class PublicTensors(NamedTensors):
    """The tensors of a public model in a file, which may hold other tensors too, below any prefix.

    Averaged weights (EMA) have a prefix with the word `ema`, or are those of latent diffusion's LitEma: `model_ema.`
    and the plain name without its dots.

    Args:
        tensors: all tensors of the file.
        source: name of the file in error messages.
        averaged: whether to take the averages instead of the plain weights.

    Attributes:
        public: the network.
        codebook: name of the codebook.
        weights: a note on the weights that are taken; None for the plain ones.
        left_out: number of other tensors in the file, by the beginnings of their names.

    Raises:
        ValueError: the file holds no network of public code or several, or no averages although they are asked for.
    """

    def __init__(self, tensors: dict[str, Tensor], source: str, averaged: bool = False):
        locations = _locations(tensors, source)
        plain = [location for location in locations if not location.is_averaged]
        averages: list[_Location | _LitEma] = [location for location in locations if location.is_averaged]
        averages += [lit_ema for location in plain for lit_ema in _lit_emas(tensors, location)]
        if averaged and not averages:
            raise ValueError(f"{source} has no averaged weights of this network{_other_averages(tensors)}; omit --ema")
        asked = averages if averaged or not plain else plain
        if len(asked) > 1:
            prefixes = ", ".join(repr(location.prefix) for location in asked)
            averages_of = "averages of " if averaged else ""
            raise ValueError(f"{source} holds {averages_of}{len(asked)} tokenizers, below {prefixes}; save one alone")
        location = asked[0]
        base = location.location if isinstance(location, _LitEma) else location
        super().__init__({name: tensors[base.prefix + name] for name in base.names}, source)
        self.public, self._names_in_file = base.network, {}
        used = {base.prefix + name for name in base.names}
        self.weights = None
        if isinstance(location, _LitEma):
            updates = tensors.get(f"{location.prefix}num_updates")
            if updates is not None and updates.numel() == 1 and updates.item() == 0:
                raise ValueError(f"{source}: {location.prefix}num_updates is 0: the averages are the weights at first")
            self.tensors |= {name: tensors[stored] for name, stored in location.stored.items()}
            self._names_in_file = location.stored
            used |= set(location.stored.values())
        elif location.is_averaged:
            self.weights = f"averaged, below {location.prefix!r}" + ("" if plain else "; the file has no others")
        elif averages:
            below = ", ".join(repr(average.prefix) for average in averages)
            self.weights = f"the plain ones; the file also has averaged ones, below {below}, which --ema takes"
        self.codebook = next((name for name in self.public.codebook if name in self.tensors), self.public.codebook[0])
        self.left_out = Counter(_kind(name.removeprefix(base.prefix)) for name in tensors if name not in used)

    def codebook_shape(self) -> tuple[int, ...]:
        """Return (K, D). ValueError if there is no codebook; it says what the quantizer has instead."""
        if self.codebook in self.tensors:
            return self.shape(self.codebook, 2)
        others = [name for name in self.tensors if name.startswith(_first(self.codebook))]
        content = f", and has {', '.join(others[:3])}" if others else ""
        pair = [self.tensors.get(f"{name}.weight", torch.empty(1, 0)) for name in ("quant_conv", "post_quant_conv")]
        if not others and all(weight.ndim == 4 for weight in pair) and len(pair[0]) == 2 * pair[1].shape[1]:
            content = ": it is a KL autoencoder, as Stable Diffusion's, which has no codes; take a VQ model"
        raise ValueError(f"{self.source} lacks {self.codebook}{content}")

    def state(self, tokenizer: VQTokenizer) -> dict[str, Tensor]:
        """Return the tokenizer's parameters, float32; the quantizer's other tensors are added to `left_out`.

        Raises:
            ValueError: tensors are missing, left over, of another shape or not finite, or only a part of an encoder or
                decoder has averages.
        """
        levels = len(tokenizer.encoder.network.down_blocks) if tokenizer.config.network == "vqgan" else 0
        wanted = {
            self.codebook if own_name == "bottleneck.codebook" else self.public.public_name(own_name, levels): (
                own_name,
                parameter,
            )
            for own_name, parameter in tokenizer.named_parameters()
        }
        quantizer = _first(self.codebook)
        left_over = [name for name in self.tensors if name not in wanted]
        # Counts and sums of an EMA are buffers, but a layer or another table that has a weight takes part in the codes.
        layers = [name for name in left_over if name.startswith(quantizer) and name.endswith((".weight", ".bias"))]
        self._none(f"makes its codes not of {self.codebook} alone, as is done here, but also of", layers)
        self.left_out.update(name for name in left_over if name.startswith(quantizer))
        self._none("lacks", [name for name in wanted if name not in self.tensors])
        self._none("has tensors without a place here:", [name for name in left_over if not name.startswith(quantizer)])
        self._check_averages(wanted)
        state, misfits = {}, []
        for name, (own_name, parameter) in wanted.items():
            tensor = self.tensors[name]
            if parameter.ndim == 2 and tensor.shape[2:] == (1, 1):  # a 1 x 1 convolution is a linear layer
                tensor = tensor[:, :, 0, 0]
            if tensor.shape != parameter.shape:
                in_file = self._in_file(name)
                misfits.append(f"{in_file} of {tuple(tensor.shape)} instead of {tuple(parameter.shape)}")
            state[own_name] = self._as_float32(name, tensor)
        self._none("holds tensors that do not fit together:", misfits)
        return state

    def _as_float32(self, name: str, tensor: Tensor) -> Tensor:
        """Convert a tensor to float32. ValueError if it is not dense and floating point, or not finite."""
        dense = tensor.layout == torch.strided and not tensor.is_meta and not tensor.is_quantized
        if not dense or not tensor.is_floating_point():
            kind = str(tensor.dtype).removeprefix("torch.") + ("" if dense else ", and not stored as plain numbers")
            raise ValueError(f"{self.source}: {self._in_file(name)} is {kind}; save all weights as float32")
        values = tensor.float()
        if not (finite := values.isfinite()).all():
            count = values.numel() - int(finite.sum())
            raise ValueError(
                f"{self.source}: {self._in_file(name)} holds NaN or infinity ({count:,} of {values.numel():,} values): "
                "the training had broken down, or the file is damaged; take an earlier one"
            )
        return values

    def _check_averages(self, wanted: Iterable[str]) -> None:
        """Set `weights` to a note on the averaged parts; raise ValueError if only some tensors of a part are averaged.

        A part without any average was not trained, and its plain weights are taken.
        """
        if not (averaged := self._names_in_file):
            return
        plain = [name for name in wanted if name not in averaged]
        for part in self.public.parts:
            lacking = [name for name in plain if name.startswith(part)]
            if lacking and any(name.startswith(part) for name in averaged if name in wanted):
                self._none(f"has averages of a part of {part[:-1]} alone, and none of", lacking)
        parts = [part for part in self.public.parts if any(name.startswith(part) for name in plain)]
        plain_parts = f"; without an average, and so the plain ones: {', '.join(f'{part}*' for part in parts)}"
        self.weights = f"averaged, {sum(name in averaged for name in wanted)} tensors of LDM's {self._lit_ema}"
        self.weights += plain_parts if parts else ""

    @property
    def _lit_ema(self) -> str:
        return next(iter(self._names_in_file.values())).rpartition(".")[0]

    def _in_file(self, name: str) -> str:
        return self._names_in_file.get(name, name)

    def _none(self, problem: str, names: Sequence[str]) -> None:
        if names:
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            raise ValueError(f"{self.source} {problem} {', '.join(names[:5])}{more}")


@dataclass(frozen=True)
class _Location:
    """A network in a file: the prefix of its tensors, and their public names."""

    network: PublicNetwork
    prefix: str
    names: tuple[str, ...]

    @property
    def is_averaged(self) -> bool:
        return any(map(_says_ema, self.prefix.split(".")))


@dataclass(frozen=True)
class _LitEma:
    """The averages of a network: public names of its tensors => the names of their averages in the file."""

    location: _Location
    prefix: str
    stored: dict[str, str]


def _locations(tensors: dict[str, Tensor], source: str) -> list[_Location]:
    """Find the networks of public code in a file. ValueError if there is none; it says what the file holds instead."""
    locations = []
    for public in PUBLIC_NETWORKS:
        for name in tensors:
            if f".{name}".endswith(f".{public.landmark}"):
                prefix = name.removesuffix(public.landmark)
                if any(other.startswith(prefix + public.second_landmark) for other in tensors):
                    whole = tuple(prefix + part for part in public.parts)
                    names = tuple(other.removeprefix(prefix) for other in tensors if other.startswith(whole))
                    locations.append(_Location(public, prefix, names))
    if locations:
        return locations
    if any(f".{name}".endswith(f".{own_name}") for name in tensors for own_name in _OURS):
        raise ValueError(
            f"{source} is of a VQTokenizer already and needs no conversion: VQTokenizer.from_pretrained loads the "
            "folder that save_pretrained has written, with its config.json"
        )
    if not tensors:
        raise ValueError(f"{source} holds no tensors")
    some = sorted({0, len(tensors) // 2, len(tensors) - 1})
    named = ", ".join(f"{list(tensors)[index]!r:.80}" for index in some)
    expected = " or ".join(f"{public.landmark} and {public.second_landmark}*" for public in PUBLIC_NETWORKS)
    raise ValueError(
        f"{source}: it is no tokenizer of the public code, but holds {len(tensors)} tensors such as {named}; expected "
        f"are, below any prefix, {expected}"
    )


def _lit_emas(tensors: dict[str, Tensor], location: _Location) -> list[_LitEma]:
    """Find the averages that latent diffusion's LitEma keeps of a network, or of a model that contains it."""
    averages = []
    groups = {name.rpartition(".")[0] for name in tensors}
    for group in sorted(groups):
        parent, _, last = group.rpartition(".")
        parent += "." if parent else ""
        if not _says_ema(last) or not location.prefix.startswith(parent):
            continue
        within = location.prefix.removeprefix(parent)
        dotless = {name: f"{group}.{(within + name).replace('.', '')}" for name in location.names}
        if stored := {name: average for name, average in dotless.items() if average in tensors}:
            averages.append(_LitEma(location, f"{group}.", stored))
    return averages


def _other_averages(tensors: dict[str, Tensor]) -> str:
    """Name other averaged weights in the file, for an error message."""
    names = [name for name in tensors if any(map(_says_ema, name.split(".")[:-1]))]
    return f" (of another, {names[0]!r:.80})" if names else ""


def _says_ema(part: str) -> bool:
    return _EMA.search(part) is not None


def _first(name: str) -> str:
    """Return a name up to its first dot."""
    return name.partition(".")[0] + "."


def _kind(name: str) -> str:
    """Return the first part of a tensor's name."""
    match = re.match(r"loss\.[^.]+|[^.]+", name)
    return match[0] if match else name
