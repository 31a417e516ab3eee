"""Every quantizer at a small size, for tests that hold for all of them."""

import torch

from tokenizer import VQTokenizer
from tokenizer.quantizers import QUANTIZERS, make_quantizer

NAMES = sorted(QUANTIZERS)
# What a quantizer needs beside its sizes, to be small.
OPTIONS = {"hvq": {"hidden_channels": 8}, "lc": {"feature_dim": 10}}
# Options of the network: hvq halves the latents itself, so its network has one strided layer less.
NETWORKS = {"hvq": {"strided_layers": 1}}
# Methods that cannot work at some sizes, and what they say.
REFUSED = {("hyperspherical_vae", "one dimension"): "set model.codebook_dim to 2 or more"}


def small_quantizer(name, codes=12, dim=6, seed=0):
    torch.manual_seed(seed)
    return make_quantizer(name, codes, dim, OPTIONS.get(name, {}))


def small_tokenizer(name, seed=0, **sizes):
    torch.manual_seed(seed)
    sizes = {"in_channels": 1, "image_size": 16, "codebook_size": 12, "codebook_dim": 6, "hidden_channels": 8} | sizes
    options = {"residual_channels": 4} | NETWORKS.get(name, {})
    return VQTokenizer(quantizer=name, network_options=options, quantizer_options=OPTIONS.get(name, {}), **sizes)


def total(quantizer, losses):
    """The quantizer's loss."""
    weights = quantizer.loss_weights()
    return sum((weights[name] * loss for name, loss in losses.items()), start=torch.zeros(()))
