"""Small pipelines for tests, and calls of them."""

import torch

from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
from priors import PixelCNN
from priors.diffusion import make_scheduler
from priors.unet import make_unet
from tokenizer import VQTokenizer

NAMES = {0: "tench", 1: "goldfish", 2: "hen"}


def quiet(pipe):
    pipe.set_progress_bar_config(disable=True)
    return pipe


def seeded(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def sample(pipe, labels=(0, 2), seeds=None, **options):
    """Images (n, C, H, W), image i from a generator of its own with the seed seeds[i], or labels[i]."""
    options = {"output_type": "pt", "generator": seeded(*(seeds or labels))} | options
    return pipe(list(labels), **options).images


def image_tokenizer(quantizer):
    """Of 16 px; its decoder's weights are large enough to paint more than grey."""
    sizes = {"codebook_size": 32, "codebook_dim": 4, "hidden_channels": 8, "network_options": {"residual_channels": 4}}
    tokenizer = VQTokenizer(1, 16, quantizer=quantizer, **sizes)
    with torch.no_grad():
        tokenizer.decoder.conv_out.weight.mul_(20)
    return tokenizer.eval()


def latent_diffusion(conditioning="embedding", id2label=NAMES, latent_scale=30.0):
    """Over a tokenizer without codes, which would hide small differences of the latents."""
    unet = make_unet((4, 4, 4), 3, 16, (1,), num_blocks=1, head_channels=8, conditioning=conditioning)
    with torch.no_grad():
        unet.class_embedding.weight.mul_(5)
    return quiet(ArcVQLDMPipeline(image_tokenizer("vae"), unet.eval(), make_scheduler(), id2label, latent_scale))


def pixelcnn(id2label=NAMES, **options):
    prior = PixelCNN(32, 3, (4, 4), channels=8, num_layers=3, head_channels=16, **options)
    with torch.no_grad():
        prior.head[-1].weight.mul_(20)
    return quiet(ArcVQPixelCNNPipeline(image_tokenizer("arc"), prior.eval(), id2label))
