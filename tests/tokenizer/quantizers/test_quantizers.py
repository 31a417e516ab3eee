import math

import numpy as np
import pytest
import torch
from places import GOLDEN
from torch.nn.functional import cosine_similarity

from tokenizer.angular_margin import arc_loss
from tokenizer.quantizers import Quantizer, arc, make_quantizer


def make(name, codes=12, dim=6, **options):
    return make_quantizer(name, codes, dim, options)


def update(quantizer):
    """After an update with a batch of zeros."""
    latents = torch.zeros(1, quantizer.encoder_channels, 2, 2)
    quantizer.after_update(latents, quantizer.encode(latents))


def as_tokens(latents):
    return latents.permute(0, 2, 3, 1).reshape(-1, latents.shape[1])


@pytest.fixture(params=["arc", "cosine", "vq"])  # a learned table, the rows as they are
def name(request):
    return request.param


@pytest.mark.parametrize("file", ["quantize_0.npz", "quantize_1.npz"])
def test_arc_equals_the_golden_assignment_losses_and_gradients(file):
    golden = np.load(GOLDEN / file)
    size, dim = golden["codebook"].shape
    quantizer = make("arc", size, dim, beta=golden["beta"].item()).double()
    quantizer.codebook.data = torch.from_numpy(golden["codebook"])
    tokens = torch.tensor(golden["z"], requires_grad=True)
    latents = tokens.reshape(1, 1, -1, dim).permute(0, 3, 1, 2)  # (1, D, 1, N)

    out = quantizer(latents)
    assert np.array_equal(out.codes.flatten().numpy(), golden["indices"])
    np.testing.assert_allclose(as_tokens(out.quantized).detach().numpy(), golden["quantized"], rtol=1e-12)
    weights = quantizer.loss_weights()
    loss = sum(weights[term] * out.losses[term] for term in ("codebook", "commitment"))
    assert loss.item() == pytest.approx(golden["loss"].item(), rel=1e-9)
    loss.backward()
    np.testing.assert_allclose(tokens.grad.numpy(), golden["grad_z"], rtol=1e-9, atol=1e-15)
    np.testing.assert_allclose(quantizer.codebook.grad.numpy(), golden["grad_codebook"], rtol=1e-9, atol=1e-15)


def test_arc_ignores_lengths_and_vq_does_not():
    codebook = torch.tensor([[1.0, 0.1], [9.0, 0.0]])
    latents = torch.tensor([2.0, 0.0]).reshape(1, 2, 1, 1)
    codes = {}
    for name in ("arc", "vq"):
        quantizer = make(name, 2, 2)
        quantizer.codebook.data.copy_(codebook)
        codes[name] = quantizer.encode(latents).item()
    assert codes == {"arc": 1, "vq": 0}


def test_straight_through_value_is_the_row_and_gradient_the_identity(name):
    quantizer = make(name)
    latents = (torch.randn(2, 6, 3, 4) * 5).requires_grad_()
    out = quantizer(latents)
    assert out.codes.shape == (2, 3, 4) and out.codes.dtype == torch.int64
    assert torch.equal(as_tokens(out.quantized), quantizer.codebook[out.codes.flatten()])
    weight = torch.randn_like(out.quantized)
    (out.quantized * weight).sum().backward()
    assert torch.equal(latents.grad, weight)
    assert quantizer.codebook.grad is None


def test_forward_encode_and_lookup_agree(name):
    quantizer = make(name)
    latents = torch.randn(2, 6, 3, 4)
    out = quantizer(latents)
    assert torch.equal(quantizer.encode(latents), out.codes)
    assert torch.equal(quantizer.lookup(out.codes), out.quantized)
    assert torch.equal(out.counts, torch.bincount(out.codes.flatten(), minlength=12))
    assert out.usage == (out.counts > 0).double().mean() and 1 <= out.perplexity <= 12


def test_losses_equal_the_equations(name):
    quantizer = make(name)
    latents = torch.randn(2, 6, 3, 4)
    out = quantizer(latents)
    error = ((out.quantized - latents) ** 2).mean()
    torch.testing.assert_close(out.losses["codebook"], error)
    torch.testing.assert_close(out.losses["commitment"], error)
    assert set(out.losses) == set(quantizer.loss_weights())
    if name == "arc":
        assert torch.equal(out.losses["arc"], arc_loss(as_tokens(latents), quantizer.codebook))


def test_each_loss_trains_its_own_side(name):
    for term, trains_codebook in (("codebook", True), ("commitment", False), ("arc", False)):
        quantizer = make(name)
        latents = torch.randn(2, 6, 3, 4, requires_grad=True)
        losses = quantizer(latents).losses
        if term in losses:
            losses[term].backward()
            assert (quantizer.codebook.grad is not None) == trains_codebook
            assert (latents.grad is not None) == (not trains_codebook)


