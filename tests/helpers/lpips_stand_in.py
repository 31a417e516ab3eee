"""Weights for LPIPS that are drawn, in files that its hashes accept."""

import hashlib
import math

import torch
import torchvision

from tokenizer.losses.lpips import WeightFiles

CHANNELS = {"alex": (64, 192, 384, 256, 256), "vgg": (64, 128, 256, 512, 512)}
CHANNELS["squeeze"] = (64, 128, 256, 384, 384, 512, 512)
BUILD = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet1_1"}
FILE = {"alex": "alexnet", "vgg": "vgg16", "squeeze": "squeezenet"}


def drawn_features(net):
    """Weights for which activations neither vanish nor explode, and small biases."""
    generator = torch.Generator().manual_seed(0)
    with torch.device("meta"):
        model = getattr(torchvision.models, BUILD[net])(weights=None)
    return {
        name: torch.randn(value.shape, generator=generator)
        * (math.sqrt(2 / math.prod(value.shape[1:])) if value.ndim > 1 else 0.1)
        for name, value in model.state_dict().items()
        if name.startswith("features.")
    }


def drawn_heads(net):
    generator = torch.Generator().manual_seed(1)
    return {
        f"lin{depth}.model.1.weight": torch.rand(1, channels, 1, 1, generator=generator)
        for depth, channels in enumerate(CHANNELS[net])
    }


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


class StandIn:
    """One file with the features and the heads of a network: a single hash accepts both."""

    def __init__(self, net, folder, features=None, heads=None):
        self.features, self.heads = features or drawn_features(net), heads or drawn_heads(net)
        path = folder / f"{net}.pth"
        torch.save(self.features | {f"{net}.{name}": value for name, value in self.heads.items()}, path)
        self.hash = sha256(path)
        self.files = WeightFiles(**{FILE[net]: str(path)}, lpips=str(path), accept_sha256=self.hash)
