"""Tiles of either kind of device: equal results, and on an accelerator few launches."""

import pytest
import torch
from launches import Launches
from plain_arc_loss import plain_arc_loss
from torch.nn.functional import mse_loss

from tokenizer.angular_margin import arc_loss_and_codes
from tokenizer.functional import nearest, tiles
from tokenizer.functional.nearest import closest, largest_product, most_similar
from tokenizer.functional.straight_through import CodebookLookup
from tokenizer.functional.vectors import unit_vectors
from tokenizer.quantizers import make_quantizer

KINDS = ["cpu", "accelerator"]


@pytest.fixture(params=KINDS)
def kind(request, monkeypatch):
    """The CPU computes with the sizes of either kind of device."""
    if request.param == "accelerator":
        monkeypatch.setitem(tiles.TILES, "cpu", tiles.ACCELERATOR_TILES)
    return request.param


def test_a_device_gets_the_sizes_of_its_kind():
    sizes = [tiles.tiles_of(torch.device(name)) for name in ("cpu", "cuda:1", "mps", "xpu")]
    assert sizes[0].entries < sizes[1].entries and sizes[0].codes < sizes[1].codes
    assert sizes[1] == sizes[2] == sizes[3]


@pytest.mark.parametrize(("tokens", "codes"), [(9000, 512), (300, 9000), (20, 3)])
def test_codes_are_those_of_the_whole_table_on_either_kind(tokens, codes, kind):
    tokens, codebook = torch.randn(tokens, 6, dtype=torch.float64), torch.randn(codes, 6, dtype=torch.float64)
    products = tokens @ codebook.T
    assert torch.equal(largest_product(tokens, codebook), products.argmax(dim=1))
    assert torch.equal(most_similar(tokens, codebook), (products / codebook.norm(dim=1)).argmax(dim=1))
    assert torch.equal(closest(tokens, codebook), torch.cdist(tokens, codebook).argmin(dim=1))


@pytest.mark.parametrize(("tokens", "codes"), [(9000, 20), (70, 600), (32 * 200, 5)])
def test_the_arc_loss_is_the_plain_one_on_either_kind(tokens, codes, kind):
    latents = torch.randn(tokens, 5, dtype=torch.float64, requires_grad=True)
    codebook = torch.randn(codes, 5, dtype=torch.float64)
    loss, found = arc_loss_and_codes(latents, codebook, 10.0, 0.1, 3)
    expected = plain_arc_loss(latents, codebook)
    torch.testing.assert_close(loss, expected, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, latents)[0] for value in (loss, expected)]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)
    assert torch.equal(found, most_similar(latents.detach(), codebook))


def test_the_arc_loss_in_several_tiles_of_an_accelerator_is_the_plain_one(monkeypatch):
    small = tiles.Tiles(entries=900, codes=7, look_up=50, noise=64, few_launches=True)
    monkeypatch.setitem(tiles.TILES, "cpu", small)
    latents, codebook = torch.randn(301, 5, dtype=torch.float64).requires_grad_(), torch.randn(20, 5).double()
    values = arc_loss_and_codes(latents, codebook, 10.0, 0.1, 3)[0], plain_arc_loss(latents, codebook)
    torch.testing.assert_close(*values, rtol=1e-10, atol=0)
    gradients = [torch.autograd.grad(value, latents)[0] for value in values]
    torch.testing.assert_close(*gradients, rtol=1e-8, atol=1e-12)


def test_the_look_up_is_the_plain_one_on_either_kind(kind):
    tokens, codebook = torch.randn(9000, 3, dtype=torch.float64), torch.randn(7, 3, dtype=torch.float64)
    codes = closest(tokens, codebook)
    leaves = tokens.requires_grad_(), codebook.requires_grad_()
    found = torch.autograd.grad(sum(CodebookLookup.apply(*leaves, codes)[1:]), leaves)
    losses = mse_loss(codebook[codes], tokens.detach()), mse_loss(codebook[codes].detach(), tokens)
    expected = torch.autograd.grad(sum(losses), leaves)
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-15)


def launches_of_a_step(name, codes, dim, images=1024, side=8, **options):
    """Forward, backward and what follows the update, for 65,536 tokens."""
    quantizer = make_quantizer(name, codes, dim, options).train().to("meta")
    encoder_output = torch.empty(images, quantizer.encoder_channels, side, side, device="meta", requires_grad=True)
    quantizer.seed_noise(3, 0)
    with Launches() as launches:
        output, weights = quantizer(encoder_output), quantizer.loss_weights()
        (output.quantized.sum() + sum(weights[key] * loss for key, loss in output.losses.items())).backward()
        quantizer.after_update(encoder_output.detach(), output.codes)
    return launches


@pytest.mark.parametrize(
    ("name", "most"), [("arc", 190), ("vq", 50), ("cosine", 65), ("ema", 75), ("rq", 145), ("cvq", 150), ("ibq", 120)]
)
def test_a_batch_of_65536_tokens_and_512_codes_takes_few_launches(name, most):
    launches = launches_of_a_step(name, 512, 64)
    assert launches.total <= most, launches


@pytest.mark.parametrize(("name", "most"), [("arc", 7000), ("vq", 1700), ("cvq", 3600)])
def test_a_table_of_262144_codes_takes_some_thousand_launches(name, most):
    launches = launches_of_a_step(name, 1 << 18, 8)
    assert launches.total <= most, launches


def test_the_tokens_are_normalised_once_and_not_for_each_block_of_codes(monkeypatch):
    normalised = []
    monkeypatch.setattr(nearest, "unit_vectors", lambda rows: normalised.append(len(rows)) or unit_vectors(rows))
    monkeypatch.setitem(
        tiles.TILES, "cpu", tiles.Tiles(entries=200, codes=10, look_up=50, noise=64, few_launches=False)
    )
    most_similar(torch.randn(50, 6), torch.randn(95, 6))
    assert normalised == [95, 20, 20, 10]
