"""Adversarial losses: discriminator logits of real and reconstructed images -> scalar; their weight and penalties."""

from collections.abc import Callable
from typing import Literal

import torch
from einops import reduce
from torch import Tensor
from torch.nn.functional import relu, softplus

GANLoss = Literal["hinge", "non_saturating", "hinge_softplus"]

# Added to the norm of the adversarial gradient before the division (taming-transformers).
_ADAPTIVE_EPSILON = 1e-4


def discriminator_loss(real: Tensor, fake: Tensor, kind: GANLoss) -> Tensor:
    """Compute the discriminator's loss: logits of real and of reconstructed images, any shapes -> scalar.

    `hinge` and `hinge_softplus` are (E relu(1 - real) + E relu(1 + fake)) / 2 (Lim and Ye 2017); `non_saturating` is
    the binary cross-entropy (Goodfellow et al. 2014), also halved.
    """
    if kind != "non_saturating":
        return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2
    return (softplus(-real).mean() + softplus(fake).mean()) / 2


def generator_loss(fake: Tensor, kind: GANLoss) -> Tensor:
    """Compute the tokenizer's adversarial loss: logits of its reconstructions, any shape -> scalar.

    -E fake for `hinge`; for the others E softplus(-fake), the cross-entropy with the label "real".
    """
    return -fake.mean() if kind == "hinge" else softplus(-fake).mean()


def image_logits(logits: Tensor, images: int) -> Tensor:
    """Average the logits of each image over patches and decodes: (R images, 1, h, w) -> (images,).

    The R reconstructions of an image lie `images` rows apart.
    """
    return reduce(logits, "(decodes images) 1 h w -> images", "mean", images=images)


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor, largest: float) -> Tensor:
    """Compute |g_reconstruction| / (|g_adversarial| + 1e-4), at most `largest`, and 0 if not finite (VQGAN, eq. 7).

    Both gradients are with respect to the decoder's last weights, over the whole batch, of equal shape.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + _ADAPTIVE_EPSILON)
    return torch.where(ratio.isfinite(), ratio, 0).clamp(max=largest)


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Compute half the mean squared norm of the logits' gradient at real images (Mescheder et al. 2018, eq. 9).

    The logits of each image (B, C, H, W) are averaged over its patches first.
    """
    images = images.detach().requires_grad_(True)
    logits = discriminator(images).mean(dim=(1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(logits, images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def lecam_penalty(real: Tensor, fake: Tensor, real_anchor: Tensor, fake_anchor: Tensor) -> Tensor:
    """Compute the LeCam penalty, which keeps logits near the running mean of the other kind (Tseng et al. 2021, eq. 4).

    `real_anchor` and `fake_anchor` are running means of the logits of real and of reconstructed images, scalars.
    """
    return relu(real - fake_anchor).square().mean() + relu(real_anchor - fake).square().mean()