def test_the_arc_options_reach_the_arc_loss():
    quantizer = make("arc", scale=5.0, margin=0.4, top_k=2)
    latents = torch.randn(2, 6, 3, 4)
    expected = arc_loss(as_tokens(latents), quantizer.codebook, scale=5.0, margin=0.4, top_k=2)
    assert torch.equal(quantizer(latents).losses["arc"], expected)


def test_legacy_beta_swaps_the_weights(name):
    ours, legacy = make(name, beta=0.3).loss_weights(), make(name, beta=0.3, legacy_beta=True).loss_weights()
    assert (ours["codebook"], ours["commitment"]) == (1, 0.3)
    assert (legacy["codebook"], legacy["commitment"]) == (0.3, 1)
    assert make(name).loss_weights()["commitment"] == 0.25


def test_the_weight_of_the_arc_loss_decays_with_the_updates():
    quantizer = make("arc", arc_initial=2.0, arc_decay=0.1)
    assert quantizer.loss_weights()["arc"] == 2
    for _ in range(3):
        update(quantizer)
    assert quantizer.loss_weights()["arc"].item() == pytest.approx(2 * math.exp(-0.3), rel=1e-12)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_computes_in_float32_under_autocast(name, dtype):
    quantizer = make(name, codes=200)
    latents = torch.randn(4, 6, 8, 8).to(dtype)
    expected = quantizer(latents.float())
    with torch.autocast("cpu", torch.bfloat16):
        out, codes = quantizer(latents), quantizer.encode(latents)
    assert torch.equal(out.codes, expected.codes) and torch.equal(codes, expected.codes)
    assert out.quantized.dtype == dtype and torch.equal(out.quantized, expected.quantized.to(dtype))
    for term, loss in out.losses.items():
        assert loss.dtype == torch.float32 and torch.equal(loss, expected.losses[term])


def test_arc_starts_on_the_unit_sphere_and_vq_in_its_cube():
    torch.testing.assert_close(make("arc", 100, 8).codebook.norm(dim=1), torch.ones(100))
    table = make("vq", 100, 8).codebook
    assert 0.009 < table.abs().max() <= 0.01 and table.mean().abs() < 0.001


def test_after_update_counts_then_projects_to_the_ball_of_the_new_step():
    quantizer = make("arc", codes=50, ball_growth=0.5)
    with torch.no_grad():
        quantizer.codebook.mul_(torch.linspace(0.1, 30, 50)[:, None])
    for step in (1, 2, 3):
        before = quantizer.codebook.detach().clone()
        with torch.no_grad():
            before[-1] *= 100
            quantizer.codebook.copy_(before)
        update(quantizer)
        assert quantizer.step == step
        radius = math.exp(0.5 * step)
        assert quantizer.radius.item() == pytest.approx(radius, rel=1e-12)
        norms = quantizer.codebook.detach().norm(dim=1)
        torch.testing.assert_close(norms, before.norm(dim=1).clamp(max=radius))
        assert norms[-1].item() == pytest.approx(radius, rel=1e-6)
        # The direction is kept.
        assert cosine_similarity(quantizer.codebook, before).min() > 1 - 1e-6


def test_after_update_keeps_the_codebook_a_trainable_parameter():
    quantizer = make("arc")
    table = quantizer.codebook
    update(quantizer)
    assert quantizer.codebook is table and table.requires_grad and table.grad_fn is None


@pytest.mark.parametrize(("ball", "norm", "share"), [("exp", math.exp(0.1), 0.5), ("fixed", 1.0, 0.5), ("none", 7, 0)])
def test_balls_and_the_share_of_codes_on_them(ball, norm, share):
    quantizer = make("arc", codes=10, ball=ball, ball_growth=0.1)
    with torch.no_grad():
        quantizer.codebook[:5] *= 0.5
        quantizer.codebook[5:] *= 7
    update(quantizer)
    norms = quantizer.codebook.detach().norm(dim=1)
    torch.testing.assert_close(norms, torch.tensor([0.5] * 5 + [norm] * 5))
    assert quantizer.share_on_ball == share
    expected = {} if ball == "none" else {"ball_radius": quantizer.radius, "share_on_ball": quantizer.share_on_ball}
    assert quantizer.diagnostics() == expected
    assert math.isinf(quantizer.radius) == (ball == "none")


def test_the_share_on_the_ball_finds_every_projected_row():
    # Rounding leaves projected rows a little inside the radius.
    quantizer = make("arc", codes=2000, dim=64)
    with torch.no_grad():
        quantizer.codebook.mul_(3)
    update(quantizer)
    assert quantizer.share_on_ball == 1


