"""A file's tensors => those of the one tokenizer of public code in it, plain or averaged (EMA), under our names."""

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
    """A public model's tensors in a file of which they may be a part, under whatever prefix.

    Averaged weights (EMA) are known by a name before theirs of which `ema` is a word, or are those of latent
    diffusion's LitEma: `model_ema.` and the plain name without its dots.

    Args:
        tensors: all of the file.
        source: what an error calls the file.
        averaged: whether the averages are taken, or the plain weights.

    Attributes:
        public: the network.
        codebook: the table's name.
        weights: which ones are taken, where there is more to say than that they are the plain ones.
        left_out: counts the other tensors in the file, by what their names begin with.

    Raises:
        ValueError: the file holds no network of public code, or several; or no averages where they are asked for.
    """

    def __init__(self, tensors: dict[str, Tensor], source: str, averaged: bool = False):
        places = _places(tensors, source)
        plain = [place for place in places if not place.is_averaged]
        averages: list[_Place | _LitEma] = [place for place in places if place.is_averaged]
        averages += [lit_ema for place in plain for lit_ema in _lit_emas(tensors, place)]
        if averaged and not averages:
            raise ValueError(f"{source} has no averaged weights of this network{_other_averages(tensors)}; omit --ema")
        asked = averages if averaged or not plain else plain
        if len(asked) > 1:
            prefixes = ", ".join(repr(place.prefix) for place in asked)
            averages_of = "averages of " if averaged else ""
            raise ValueError(f"{source} holds {averages_of}{len(asked)} tokenizers, below {prefixes}; save one alone")
        place = asked[0]
        base = place.place if isinstance(place, _LitEma) else place
        super().__init__({name: tensors[base.prefix + name] for name in base.names}, source)
        self.public, self._names_in_file = base.network, {}
        used = {base.prefix + name for name in base.names}
        self.weights = None
        if isinstance(place, _LitEma):
            updates = tensors.get(f"{place.prefix}num_updates")
            if updates is not None and updates.numel() == 1 and updates.item() == 0:
                raise ValueError(f"{source}: {place.prefix}num_updates is 0: the averages are the weights at first")
            self.tensors |= {name: tensors[stored] for name, stored in place.stored.items()}
            self._names_in_file = place.stored
            used |= set(place.stored.values())
        elif place.is_averaged:
            self.weights = f"averaged, below {place.prefix!r}" + ("" if plain else "; the file has no others")
        elif averages:
            below = ", ".join(repr(average.prefix) for average in averages)
            self.weights = f"the plain ones; the file also has averaged ones, below {below}, which --ema takes"
        self.codebook = next((name for name in self.public.codebook if name in self.tensors), self.public.codebook[0])
        self.left_out = Counter(_kind(name.removeprefix(base.prefix)) for name in tensors if name not in used)

    def codebook_shape(self) -> tuple[int, ...]:
        """(K, D). ValueError where there is no codebook, which says what there is in its place."""
        if self.codebook in self.tensors:
            return self.shape(self.codebook, 2)
        beside = [name for name in self.tensors if name.startswith(_first(self.codebook))]
        there = f", and has {', '.join(beside[:3])}" if beside else ""
        pair = [self.tensors.get(f"{name}.weight", torch.empty(1, 0)) for name in ("quant_conv", "post_quant_conv")]
        if not beside and all(weight.ndim == 4 for weight in pair) and len(pair[0]) == 2 * pair[1].shape[1]:
            there = ": it is a KL autoencoder, as Stable Diffusion's, which has no codes; take a VQ model"
        raise ValueError(f"{self.source} lacks {self.codebook}{there}")

    def state(self, tokenizer: VQTokenizer) -> dict[str, Tensor]:
        """The tokenizer's parameters, float32. What stands beside the public table is added to `left_out`.

        Raises:
            ValueError: tensors that are missing, left over, of another shape, or that are not finite numbers; averages
                of a part of an encoder or decoder.
        """
        levels = len(tokenizer.encoder.network.down_blocks) if tokenizer.config.network == "vqgan" else 0
        wanted = {
            self.codebook if ours == "bottleneck.codebook" else self.public.public_name(ours, levels): (ours, parameter)
            for ours, parameter in tokenizer.named_parameters()
        }
        beside_table = _first(self.codebook)
        over = [name for name in self.tensors if name not in wanted]
        # Counts and sums of an EMA are buffers; what has a weight is a layer, or another table, that makes the codes.
        layers = [name for name in over if name.startswith(beside_table) and name.endswith((".weight", ".bias"))]
        self._none(f"makes its codes not of {self.codebook} alone, as is done here, but also of", layers)
        self.left_out.update(name for name in over if name.startswith(beside_table))
        self._none("lacks", [name for name in wanted if name not in self.tensors])
        self._none("has tensors without a place here:", [name for name in over if not name.startswith(beside_table)])
        self._check_averages(wanted)
        state, misfits = {}, []
        for name, (ours, parameter) in wanted.items():
            tensor = self.tensors[name]
            if parameter.ndim == 2 and tensor.shape[2:] == (1, 1):  # a 1 x 1 convolution is a linear layer
                tensor = tensor[:, :, 0, 0]
            if tensor.shape != parameter.shape:
                in_file = self._in_file(name)
                misfits.append(f"{in_file} of {tuple(tensor.shape)} instead of {tuple(parameter.shape)}")
            state[ours] = self._as_float32(name, tensor)
        self._none("holds tensors that do not fit together:", misfits)
        return state

    def _as_float32(self, name: str, tensor: Tensor) -> Tensor:
        """ValueError for a tensor of other numbers, or with NaN or infinity in it."""
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
        """Says what is averaged: all of an encoder, decoder, ..., or what of it was not trained and has no average."""
        if not (averaged := self._names_in_file):
            return
        plain = [name for name in wanted if name not in averaged]
        for part in self.public.parts:
            lacking = [name for name in plain if name.startswith(part)]
            if lacking and any(name.startswith(part) for name in averaged if name in wanted):
                self._none(f"has averages of a part of {part[:-1]} alone, and none of", lacking)
        parts = [part for part in self.public.parts if any(name.startswith(part) for name in plain)]
        beside = f"; without an average, and so the plain ones: {', '.join(f'{part}*' for part in parts)}"
        self.weights = f"averaged, {sum(name in averaged for name in wanted)} tensors of LDM's {self._lit_ema}"
        self.weights += beside if parts else ""

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
class _Place:
    """Where a network's tensors are in a file: below which prefix, and their public names."""

    network: PublicNetwork
    prefix: str
    names: tuple[str, ...]

    @property
    def is_averaged(self) -> bool:
        return any(map(_says_ema, self.prefix.split(".")))


