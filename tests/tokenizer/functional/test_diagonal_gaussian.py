import torch
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

from tokenizer.functional.diagonal_gaussian import DiagonalGaussian


def test_values_and_gradients_are_diffusers_bit_for_bit():
    encoder_output = torch.randn(3, 8, 5, 4) * 20  # log variances on both sides of [-30, 20]
    results = []
    for distribution in (DiagonalGaussian, DiagonalGaussianDistribution):
        values = encoder_output.clone().requires_grad_()
        posterior = distribution(values)
        found = [posterior.mean, posterior.std, posterior.var, posterior.kl()]
        (posterior.kl().mean() + (posterior.std * posterior.mean).clamp(-9, 9).sum()).backward()
        results.append([*found, values.grad])
    assert all(torch.equal(ours, theirs) for ours, theirs in zip(*results, strict=True))


def test_the_divergence_is_that_of_torchs_distributions():
    encoder_output = torch.randn(2, 6, 3, 3, dtype=torch.float64)
    posterior = DiagonalGaussian(encoder_output)
    normal = torch.distributions.Normal(posterior.mean, posterior.std)
    standard = torch.distributions.Normal(torch.zeros_like(posterior.mean), torch.ones_like(posterior.std))
    expected = torch.distributions.kl_divergence(normal, standard).sum(dim=(1, 2, 3))
    torch.testing.assert_close(posterior.kl(), expected)
