"""Modules in training: fp16's scaler, which leaves steps out, clipping, two modules beside each other."""

import pytest
import torch
from accelerate.state import AcceleratorState
from quantizer_cases import CASES, small_tokenizer
from torch import nn

from arcvq.runs.ema import Average
from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.training.adversary import AdversarialConfig, Adversary
from arcvq.training.tokenizer_step import TokenizerUpdate
from tokenizer import VQTokenizer

SCALE = 1024.0
clipping = pytest.mark.parametrize("clip", [{}, {"max_grad_norm": 0.01}, {"max_grad_value": 1e-3}], ids=str)


@pytest.fixture
def start(tmp_path):
    """Makes a run that writes nothing; with `scaled` its gradients go through the scaler of fp16.

    The scripts refuse fp16 on a CPU: the networks stay float32, and all that is done to gradients and steps is fp16's.
    """

    def make(scaled, **optim):
        AcceleratorState._reset_state(reset_partial_state=True)
        run = Run(RunConfig("run", str(tmp_path)), OptimConfig(max_steps=10, **optim), {"run": {}})
        if scaled:
            run.accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=SCALE)
        return run

    yield make
    AcceleratorState._reset_state(reset_partial_state=True)


def as_fp16(run):
    """After the modules are made, so that they do not compute in it."""
    if run.accelerator.scaler is not None:
        run.accelerator.native_amp, run.accelerator.state._mixed_precision = True, "fp16"


def make_tokenizer(run):
    torch.manual_seed(0)
    tokenizer = VQTokenizer(
        3, 16, codebook_size=12, codebook_dim=4, hidden_channels=8, network_options={"residual_channels": 4}
    )
    run.model, run.main = tokenizer, run.add_module(tokenizer, "model")
    run.average = Average(tokenizer, decay=0.9)
    as_fp16(run)
    return tokenizer


def squared(factor=1.0):
    def loss(images, reconstructions):
        value = factor * (images - reconstructions).square().mean()
        return value, {"reconstruction": value}

    loss.observe_batch = lambda *_: None
    return loss


def test_frozen_parameters_have_a_place_in_the_optimizer_so_that_states_fit_whatever_is_frozen(start):
    run = start(False)
    module = run.add_module(small_tokenizer("simvq", in_channels=3), "model").module
    places = sum(len(group["params"]) for group in run._trained[0].optimizer.param_groups)
    assert not all(weight.requires_grad for weight in module.parameters())
    assert places == len(list(module.parameters()))


def update(run, loss, adversary=None):
    """One step of the training loop of a tokenizer."""
    for trained in run._trained:
        trained.begin(run.optim.lr)
    run.average.begin_step()
    shape = (8, run.model.config.in_channels, 16, 16)
    images = [2 * torch.rand(shape, generator=torch.Generator().manual_seed(run.step)) - 1]
    seen = TokenizerUpdate(run.accelerator, run.main, loss, adversary)(images, 0)
    against = adversary.update(images, seen.reconstructions) if adversary else {}
    run.record_step(seen.updated, seen.terms)
    run.end_step()
    return seen, against


def state(run):
    return {name: value.clone() for name, value in run.model.state_dict().items()} | {
        f"ema {index}": value.clone() for index, value in enumerate(run.average.tensors)
    }


@clipping
@pytest.mark.parametrize("factor", ["inf", "nan"])
@pytest.mark.parametrize("scaled", [True, False])
def test_a_broken_gradient_leaves_the_step_out_and_all_as_it_is(start, scaled, factor, clip):
    run = start(scaled, **clip)
    make_tokenizer(run)
    update(run, squared())
    before, moments = state(run), optimizer_state(run)
    assert run.model.bottleneck.step == 1
    seen, _ = update(run, squared(float(factor)))
    assert not seen.updated
    assert all(torch.equal(state(run)[name], value) for name, value in before.items())
    assert all(map(torch.equal, optimizer_state(run), moments))
    if scaled:
        assert run.accelerator.scaler.get_scale() == SCALE / 2
    assert run.step == 2 and run._skipped.counts == {"skipped_steps": 1, "skipped_in_row": 1}
    assert all(parameter.grad is None for parameter in run.model.parameters())
    seen, _ = update(run, squared())
    assert seen.updated and run.model.bottleneck.step == 2
    assert run._skipped.counts == {"skipped_steps": 1, "skipped_in_row": 0}
    _, means = run._report._means.take()
    assert all(torch.isfinite(means))


def optimizer_state(run):
    return [value.clone() for state in run.main.optimizer.state.values() for value in state.values()]


@pytest.mark.parametrize("name", CASES)
def test_a_skipped_step_leaves_every_quantizer_as_it_is(start, name):
    """Whatever it learns beside the optimiser: tables that are means, counters, dead codes."""
    run = start(False)
    torch.manual_seed(0)
    run.model = small_tokenizer(name)
    run.main, run.average = run.add_module(run.model, "model"), Average(run.model, 0.9)
    update(run, squared())
    before = state(run)
    seen, _ = update(run, squared(float("nan")))
    assert not seen.updated
    for key, value in before.items():
        assert torch.equal(state(run)[key], value), key
    seen, _ = update(run, squared())
    assert seen.updated and run.model.bottleneck.step == 2
    assert all(value.isfinite().all() for value in state(run).values())


