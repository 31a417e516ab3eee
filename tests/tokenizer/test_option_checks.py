"""Numbers of layers that would build for hours are refused at once."""

import pytest
import torch

from priors import PixelCNN
from priors.unet import make_unet
from tokenizer import VQTokenizer
from tokenizer.networks.discriminator import PatchDiscriminator

HUGE = 10**9


@pytest.mark.parametrize(
    ("build", "option"),
    [
        (lambda: VQTokenizer(num_residual_layers=HUGE), "num_residual_layers"),
        (lambda: VQTokenizer(network="vqgan", num_residual_layers=HUGE), "num_residual_layers"),
        (lambda: VQTokenizer(network="vqgan", network_options={"channel_multipliers": [1] * 60_000}), "multipliers"),
        (lambda: VQTokenizer(quantizer="hvq", quantizer_options={"levels": HUGE}), "levels"),
        (lambda: PatchDiscriminator(3, num_layers=HUGE), "adversarial.layers"),
        (lambda: PixelCNN(512, 10, (8, 8), num_layers=HUGE), "num_layers"),
        (lambda: make_unet((4, 8, 8), 10, num_blocks=HUGE), "unet.num_blocks"),
        (lambda: make_unet((4, 8, 8), 10, channel_multipliers=[1] * 60_000), "unet.channel_multipliers"),
    ],
)
def test_too_many_layers_are_refused_by_name(build, option):
    with torch.device("meta"), pytest.raises(ValueError, match=f"{option} must be at most"):
        build()
