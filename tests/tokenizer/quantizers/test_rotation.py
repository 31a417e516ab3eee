import pytest
import torch

from tokenizer.quantizers.rotation import RotationQuantizer, rotated
from tokenizer.quantizers.vq import VQQuantizer

D = 5


def pair_of_quantizers():
    torch.manual_seed(0)
    rotation, vanilla = RotationQuantizer(7, D, init="normal").double(), VQQuantizer(7, D).double()
    vanilla.load_state_dict(rotation.state_dict())
    return rotation, vanilla


def test_rows_codes_and_losses_are_the_vanilla_ones():
    latents = torch.randn(3, D, 2, 4, dtype=torch.float64)
    ours, theirs = (quantizer(latents) for quantizer in pair_of_quantizers())
    assert torch.equal(ours.quantized, theirs.quantized) and torch.equal(ours.codes, theirs.codes)
    assert ours.losses == theirs.losses


def test_the_gradient_is_that_of_the_map_built_as_a_matrix():
    rotation, _ = pair_of_quantizers()
    latents = torch.randn(3, D, 2, 4, dtype=torch.float64, requires_grad=True)
    rows = rotation(latents).quantized
    upstream = torch.randn_like(rows)
    (found,) = torch.autograd.grad(rows, latents, upstream)
    tokens = (these.detach().movedim(1, -1).reshape(-1, D) for these in (latents, rows, upstream, found))
    for latent, row, gradient, ours in zip(*tokens, strict=True):
        a, b = latent / latent.norm(), row / row.norm()
        r = (a + b) / (a + b).norm()
        turn = torch.eye(D, dtype=torch.float64) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
        torch.testing.assert_close(turn @ turn.T, torch.eye(D, dtype=torch.float64))
        torch.testing.assert_close(turn @ a, b)
        torch.testing.assert_close(ours, row.norm() / latent.norm() * turn.T @ gradient)
        cosines = [one @ other / one.norm() / other.norm() for one, other in ((gradient, row), (ours, latent))]
        torch.testing.assert_close(*cosines)


def test_latents_land_on_their_rows():
    latents, rows = torch.randn(2, 2, D, 3, 3, dtype=torch.float64).unbind()
    torch.testing.assert_close(rotated(latents, rows), rows)


@pytest.mark.parametrize(
    ("latent", "row"), [(0.0, 1.0), (1.0, 0.0), (0.0, 0.0), (1.0, -2.0)], ids=["latent", "row", "both", "opposite"]
)
def test_where_there_is_no_rotation_the_gradient_goes_straight_through(latent, row):
    latents = torch.full((1, D, 1, 1), latent, requires_grad=True)
    upstream = torch.randn(1, D, 1, 1)
    (found,) = torch.autograd.grad(rotated(latents, torch.full((1, D, 1, 1), row)), latents, upstream)
    assert torch.equal(found, upstream)
