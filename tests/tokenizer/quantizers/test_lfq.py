"""Look-up free quantization: signs, their codes, and both entropies, against all 2^D codes."""

import math
from itertools import product

import pytest
import torch
from processes_as_threads import Processes
from quantizer_cases import total

from tokenizer.quantizers import make_quantizer, signs

DIM = 5


def make(dim=DIM, **options):
    return make_quantizer("lfq", 2**dim, dim, options).double()


def latents_of(batch=4, dim=DIM):
    return torch.randn(batch, dim, 2, 3, dtype=torch.float64)


def as_tokens(maps):
    return maps.permute(0, 2, 3, 1).flatten(0, 2)


def by_definition(tokens, temperature):
    """The losses of tokens (N, D), from distances to all codes."""
    codes = torch.tensor(list(product((-1.0, 1.0), repeat=tokens.shape[1])), dtype=tokens.dtype)
    distances = (tokens[:, None] - codes).square().sum(dim=2)
    p = (-distances / temperature).softmax(dim=1)
    mean = p.mean(dim=0)
    return {
        "commitment": distances.amin(dim=1).mean() / tokens.shape[1],
        "token_entropy": -(p * p.log()).sum(dim=1).mean(),
        "codebook_entropy": -(mean * mean.log()).sum(),
    }


def test_the_code_is_the_nearest_of_all_codes():
    quantizer, latents = make(), latents_of()
    nearest = torch.cdist(as_tokens(latents), quantizer.codebook).argmin(dim=1)
    out = quantizer(latents)
    assert torch.equal(out.codes.flatten(), nearest)
    assert torch.equal(as_tokens(out.quantized), quantizer.codebook[nearest])


def test_the_codebook_has_every_list_of_signs_and_its_rows_have_their_own_codes():
    quantizer = make()
    rows = quantizer.codebook
    assert rows.abs().eq(1).all() and len(rows.unique(dim=0)) == 2**DIM
    codes = torch.arange(2**DIM).view(2, 4, 4)
    maps = quantizer.lookup(codes)
    assert torch.equal(as_tokens(maps), rows) and torch.equal(quantizer.encode(maps), codes)
    assert rows[1].tolist() == [1.0] + [-1.0] * (DIM - 1)  # the first channel is the lowest bit


def test_losses_and_their_gradients_are_those_over_all_codes():
    quantizer, latents = make(entropy_temperature=0.7), latents_of().requires_grad_()
    found, expected = quantizer(latents).losses, by_definition(as_tokens(latents), 0.7)
    assert found.keys() == expected.keys()
    for name, loss in expected.items():
        torch.testing.assert_close(found[name], loss, rtol=1e-12, atol=1e-14)
        gradients = [torch.autograd.grad(value, latents, retain_graph=True)[0] for value in (found[name], loss)]
        torch.testing.assert_close(*gradients, rtol=1e-9, atol=1e-13)
    signs = {name: math.copysign(1, weight) for name, weight in quantizer.loss_weights().items()}
    assert signs == {"commitment": 1, "token_entropy": 1, "codebook_entropy": -1}


def test_decided_tokens_of_all_codes_have_the_least_loss():
    quantizer = make(3, entropy_temperature=0.01)
    every = quantizer.lookup(torch.arange(8).view(1, 2, 4))
    maps = {"all": every, "one": every[..., :1, :1].expand_as(every), "none": 0 * every}
    loss = {name: total(quantizer, quantizer(latents).losses).item() for name, latents in maps.items()}
    assert loss["all"] == pytest.approx(-0.1 * math.log(8)) and loss["one"] == pytest.approx(0, abs=1e-12)
    assert loss["none"] == pytest.approx(0.25)  # the entropies are equal, and each sign is at a distance of 1


@pytest.mark.parametrize("channels", [18, 2])
def test_processes_have_the_losses_and_gradients_of_the_whole_batch(monkeypatch, channels):
    quantizer, latents = make(entropy_temperature=0.7, entropy_channels=channels).train(), latents_of()

    def step(maps):
        maps = maps.clone().requires_grad_()
        losses = quantizer(maps).losses
        return losses, torch.autograd.grad(total(quantizer, losses), maps)[0]

    whole, gradient = step(latents)
    processes = Processes(2)
    monkeypatch.setattr(signs, "all_reduce_sum", lambda tensor: processes.total(tensor.detach()))
    monkeypatch.setattr(signs, "global_count", processes.number)
    parts = processes.run(lambda rank: step(latents.chunk(2)[rank]))
    for name, loss in whole.items():
        values = [losses[name] for losses, _ in parts]
        torch.testing.assert_close(sum(values) / 2, loss, rtol=1e-12, atol=1e-14)
        if name == "codebook_entropy":
            assert values[0].item() == pytest.approx(loss.item(), rel=1e-12)
    torch.testing.assert_close(torch.cat([part for _, part in parts]) / 2, gradient, rtol=1e-10, atol=1e-14)


def test_a_loss_of_weight_0_is_not_computed():
    names = {
        "beta": "commitment",
        "token_entropy_weight": "token_entropy",
        "codebook_entropy_weight": "codebook_entropy",
    }
    for option, name in names.items():
        assert make(**{option: 0.0})(latents_of()).losses.keys() == set(names.values()) - {name}
    assert make(**dict.fromkeys(names, 0.0))(latents_of()).losses == {}


def test_a_step_with_262144_codes_keeps_no_table_of_tokens_and_codes():
    kept = []

    def pack(tensor):
        kept.append(tensor.numel())
        return tensor

    quantizer, maps = make_quantizer("lfq", 2**18, 18, {}), torch.randn(2, 18, 4, 4, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        quantizer(maps)
    assert max(kept) <= 2**18


@pytest.mark.parametrize(
    ("codes", "dim", "message"),
    [
        (512, 64, "set model.codebook_size to 512 and model.codebook_dim to 9"),
        (12, 4, "set model.codebook_size to 16 and model.codebook_dim to 4"),
        (1, 1, "set model.codebook_size to 2 and model.codebook_dim to 1"),
        (2**31, 31, "set model.codebook_size to at most 1073741824"),
    ],
)
def test_sizes_that_are_no_signs_are_refused_with_some_that_are(codes, dim, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer("lfq", codes, dim, {})


@pytest.mark.parametrize(("option", "value"), [("entropy_temperature", 0.0), ("entropy_channels", 0)])
def test_options_that_cannot_work_are_refused(option, value):
    with pytest.raises(ValueError, match=f"{option} must be .*, got {value}"):
        make(**{option: value})
