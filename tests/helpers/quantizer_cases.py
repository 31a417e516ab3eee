"""Every quantizer at a small size, for tests that hold for all of them."""

import copy

import torch

from tokenizer import VQTokenizer
from tokenizer.quantizers import QUANTIZERS, make_quantizer

NAMES = sorted(QUANTIZERS)
# Options that change what a step does, as quantizers of their own: name and options.
COMBINATIONS = {
    "arc_rotation": ("arc", {"estimator": "rotation"}),
    "arc_averages": ("arc", {"table": "moving_average"}),
    "arc_kmeans": ("arc", {"init": "kmeans"}),
    "arc_revival": ("arc", {"revive_below": 0.5}),
    "arc_all": ("arc", {"estimator": "rotation", "table": "moving_average", "init": "kmeans", "revive_below": 0.5}),
    "arc_vae_all": ("arc_vae", {"init": "kmeans", "revive_below": 0.5}),
    "product_ema": ("product", {"groups": 2, "base": "ema", "base_options": {"revive_below": 0.5}}),
    "product_vaevq": ("product", {"groups": 2, "base": "vaevq"}),
    "product_shared_arc": (
        "product",
        {"groups": 2, "shared": True, "base": "arc", "base_options": {"init": "kmeans", "revive_below": 0.5}},
    ),
    "product_shared_sq": (
        "product",
        {"groups": 2, "shared": True, "base": "sq", "base_options": {"variance": "image"}},
    ),
}
CASES = [*NAMES, *COMBINATIONS]
# What a quantizer needs beside its sizes, to be small.
OPTIONS = {"hvq": {"hidden_channels": 8}, "lc": {"feature_dim": 10}, "product": {"groups": 2}}
# Shapes of the codebooks of 12 codes and 6 channels, where they are not (12, 6).
CODEBOOKS = {
    **dict.fromkeys(["product", "product_ema", "product_vaevq"], (24, 3)),
    **dict.fromkeys(["product_shared_arc", "product_shared_sq"], (12, 3)),
}
# Options of the network: hvq halves the latents itself, so its network has one strided layer less.
NETWORKS = {"hvq": {"strided_layers": 1}}
# Their codes are the signs of D channels: K is 2^D.
SIGNS = ("bsq", "lfq")
# Methods that cannot work at some sizes, and what they say.
REFUSED = {
    ("hyperspherical_vae", "one dimension"): "set model.codebook_dim to 2 or more",
    **{(name, "one dimension"): "set model.codebook_dim to a multiple" for name in CODEBOOKS},
}


def named(name):
    """The quantizer's name, and its options."""
    return COMBINATIONS.get(name, (name, OPTIONS.get(name, {})))


def sizes_of(name, codes, dim):
    """K and D: those asked for, or for signs the fewest channels of as many codes."""
    return (2 ** (codes - 1).bit_length(), (codes - 1).bit_length()) if name in SIGNS else (codes, dim)


def small_quantizer(name, codes=12, dim=6, seed=0):
    torch.manual_seed(seed)
    quantizer, options = named(name)
    return make_quantizer(quantizer, *sizes_of(name, codes, dim), options)


def small_tokenizer(name, seed=0, **sizes):
    torch.manual_seed(seed)
    sizes = {"in_channels": 1, "image_size": 16, "codebook_size": 12, "codebook_dim": 6, "hidden_channels": 8} | sizes
    codes, dim = sizes_of(name, sizes["codebook_size"], sizes["codebook_dim"])
    sizes |= {"codebook_size": codes, "codebook_dim": dim}
    network = {"residual_channels": 4} | NETWORKS.get(name, {})
    quantizer, options = named(name)
    return VQTokenizer(quantizer=quantizer, network_options=network, quantizer_options=options, **sizes)


def total(quantizer, losses):
    """The quantizer's loss."""
    weights = quantizer.loss_weights()
    return sum((weights[name] * loss for name, loss in losses.items()), start=torch.zeros(()))


def check_goes_on_as_saved(quantizer, restored, batches):
    """A quantizer into which another's state is loaded after two batches ends with the other's tensors."""
    for latents in batches[:2]:
        quantizer.after_update(latents, quantizer(latents).codes)
    restored.load_state_dict(copy.deepcopy(quantizer.state_dict()))
    for each in (quantizer, restored):
        for latents in batches[2:]:
            each.after_update(latents, each(latents).codes)
    assert all(torch.equal(value, quantizer.state_dict()[key]) for key, value in restored.state_dict().items())


def check_gradients_of_what_is_decoded(out, mu, sigma, rows, gradients):
    """They are those of mu + sigma sg(eps) + (q - sg q), all (N, D); `gradients` of a scalar, by the inputs."""
    batch, dim, *grid = out.quantized.shape
    weight = torch.randn(batch, *grid, dim, dtype=torch.float64)
    defined = mu + sigma * ((rows - mu) / sigma).detach() + (rows - rows.detach())
    expected = gradients((defined * weight.reshape(-1, dim)).sum())
    found = gradients((out.quantized * weight.permute(0, 3, 1, 2)).sum())
    for ours, theirs in zip(found, expected, strict=True):
        assert theirs.norm() > 0.1
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-12)
