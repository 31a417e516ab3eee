import math

import pytest
import torch

from tokenizer.losses.adversarial import (
    adaptive_weight,
    discriminator_loss,
    generator_loss,
    lecam_penalty,
    r1_penalty,
)


def logits():
    """Of real and of reconstructed images, of different numbers, on both sides of every kink."""
    real, fake = 2 * torch.randn(3, 1, 4, 4, dtype=torch.float64), 2 * torch.randn(2, 1, 4, 4, dtype=torch.float64)
    assert real.min() < -1 and real.max() > 1 and fake.min() < -1 and fake.max() > 1
    return real, fake


def test_hinge_written_out():
    real, fake = logits()
    expected = (sum(max(0, 1 - x) for x in real.flatten().tolist()) / 48,)
    expected += (sum(max(0, 1 + x) for x in fake.flatten().tolist()) / 32,)
    assert discriminator_loss(real, fake, "hinge").item() == pytest.approx(sum(expected) / 2, rel=1e-12)
    assert generator_loss(fake, "hinge").item() == pytest.approx(-sum(fake.flatten().tolist()) / 32, rel=1e-12)


def test_non_saturating_is_the_cross_entropy_of_the_two_kinds():
    real, fake = logits()
    entropy = torch.nn.functional.binary_cross_entropy
    right = entropy(real.sigmoid(), torch.ones_like(real)), entropy(fake.sigmoid(), torch.zeros_like(fake))
    assert discriminator_loss(real, fake, "non_saturating").item() == pytest.approx(sum(right).item() / 2, rel=1e-12)
    taken_for_real = entropy(fake.sigmoid(), torch.ones_like(fake)).item()
    assert generator_loss(fake, "non_saturating").item() == pytest.approx(taken_for_real, rel=1e-12)


def test_the_adversarial_losses_where_they_are_known():
    zero, far = torch.zeros(2, 1, 3, 3), torch.full((2, 1, 3, 3), 1e4)
    assert discriminator_loss(zero, zero, "hinge") == 1 and generator_loss(zero, "hinge") == 0
    assert discriminator_loss(zero, zero, "non_saturating").item() == pytest.approx(math.log(2))
    assert generator_loss(zero, "non_saturating").item() == pytest.approx(math.log(2))
    for kind in ("hinge", "non_saturating"):  # no probability is rounded to 0 first
        assert discriminator_loss(far, -far, kind) == 0
        assert discriminator_loss(-far, far, kind).item() == pytest.approx(1e4, rel=1e-3)
        pulled = zero.clone().requires_grad_()
        generator_loss(pulled, kind).backward()
        assert (pulled.grad < 0).all()  # towards larger logits, those of real images
    assert generator_loss(-far, "non_saturating").item() == pytest.approx(1e4)


def test_the_best_discriminator_tells_how_much_likelier_an_image_is_real():
    """Of the non-saturating loss: log(p / q) where real images have the probability p and others q."""
    kinds = torch.tensor([0, 0, 0, 1]), torch.tensor([0, 1, 1, 1])
    logit = torch.zeros(2, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([logit], max_iter=100, tolerance_grad=1e-10)

    def loss():
        optimizer.zero_grad()
        value = discriminator_loss(logit[kinds[0]], logit[kinds[1]], "non_saturating")
        value.backward()
        return value

    optimizer.step(loss)
    assert logit.tolist() == pytest.approx([math.log(3), -math.log(3)], abs=1e-4)


def test_the_adaptive_weight_is_the_ratio_of_the_lengths():
    first, second = torch.randn(2, 5, 3, 3), torch.randn(2, 5, 3, 3)
    ratio = math.sqrt(first.double().square().sum()) / (math.sqrt(second.double().square().sum()) + 1e-4)
    assert adaptive_weight(first, second, 10.0).item() == pytest.approx(ratio, rel=1e-6)
    assert adaptive_weight(first, second, 0.5 * ratio).item() == pytest.approx(0.5 * ratio)
    assert adaptive_weight(first, 1e-3 * second, 10.0) == 10
    assert adaptive_weight(first, 0 * second, 10.0) == 10
    assert adaptive_weight(0 * first, second, 10.0) == 0 == adaptive_weight(0 * first, 0 * second, 10.0)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize("which", [0, 1])
def test_the_adaptive_weight_of_what_is_not_finite_is_zero(broken, which):
    gradients = [torch.randn(2, 3), torch.randn(2, 3)]
    gradients[which][1, 1] = broken
    assert adaptive_weight(*gradients, 10.0) == 0


def test_r1_of_a_linear_discriminator_by_hand():
    """Of d(x) = <w, x> the gradient is w everywhere: |w|^2 / 2, and its derivative by w is w."""
    weights = torch.randn(3, 4, 4, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 3, 4, 4, dtype=torch.float64)
    penalty = r1_penalty(lambda batch: (batch * weights).sum(dim=(1, 2, 3)).view(-1, 1, 1, 1), images)
    penalty.backward()
    assert penalty.item() == pytest.approx(weights.detach().square().sum().item() / 2, rel=1e-12)
    torch.testing.assert_close(weights.grad, weights.detach(), rtol=1e-12, atol=0)


def test_r1_averages_over_patches_and_images_and_its_slope_is_that_of_its_values():
    """Of d(x) = a x^2 at each position, n of them, the gradient is 2 a x / n: the penalty is 2 a^2 E|x|^2 / n^2."""
    factor = torch.tensor(0.7, dtype=torch.float64, requires_grad=True)
    images = torch.randn(5, 1, 4, 4, dtype=torch.float64)
    penalty = r1_penalty(lambda batch: factor * batch**2, images)
    per_image = images.square().sum(dim=(1, 2, 3)).mean().item() / 16**2
    assert penalty.item() == pytest.approx(2 * 0.7**2 * per_image, rel=1e-12)
    penalty.backward()
    assert factor.grad.item() == pytest.approx(4 * 0.7 * per_image, rel=1e-12)
    assert not images.requires_grad


def test_lecam_holds_logits_at_the_other_kinds_mean():
    real, fake = torch.tensor([1.0, -2.0]), torch.tensor([[0.5], [3.0]])
    # relu(1 - 0.25)^2 and relu(-2 - 0.25)^2; relu(0.75 - 0.5)^2 and relu(0.75 - 3)^2
    expected = 0.75**2 / 2 + 0.25**2 / 2
    assert lecam_penalty(real, fake, torch.tensor(0.75), torch.tensor(0.25)).item() == pytest.approx(expected)
    assert lecam_penalty(-fake, fake, torch.tensor(0.0), torch.tensor(0.0)) == 0


def test_hinge_softplus_is_the_hinge_of_the_discriminator_and_the_cross_entropy_of_the_generator():
    real, fake = torch.randn(2, 32, dtype=torch.float64)
    assert discriminator_loss(real, fake, "hinge_softplus") == discriminator_loss(real, fake, "hinge")
    assert generator_loss(fake, "hinge_softplus") == generator_loss(fake, "non_saturating")