def test_a_table_that_the_first_update_makes_is_made_by_the_first_that_is_not_skipped(start):
    run = start(False)
    torch.manual_seed(0)
    run.model = small_tokenizer("arc_kmeans")
    run.main, run.average = run.add_module(run.model, "model"), Average(run.model, 0.9)
    table = run.model.codebook.detach().clone()
    assert not update(run, squared(float("nan")))[0].updated and torch.equal(run.model.codebook, table)
    assert update(run, squared())[0].updated
    assert ((run.model.codebook - table).norm(dim=1) > 0.1).all()  # farther than a step of the optimiser goes
    assert (run.model.codebook.norm(dim=1) < 0.9).all()  # where the tokens are, far inside the ball


def test_nan_in_the_latents_reaches_neither_weights_nor_tables(start):
    for name in CASES:
        run = start(False)
        torch.manual_seed(0)
        run.model = small_tokenizer(name)
        run.main, run.average = run.add_module(run.model, "model"), Average(run.model, 0.9)
        update(run, squared())
        before, broken = state(run), run.model.encoder.register_forward_hook(lambda *args: args[-1] * float("nan"))
        seen, _ = update(run, squared())
        broken.remove()
        assert not seen.updated
        for key, value in before.items():
            assert torch.equal(state(run)[key], value), (name, key)


def test_the_discriminators_broken_step_is_its_own(start):
    run = start(False)
    make_tokenizer(run)
    adversary = Adversary(run, AdversarialConfig(weight=0.5, channels=4, layers=1, lecam_weight=0.1), 3, 16)
    update(run, squared(), adversary)
    before = {name: value.clone() for name, value in adversary.discriminator.state_dict().items()}
    tokenizers = state(run)
    adversary._loss, kept = lambda real, fake: broken(*kept(real, fake)), adversary._loss

    def broken(loss, terms):
        return loss * float("nan"), terms

    seen, _ = update(run, squared(), adversary)
    assert seen.updated and run._skipped.counts["skipped_steps"] == 1
    assert all(torch.equal(value, before[name]) for name, value in adversary.discriminator.state_dict().items())
    assert not all(torch.equal(value, tokenizers[name]) for name, value in state(run).items())


@clipping
def test_finite_gradients_descend_as_without_a_scaler(start, clip):
    states = []
    for scaled in (True, False):
        run = start(scaled, **clip, lr=1e-3)
        make_tokenizer(run)
        before = state(run)
        for _ in range(3):
            assert update(run, squared())[0].updated
        states.append(state(run))
        assert run._skipped.counts["skipped_steps"] == 0
        assert 0.01 < run.main.gradient_norm < 100  # before it is clipped, and not scaled
    for name, value in states[1].items():  # the scale is a power of two
        torch.testing.assert_close(states[0][name], value, rtol=1e-6, atol=1e-7)
        assert not torch.equal(before[name], value)


def test_the_norm_is_clipped(start):
    """By SGD, which, unlike Adam, sees the gradient's length."""
    run = start(False, max_grad_norm=0.5)
    trained = run.add_module(nn.Linear(4, 1, bias=False), "model")
    before = trained.module.weight.detach().clone()
    trained._adam = torch.optim.SGD(trained.module.parameters(), lr=1.0, fused=True)
    trained.backward((trained.module.weight * torch.tensor([[3.0, 0.0, 4.0, 0.0]])).sum())
    assert trained.optimizer_step(torch.tensor(0.0)) and trained.gradient_norm == 5
    torch.testing.assert_close(before - trained.module.weight, torch.tensor([[0.3, 0.0, 0.4, 0.0]]))


def test_values_are_clipped(start):
    """By SGD; the norm that is logged is that before."""
    run = start(False, max_grad_value=0.5)
    trained = run.add_module(nn.Linear(4, 1, bias=False), "model")
    before = trained.module.weight.detach().clone()
    trained._adam = torch.optim.SGD(trained.module.parameters(), lr=1.0, fused=True)
    trained.backward((trained.module.weight * torch.tensor([[3.0, 0.25, -4.0, 0.0]])).sum())
    assert trained.optimizer_step(torch.tensor(0.0))
    assert trained.gradient_norm.item() == pytest.approx((9 + 1 / 16 + 16) ** 0.5)
    torch.testing.assert_close(before - trained.module.weight, torch.tensor([[0.5, 0.25, -0.5, 0.0]]))


@clipping
def test_two_modules_share_a_scaler(start, clip):
    """What overflows in one is left out there alone."""
    run = start(True, **clip)
    config = AdversarialConfig(weight=0.5, channels=4, layers=2)
    adversary = Adversary(run, config, 3, 16)
    make_tokenizer(run)
    update(run, squared(), adversary)
    discriminator = adversary._trained.module
    for broken in ("tokenizer", "discriminator"):
        before = state(run), [parameter.detach().clone() for parameter in discriminator.parameters()]
        scale = run.accelerator.scaler.get_scale()
        handle = None
        if broken == "discriminator":
            # Its first bias gets no finite gradient, and gives none back to the images.
            handle = discriminator.layers[0].bias.register_hook(lambda gradient: gradient * torch.inf)
        seen, _ = update(run, squared(float("inf") if broken == "tokenizer" else 1.0), adversary)
        if handle:
            handle.remove()
        assert bool(seen.updated) is (broken == "discriminator")
        after = state(run), list(discriminator.parameters())
        tables = [tensors["bottleneck.codebook"] for tensors in (before[0], after[0])]
        assert torch.equal(*tables) is (broken == "tokenizer")
        moved = [not torch.equal(a, b) for a, b in zip(after[1], before[1], strict=True)]
        assert any(moved) is (broken == "tokenizer")
        assert run.accelerator.scaler.get_scale() == scale / 2
    _, means = run._report._means.take()
    assert all(torch.isfinite(means))  # else the log would end the run