@pytest.mark.parametrize("training", [True, False])
def test_looking_codes_up_changes_nothing(name, training):
    quantizer = make(name).train(training)
    with torch.no_grad():
        quantizer.codebook.mul_(50)
    before = {key: value.clone() for key, value in quantizer.state_dict().items()}
    assert set(before) == {"codebook", "step"}
    latents = torch.randn(2, 6, 3, 4)
    quantizer(latents)
    quantizer.encode(latents)
    after = quantizer.state_dict()
    assert all(torch.equal(after[key], before[key]) for key in before)


def test_the_step_is_saved(name):
    quantizer, restored = make(name), make(name)
    update(quantizer)
    update(quantizer)
    restored.load_state_dict(quantizer.state_dict())
    assert restored.step == 2 and restored.step.dtype == torch.int64


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("nothing", {}, "unknown quantizer 'nothing'; there are arc, arc_vae, bsq, cosine, "),
        ("vq", {"margin": 0.1}, "'vq' has no option 'margin'; it has beta, legacy_beta, init$"),
        (
            "arc",
            {"gamma": 0.1},
            "no option 'gamma'; it has beta, legacy_beta, scale, margin, top_k, .*revive_below, average_decay$",
        ),
        ("arc", {"codebook_size": 3}, "no option 'codebook_size'"),
        ("arc", {"top_k": 3.0}, "arc.top_k must be of type int, got 3.0"),
        ("arc", {"top_k": True}, "arc.top_k must be of type int, got True"),
        ("arc", {"margin": "0.1"}, "arc.margin must be of type float, got '0.1'"),
        ("vq", {"legacy_beta": 1}, "vq.legacy_beta must be of type bool, got 1"),
        ("arc", {"ball": "square"}, "arc.ball is one of exp, fixed, none, got 'square'"),
        ("vq", {"beta": -1}, "vq.beta must be finite and not negative, got -1"),
        ("arc", {"ball_growth": math.nan}, "arc.ball_growth must be finite and not negative, got nan"),
    ],
)
def test_make_quantizer_refuses_and_names_what_is_valid(name, options, message):
    with pytest.raises(ValueError, match=message):
        make(name, **options)


def test_make_quantizer_takes_an_int_for_a_float():
    assert make("arc", scale=5).loss_weights() and make("arc", scale=5).scale == 5


@pytest.mark.parametrize(("codes", "dim"), [(0, 4), (4, 0)])
def test_an_empty_table_is_refused(name, codes, dim):
    with pytest.raises(ValueError, match="at least one row and one column"):
        make(name, codes, dim)


@pytest.mark.parametrize("missing", ["quantize", "assign_latents", "embed", "loss_weights"])
def test_a_quantizer_that_lacks_part_of_the_contract_cannot_be_made(missing):
    contract = ("quantize", "assign_latents", "embed", "loss_weights")
    methods = {name: lambda self, *_: None for name in contract if name != missing}
    with pytest.raises(TypeError, match=missing):
        type("Unfinished", (Quantizer,), methods)(4, 2)


def test_the_latents_may_be_of_higher_precision_than_the_table(name):
    quantizer = make(name)
    latents = torch.randn(2, 6, 3, 4, dtype=torch.float64, requires_grad=True)
    out = quantizer(latents)
    (out.quantized.sum() + sum(out.losses.values())).backward()
    assert latents.grad.dtype == torch.float64 and quantizer.codebook.grad.dtype == torch.float32
    assert torch.equal(out.codes, quantizer(latents.float()).codes)


def test_only_a_training_batch_is_that_of_all_processes(monkeypatch):
    def all_processes(*arguments):
        raise RuntimeError("communication")

    monkeypatch.setattr(arc, "is_distributed", lambda: True)
    monkeypatch.setattr(arc, "global_arc_loss", all_processes)
    latents = torch.randn(2, 6, 3, 4)
    make("arc").eval()(latents)
    make("arc", gather="local")(latents)
    make("arc").encode(latents)
    with pytest.raises(RuntimeError, match="communication"):
        make("arc")(latents)


def test_a_batch_needs_as_many_tokens_as_a_code_has_positives():
    for gather, tokens, processes in (("global", 2, 4), ("local", 8, 1), ("local", 8, 4)):
        make("arc", top_k=8, gather=gather).check_batch(tokens, processes)
    for gather, tokens, processes in (("global", 1, 7), ("local", 7, 1), ("local", 7, 4)):
        with pytest.raises(ValueError, match="a batch of 7 tokens is fewer than top_k 8"):
            make("arc", top_k=8, gather=gather).check_batch(tokens, processes)
    make("vq").check_batch(1, 1)