@dataclass(frozen=True)
class _LitEma:
    """Averages of the network at a place: the public names of its tensors, and the averages' names in the file."""

    place: _Place
    prefix: str
    stored: dict[str, str]


def _places(tensors: dict[str, Tensor], source: str) -> list[_Place]:
    """The networks of public code in a file. ValueError where there is none, which says what is there instead."""
    found = []
    for public in PUBLIC_NETWORKS:
        for name in tensors:
            if f".{name}".endswith(f".{public.landmark}"):
                prefix = name.removesuffix(public.landmark)
                if any(other.startswith(prefix + public.second_landmark) for other in tensors):
                    whole = tuple(prefix + part for part in public.parts)
                    names = tuple(other.removeprefix(prefix) for other in tensors if other.startswith(whole))
                    found.append(_Place(public, prefix, names))
    if found:
        return found
    if any(f".{name}".endswith(f".{ours}") for name in tensors for ours in _OURS):
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


def _lit_emas(tensors: dict[str, Tensor], place: _Place) -> list[_LitEma]:
    """The averages that latent diffusion's LitEma keeps of a network, or of a model that it is a part of."""
    found = []
    groups = {name.rpartition(".")[0] for name in tensors}
    for group in sorted(groups):
        parent, _, last = group.rpartition(".")
        parent += "." if parent else ""
        if not _says_ema(last) or not place.prefix.startswith(parent):
            continue
        within = place.prefix.removeprefix(parent)
        dotless = {name: f"{group}.{(within + name).replace('.', '')}" for name in place.names}
        if stored := {name: average for name, average in dotless.items() if average in tensors}:
            found.append(_LitEma(place, f"{group}.", stored))
    return found


def _other_averages(tensors: dict[str, Tensor]) -> str:
    """Say in words which other averaged weights a file has."""
    names = [name for name in tensors if any(map(_says_ema, name.split(".")[:-1]))]
    return f" (of another, {names[0]!r:.80})" if names else ""


def _says_ema(part: str) -> bool:
    return _EMA.search(part) is not None


def _first(name: str) -> str:
    """A name up to its first dot."""
    return name.partition(".")[0] + "."


def _kind(name: str) -> str:
    """Return the first part of a tensor's name."""
    match = re.match(r"loss\.[^.]+|[^.]+", name)
    return match[0] if match else name
