"""ArcVQ on variational latents, against its equations token by token."""

import pytest
import torch
from quantizer_cases import check_gradients_of_what_is_decoded
from torch.distributions import Normal, kl_divergence
from torch.nn.functional import cosine_similarity

from tokenizer.angular_margin import arc_loss
from tokenizer.quantizers import make_quantizer


def make(codes=12, dim=3, **options):
    return make_quantizer("arc_vae", codes, dim, options).double()


def make_encoder_output(dim=3, batch=2):
    return torch.randn(batch, 2 * dim, 4, 5, dtype=torch.float64).requires_grad_()


def gradients(value, quantizer, encoder_output):
    inputs = [encoder_output, quantizer.codebook]
    return torch.autograd.grad(value, inputs, retain_graph=True, allow_unused=True, materialize_grads=True)


def written_out(quantizer, encoder_output):
    """mu, sigma, rows and codes, (N, D) and (N,), token by token."""
    mu, log_variance = encoder_output.permute(0, 2, 3, 1).reshape(-1, encoder_output.shape[1]).chunk(2, dim=1)
    codes = [cosine_similarity(quantizer.codebook, z[None]).argmax() for z in mu]
    return mu, log_variance.exp().sqrt(), torch.stack([quantizer.codebook[code] for code in codes]), torch.stack(codes)


def test_losses_and_their_gradients_equal_the_equations():
    quantizer, encoder_output = make(scale=8.0, margin=0.2, top_k=2), make_encoder_output()
    out = quantizer(encoder_output)
    mu, sigma, rows, codes = written_out(quantizer, encoder_output)
    assert torch.equal(out.codes.flatten(), codes)
    kl = kl_divergence(Normal(mu, sigma), Normal(0.0, 1.0)).sum() / 2
    expected = {
        "coherence": ((rows - mu) / sigma).square().mean() / 2,
        "kl": kl,
        "arc": arc_loss(mu, quantizer.codebook, 8.0, 0.2, 2),
    }
    assert out.losses.keys() == expected.keys() == quantizer.loss_weights().keys()
    for name, theirs in expected.items():
        torch.testing.assert_close(out.losses[name], theirs)
        found = gradients(out.losses[name], quantizer, encoder_output)
        for ours, wanted in zip(found, gradients(theirs, quantizer, encoder_output), strict=True):
            torch.testing.assert_close(ours, wanted, rtol=1e-8, atol=1e-12)
        # The table learns from the coherence alone, and the arc loss reaches the means alone.
        assert (found[1].norm() > 0) == (name == "coherence")
        assert (found[0][:, 3:].norm() > 0) == (name != "arc")
    weights = {name: float(weight) for name, weight in quantizer.loss_weights().items()}
    assert weights == {"coherence": 1, "kl": 1e-6, "arc": 1}


def test_what_is_decoded_has_the_value_of_the_row_and_the_gradient_of_the_definition():
    quantizer, encoder_output = make(), make_encoder_output()
    out = quantizer(encoder_output)
    assert torch.equal(out.quantized, quantizer.lookup(out.codes))
    mu, sigma, rows, _ = written_out(quantizer, encoder_output)
    check_gradients_of_what_is_decoded(out, mu, sigma, rows, lambda value: gradients(value, quantizer, encoder_output))


def test_samples_are_spread_by_sigma_around_the_means_and_evaluation_draws_none():
    quantizer, encoder_output = make(dim=2), torch.zeros(2000, 4, 1, 2, dtype=torch.float64)
    encoder_output[:, :2], encoder_output[:, 2:] = 3.0, 2 * torch.log(torch.tensor(0.5))
    sampled = quantizer(encoder_output).sampled
    assert sampled.mean().item() == pytest.approx(3, abs=0.03) and sampled.std().item() == pytest.approx(0.5, rel=0.05)
    assert quantizer.eval()(encoder_output).sampled is None


def test_the_ball_holds_the_table_and_k_means_starts_from_the_means():
    encoder_output = make_encoder_output(batch=20).detach()
    encoder_output[:, :3] = torch.tensor([0.0, 0.0, 0.3]).view(3, 1, 1)  # all means are one vector
    quantizer = make(init="kmeans")
    quantizer.after_update(encoder_output, quantizer(encoder_output).codes)
    torch.testing.assert_close(quantizer.codebook.detach(), torch.tensor([[0.0, 0.0, 0.3]]).double().expand(12, 3))
    with torch.no_grad():
        quantizer.codebook.mul_(100)
    quantizer.after_update(encoder_output, quantizer(encoder_output).codes)
    assert quantizer.codebook.detach().norm(dim=1).max().item() == pytest.approx(quantizer.radius.item())
