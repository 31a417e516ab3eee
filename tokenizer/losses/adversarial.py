"""Adversarial losses: discriminator logits of real and reconstructed images -> scalar; their weight and penalties."""

from collections.abc import Callable
from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import relu, softplus

GANLoss = Literal["hinge", "non_saturating"]

# Added to the norm of the adversarial gradient before the division (taming-transformers).
_ADAPTIVE_EPSILON = 1e-4


def discriminator_loss(real: Tensor, fake: Tensor, kind: GANLoss) -> Tensor:
    """What the discriminator minimises: logits of real and of reconstructed images, any shapes -> scalar.

    `hinge` is (E relu(1 - real) + E relu(1 + fake)) / 2 (Lim and Ye 2017), `non_saturating` is the binary cross entropy
    (Goodfellow et al. 2014), halved likewise.
    """
    if kind == "hinge":
        return (relu(1 - real).mean() + relu(1 + fake).mean()) / 2
    return (softplus(-real).mean() + softplus(fake).mean()) / 2


def generator_loss(fake: Tensor, kind: GANLoss) -> Tensor:
    """What the tokenizer minimises of the logits of its reconstructions, any shape -> scalar.

    -E fake for `hinge`; the cross entropy of being taken for real, E softplus(-fake), for `non_saturating`.
    """
    return -fake.mean() if kind == "hinge" else softplus(-fake).mean()


def adaptive_weight(reconstruction_gradient: Tensor, adversarial_gradient: Tensor, largest: float) -> Tensor:
    """|g_reconstruction| / (|g_adversarial| + 1e-4), at most `largest`; 0 where that is not finite (VQGAN, eq. 7).

    Both gradients are of the decoder's last weights, of one shape, over the whole batch.
    """
    ratio = reconstruction_gradient.norm() / (adversarial_gradient.norm() + _ADAPTIVE_EPSILON)
    return torch.where(ratio.isfinite(), ratio, 0).clamp(max=largest)


def r1_penalty(discriminator: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Half the mean squared length of the logits' gradient at real images (B, C, H, W) (Mescheder et al. 2018, eq. 9).

    An image's logits are averaged over its patches first.
    """
    images = images.detach().requires_grad_(True)
    logits = discriminator(images).mean(dim=(1, 2, 3)).sum()
    (gradient,) = torch.autograd.grad(logits, images, create_graph=True)
    return gradient.square().sum(dim=(1, 2, 3)).mean() / 2


def lecam_penalty(real: Tensor, fake: Tensor, real_anchor: Tensor, fake_anchor: Tensor) -> Tensor:
    """Keeps logits near the running mean of those of the other kind (Tseng et al. 2021, eq. 4): logits -> scalar.

    The anchors are running means of the logits of real and of reconstructed images, scalars.
    """
    return relu(real - fake_anchor).square().mean() + relu(real_anchor - fake).square().mean()
