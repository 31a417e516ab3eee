"""LPIPS: images, reconstructions -> a perceptual distance (Zhang et al. 2018, arXiv 1801.03924, version 0.1).

The distance compares the features of an ImageNet network at several depths. The features of each position are scaled to
length 1, subtracted, squared, weighted per channel with learned non-negative weights, averaged over positions and
summed over depths.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torchvision.models import alexnet, squeezenet1_1, vgg16

from tokenizer.losses.pretrained import PretrainedFile, read_weights

PerceptualNet = Literal["alex", "vgg", "squeeze"]

_TORCHVISION = "https://download.pytorch.org/models"
_HEADS = "https://raw.githubusercontent.com/richzhang/PerceptualSimilarity/master/lpips/weights/v0.1"
# One file with the heads of all three networks; tensor names are prefixed with the network's name.
_HEADS_OF_ALL = "ae7d9103460be08bfe10f17225f10fbe1ffa4e1ee9967a93cc45ed478a5974e5"
_EPSILON = 1e-10  # added to a length before the division, as in the original code

ALEXNET = PretrainedFile(
    "AlexNet",
    "weights.alexnet",
    f"{_TORCHVISION}/alexnet-owt-7be5be79.pth",
    (
        "7be5be791159472b1fbf3c69796f7cb30dca7ad8466c2df70058c37116cdee02",
        "9f97fd313f4da83dbe6bbfbe6effca1241de9edfcd7c53386261ed9697286dd9",  # its features as safetensors
    ),
)
VGG16 = PretrainedFile(
    "VGG16",
    "weights.vgg16",
    f"{_TORCHVISION}/vgg16-397923af.pth",
    ("397923af8e79cdbb6a7127f12361acd7a2f83e06b05044ddf496e83de57a5bf0",),
)
SQUEEZENET = PretrainedFile(
    "SqueezeNet",
    "weights.squeezenet",
    f"{_TORCHVISION}/squeezenet1_1-b8a52dc0.pth",
    (
        "b8a52dc049b60e4b6ab68ad0df457362afab8b6304b2febdc1650a5dab4d7e7b",
        "29dd9af42ad48cb39a767454d382a2232dbc1625a1de3f00fca4868ee65dfc4b",  # its features as safetensors
    ),
)


@dataclass(frozen=True)
class _Backbone:
    """A feature network of LPIPS.

    Attributes:
        build: torchvision's constructor.
        depths: indices into torchvision's `features`; the output of each of these layers is compared.
        channels: channels of these outputs.
        smallest: side in pixels of the smallest image that the network accepts.
        file: weights of the network.
        heads: weights that LPIPS gives to the channels.
    """

    build: Callable[..., nn.Module]
    depths: tuple[int, ...]
    channels: tuple[int, ...]
    smallest: int
    file: PretrainedFile
    heads: PretrainedFile


def _heads(net: str, sha256: str) -> PretrainedFile:
    url, name = f"{_HEADS}/{net}.pth", f"lpips-v0.1-{net}.pth"
    return PretrainedFile(f"LPIPS {net} head", "weights.lpips", url, (sha256, _HEADS_OF_ALL), name)


_BACKBONES: dict[str, _Backbone] = {
    "alex": _Backbone(
        alexnet,
        (1, 4, 7, 9, 11),
        (64, 192, 384, 256, 256),
        31,
        ALEXNET,
        _heads("alex", "df73285e35b22355a2df87cdb6b70b343713b667eddbda73e1977e0c860835c0"),
    ),
    "vgg": _Backbone(
        vgg16,
        (3, 8, 15, 22, 29),
        (64, 128, 256, 512, 512),
        16,
        VGG16,
        _heads("vgg", "a78928a0af1e5f0fcb1f3b9e8f8c3a2a5a3de244d830ad5c1feddc79b8432868"),
    ),
    "squeeze": _Backbone(
        squeezenet1_1,
        (1, 4, 7, 9, 10, 11, 12),
        (64, 128, 256, 384, 384, 512, 512),
        17,
        SQUEEZENET,
        _heads("squeeze", "4a5350f23600cb79923ce65bb07cbf57dca461329894153e05a1346bd531cf76"),
    ),
}


@dataclass(frozen=True)
class WeightFiles:
    """Paths of pretrained weights; None: torch's hub folder, to which missing files are downloaded.

    Args:
        inception: torch-fidelity's Inception network, for FID.
        alexnet: torchvision's AlexNet.
        vgg16: torchvision's VGG16.
        squeezenet: torchvision's SqueezeNet 1.1.
        lpips: LPIPS's weights of the network's channels.
        accept_sha256: SHA-256 (hex) of a file to accept instead of the published one; several with commas. Metrics
            computed with such a file are named by its hash, and are neither FID nor LPIPS-VGG.
    """

    inception: str | None = None
    alexnet: str | None = None
    vgg16: str | None = None
    squeezenet: str | None = None
    lpips: str | None = None
    accept_sha256: str | None = None

    def read(self, file: PretrainedFile) -> tuple[dict[str, Tensor], str, bool]:
        """Read a file: its tensors, its SHA-256, and whether it is the published one. Raises as `read_weights` does."""
        path = getattr(self, file.option.removeprefix("weights."))
        tensors, digest = read_weights(file, path, self.accept_sha256)
        return tensors, digest, digest in file.sha256


class RandomWeights(WeightFiles):
    """Random weights instead of files, for measurements that depend on sizes alone: time and memory."""

    def read(self, file: PretrainedFile) -> tuple[dict[str, Tensor], str, bool]:
        """Draw normal tensors with the shapes of the file, scaled to keep the features' size through the layers."""
        for backbone in _BACKBONES.values():
            if file is backbone.file:
                with torch.device("meta"):
                    expected = backbone.build(weights=None).features.state_dict()
                shapes = {f"features.{name}": value.shape for name, value in expected.items()}
                return {name: _normal(shape) for name, shape in shapes.items()}, "random", False
            if file is backbone.heads:
                shapes = {f"lin{depth}.model.1.weight": (1, n, 1, 1) for depth, n in enumerate(backbone.channels)}
                return {name: _normal(shape).abs() for name, shape in shapes.items()}, "random", False
        raise ValueError(f"no random weights of {file.title}")


def _normal(shape: Sequence[int]) -> Tensor:
    """Draw weights (out, in, ...) for inputs behind a ReLU (He et al. 2015), or small biases (out,)."""
    fan_in = math.prod(shape[1:]) if len(shape) > 1 else 100
    return torch.randn(*shape) * (2 / fan_in) ** 0.5


class LPIPS(nn.Module):
    """LPIPS distance of image pairs, (B,), 0 for equal images; differentiable, with frozen weights.

    Args:
        net: alex, vgg or squeeze.
        weights: paths of the weights.

    Attributes:
        name: lpips-NET; with other weights than the published ones, their hashes are part of the name.
        hashes: SHA-256 of the weight files, by title.
        smallest: side in pixels of the smallest image that the network accepts.

    Raises:
        ValueError: an unknown network, or weights that are missing, damaged, or of another network.
    """

    def __init__(self, net: PerceptualNet = "vgg", weights: WeightFiles | None = None):
        super().__init__()
        if net not in _BACKBONES:
            raise ValueError(f"LPIPS has no network {net!r}; take one of {', '.join(_BACKBONES)}")
        weights = weights or WeightFiles()
        backbone = _BACKBONES[net]
        self.smallest = backbone.smallest
        features, features_hash, features_published = weights.read(backbone.file)
        heads, heads_hash, heads_published = weights.read(backbone.heads)
        published = features_published and heads_published
        self.hashes = {backbone.file.title: features_hash, backbone.heads.title: heads_hash}
        self.name = f"lpips-{net}" if published else f"lpips-{net}-{features_hash[:8]}-{heads_hash[:8]}"

        self.features = pretrained_features(backbone.build, features, backbone.file, backbone.depths[-1])
        self.depths = backbone.depths
        for depth, channels in enumerate(backbone.channels):
            key = f"lin{depth}.model.1.weight"
            weight = heads.get(key, heads.get(f"{net}.{key}"))
            if weight is None or weight.shape != (1, channels, 1, 1):
                raise ValueError(f"{backbone.heads.title} weights have no {key} of (1, {channels}, 1, 1); take others")
            self.register_buffer(f"head_{depth}", weight.float())
        # Map [-1, 1] to the networks' input normalisation, with the constants of the original code.
        self.register_buffer("shift", torch.tensor([-0.030, -0.088, -0.188]).view(1, 3, 1, 1))
        self.register_buffer("scale", torch.tensor([0.458, 0.448, 0.450]).view(1, 3, 1, 1))
        self.requires_grad_(False).eval()

    def forward(self, images: Tensor, reconstructions: Tensor) -> Tensor:
        """Compute the distance (B,) of two batches (B, C, H, W) in [-1, 1], C 3 or 1 (grey), in this module's dtype.

        Raises:
            ValueError: the shapes differ, or the images are too small for the network.
        """
        if images.shape != reconstructions.shape or images.ndim != 4 or images.shape[1] not in (1, 3):
            shapes = f"{tuple(images.shape)} and {tuple(reconstructions.shape)}"
            raise ValueError(f"images are {shapes}, not two batches (B, 1 or 3, H, W) of one shape")
        self.check_size(*images.shape[-2:])
        distance: Tensor | float = 0.0
        for depth, (a, b) in enumerate(
            zip(self._unit_features(images), self._unit_features(reconstructions), strict=True)
        ):
            distance = distance + ((a - b).square() * self.get_buffer(f"head_{depth}")).sum(dim=1).mean(dim=(1, 2))
        return distance

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images that are too small for the network."""
        if min(height, width) < self.smallest:
            raise ValueError(
                f"images of {height}x{width} are too small for {self.name}, which takes {self.smallest} pixels; "
                "take squeeze, or larger images"
            )

    def _unit_features(self, images: Tensor) -> Iterator[Tensor]:
        """Yield the features at each depth, (B, channels, h, w), each position at length 1."""
        hidden = (images.expand(-1, 3, -1, -1) - self.shift) / self.scale
        for index, layer in enumerate(self.features):
            hidden = layer(hidden)
            if index in self.depths:
                # sqrt has no gradient at 0; clamping to the smallest positive number changes no other value.
                length = hidden.square().sum(dim=1, keepdim=True).clamp(min=torch.finfo(hidden.dtype).tiny).sqrt()
                yield hidden / (length + _EPSILON)


def pretrained_features(
    build: Callable[..., nn.Module], tensors: dict[str, Tensor], file: PretrainedFile, last: int
) -> nn.Sequential:
    """Build layers 0 to `last` of torchvision's `features`, with the tensors named features.*.

    Raises:
        ValueError: a tensor is missing or has another shape.
    """
    with torch.device("meta"):
        layers = build(weights=None).features[: last + 1]
    prefix = "features."
    expected = layers.state_dict()
    values = {name: tensors.get(prefix + name) for name in expected}
    for name, value in values.items():
        if value is None or value.shape != expected[name].shape:
            raise ValueError(
                f"{file.title} weights have no {prefix}{name} of {tuple(expected[name].shape)}; take others"
            )
    layers.load_state_dict({name: value.float() for name, value in values.items()}, assign=True)
    return layers
