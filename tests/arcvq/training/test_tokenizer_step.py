"""One generator update: of the batch in one part or in several, against the plain scalar loss by autograd."""

import pytest
import torch
from accelerate.state import AcceleratorState
from quantizer_cases import CASES, small_tokenizer
from torch import nn

from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.training.adversary import AdversarialConfig, Adversary
from arcvq.training.reconstruction_loss import LossConfig, ReconstructionLoss
from arcvq.training.tokenizer_step import TokenizerUpdate
from tokenizer import VQTokenizer
from tokenizer.losses.lpips import WeightFiles

NETWORKS = {
    "conv": {"network": "conv", "hidden_channels": 8, "network_options": {"residual_channels": 4}},
    "vqgan": {
        "network": "vqgan",
        "hidden_channels": 32,
        "num_residual_layers": 1,
        "network_options": {"channel_multipliers": (1, 2)},
    },
}
networks = pytest.mark.parametrize("network", NETWORKS)


class Listened:
    """An adversary of one convolution, in any precision; its own training is not looked at."""

    def __init__(self, heard=True, **config):
        self.is_active, self.config, self.called = heard, AdversarialConfig(**config), 0
        self.weight = self.config.weight
        torch.manual_seed(1)
        self.convolution = nn.Conv2d(3, 1, 5, stride=3).double().requires_grad_(False)

    def generator_loss(self, reconstructions, images):
        self.called += 1
        return -self.convolution(reconstructions).tanh().mean()


def squared(images, reconstructions):
    """A reconstruction loss in any precision, without a kink."""
    loss = 0.7 * (images - reconstructions).square().mean()
    return loss, {"reconstruction": loss}


squared.observe_batch = lambda *_: None  # the whole batch first, which this does not ask for


def training(folder, network="conv", checkpointing=False, quantizer=None, **optim):
    """A run that writes nothing, and its tokenizer in float64, the same every time."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run_config = RunConfig("run", str(folder), gradient_checkpointing=checkpointing)
    run = Run(run_config, OptimConfig(max_steps=10, **optim), {"run": {}})
    if quantizer is not None:
        tokenizer = small_tokenizer(quantizer, in_channels=3, codebook_dim=4).double()
    else:
        tokenizer = VQTokenizer(3, 16, codebook_size=12, codebook_dim=4, **NETWORKS[network]).double()
    return run, run.add_module(tokenizer, "model")


def batch(n=8, size=16):
    return 2 * torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(1)).double() - 1


def gradients(folder, network, parts, adversary=None, loss=squared, **options):
    """The gradients of an update in so many parts that is not made, and what it says."""
    run, trained = training(folder, network, **options)
    trained.optimizer_step = lambda loss: torch.tensor(False)
    seen = TokenizerUpdate(run.accelerator, trained, loss, adversary)(batch().chunk(parts), 0)
    return {name: parameter.grad for name, parameter in trained.module.named_parameters()}, seen


def assert_close(found, expected, rtol=1e-9):
    assert found.keys() == expected.keys()
    for name, gradient in expected.items():
        # Of a bias before a norm, and an attention's key bias, the gradient is rounding alone: one length for all.
        largest = max(other.norm() for other in expected.values())
        assert (found[name] - gradient).norm() <= rtol * gradient.norm() + 1e-3 * rtol * largest, name


@networks
@pytest.mark.parametrize("adaptive", [True, False])
def test_the_gradient_is_that_of_the_scalar_loss(tmp_path, network, adaptive):
    adversary = Listened(weight=0.75, adaptive=adaptive, max_weight=1e9)
    found, seen = gradients(tmp_path, network, 1, adversary)

    _, trained = training(tmp_path, network)
    images, tokenizer = batch(), trained.module.train()
    output = tokenizer(images)
    reconstruction = squared(images, output.reconstruction)[0]
    generator = adversary.generator_loss(output.reconstruction, 8)
    last = tokenizer.decoder.last_layer.weight
    lengths = [torch.autograd.grad(loss, last, retain_graph=True)[0].norm() for loss in (reconstruction, generator)]
    weight = 0.75 * (lengths[0] / (lengths[1] + 1e-4)).item() if adaptive else 0.75
    assert weight > 0.1 and (weight != 0.75) is adaptive
    losses = output.losses
    loss = reconstruction + losses["codebook"] + 0.25 * losses["commitment"] + losses["arc"] + weight * generator
    loss.backward()
    assert_close(found, {name: parameter.grad for name, parameter in tokenizer.named_parameters()})
    assert seen.terms.by_name()["adversarial_weight"].item() == pytest.approx(weight, rel=1e-6)
    assert seen.terms.by_name()["loss"].item() == pytest.approx(loss.item(), rel=1e-6)
    assert seen.terms.by_name()["generator"].item() == pytest.approx(generator.item(), rel=1e-6)


@pytest.mark.parametrize("quantizer", CASES)
def test_a_batch_in_parts_is_the_whole_for_every_quantizer(tmp_path, quantizer):
    adversary = Listened(weight=0.75)
    expected, whole = gradients(tmp_path, "conv", 1, adversary, quantizer=quantizer)
    found, parts = gradients(tmp_path, "conv", 4, adversary, quantizer=quantizer)
    trained = {name for name, gradient in expected.items() if gradient is not None}
    assert trained == {name for name, gradient in found.items() if gradient is not None} and len(trained) > 20
    assert_close({name: found[name] for name in trained}, {name: expected[name] for name in trained})
    for name, term in whole.terms.by_name().items():
        assert parts.terms.by_name()[name].item() == pytest.approx(term.item(), rel=1e-6), name
    twice = 2 if quantizer in ("arc_vae", "arc_vae_all", "product_vaevq", "vaevq") else 1
    assert [len(part) for part in parts.reconstructions] == 4 * [2 * twice]


@networks
@pytest.mark.parametrize("heard", [True, False])
def test_a_batch_in_parts_gives_the_gradient_of_the_whole(tmp_path, network, heard):
    adversary = Listened(heard, weight=0.75)
    expected, whole = gradients(tmp_path, network, 1, adversary)
    for parts in (2, 4):
        found, seen = gradients(tmp_path, network, parts, adversary)
        assert_close(found, expected)
        assert [len(part) for part in seen.reconstructions] == parts * [8 // parts]
        torch.testing.assert_close(torch.cat(seen.reconstructions), whole.reconstructions[0])
        assert (
            torch.equal(seen.counts, whole.counts) and seen.counts.sum() == 8 * (16 // (4, 2)[network == "vqgan"]) ** 2
        )
        assert {name: term.item() for name, term in seen.terms.by_name().items()} == pytest.approx(
            {name: term.item() for name, term in whole.terms.by_name().items()}, rel=1e-6
        )
    assert (
        ("generator" in whole.terms.names)
        == ("adversarial_weight" in whole.terms.names)
        == (adversary.called > 0)
        == heard
    )
    # What two halves by themselves would give is another gradient: their arc losses are not that of the whole.
    halves = []
    for half in batch().chunk(2):
        run, trained = training(tmp_path, network)
        trained.optimizer_step = lambda loss: torch.tensor(False)
        TokenizerUpdate(run.accelerator, trained, squared, Listened(False))([half], 0)
        halves.append(trained.module.encoder.state_dict(keep_vars=True))
    name = next(name for name, value in halves[0].items() if value.requires_grad)
    mean = (halves[0][name].grad + halves[1][name].grad) / 2
    assert (mean - expected[f"encoder.{name}"]).norm() > 0.01 * mean.norm()


def test_checkpointed_gradients_are_the_same(tmp_path):
    expected, _ = gradients(tmp_path, "vqgan", 1, Listened(weight=0.75))
    for parts in (1, 2):
        found, _ = gradients(tmp_path, "vqgan", parts, Listened(weight=0.75), checkpointing=True)
        assert_close(found, expected)


def test_the_ratio_is_clamped(tmp_path):
    free = gradients(tmp_path, "conv", 1, Listened(weight=0.75, max_weight=1e9))[1].terms
    free = free.by_name()["adversarial_weight"].item()
    for parts in (1, 2):
        capped = gradients(tmp_path, "conv", parts, Listened(weight=0.75, max_weight=free / 4))[1]
        assert capped.terms.by_name()["adversarial_weight"].item() == pytest.approx(0.75 * free / 4, rel=1e-6)


@pytest.mark.parametrize("broken", [torch.nan, torch.inf])
@pytest.mark.parametrize("parts", [1, 2])
def test_an_adversarial_gradient_that_is_not_finite_is_left_out(tmp_path, broken, parts):
    """Where it alone is not, the value may be finite, and the run goes on."""

    class Broken(Listened):
        def generator_loss(self, reconstructions, images):
            return _FiniteValue.apply(reconstructions, broken)

    class _FiniteValue(torch.autograd.Function):
        @staticmethod
        def forward(ctx, images, slope):
            ctx.slope, ctx.shape = slope, images.shape
            return images.new_tensor(2.0)

        @staticmethod
        def backward(ctx, gradient):
            return gradient.new_full(ctx.shape, ctx.slope), None

    found, seen = gradients(tmp_path, "conv", parts, Broken(weight=0.75))
    expected, unheard = gradients(tmp_path, "conv", 1, Listened(False, weight=0.75))
    assert_close(found, expected)
    assert seen.terms.by_name()["adversarial_weight"] == 0
    assert seen.terms.by_name()["loss"].item() == pytest.approx(unheard.terms.by_name()["loss"].item())


@pytest.mark.parametrize("parts", [1, 2])
def test_an_update_is_made_and_counted(tmp_path, parts):
    run, trained = training(tmp_path, lr=0.01)
    update = TokenizerUpdate(run.accelerator, trained, squared)
    losses = []
    for step in range(10):
        trained.begin(0.01)
        seen = update(batch().chunk(parts), 0)
        assert seen.updated and trained.module.bottleneck.step == step + 1
        losses.append(seen.terms.by_name()["reconstruction"].item())
        assert not any(part.requires_grad for part in seen.reconstructions)
    assert losses[-1] < 0.99 * losses[0]
    norms = trained.module.codebook.norm(dim=1)
    assert norms.max() <= trained.module.bottleneck.radius * (1 + 1e-6)


def test_the_scripts_own_loss_and_adversary_in_float32(tmp_path):
    results = []
    for parts in (1, 2):
        run, trained = training(tmp_path, "vqgan")
        trained.module.float()
        trained.optimizer_step = lambda loss: torch.tensor(False)
        config = AdversarialConfig(weight=0.75, channels=4, layers=2, loss="non_saturating")
        torch.manual_seed(0)
        adversary = Adversary(run, config, 3, 16)
        loss = ReconstructionLoss(LossConfig(pixel="l1"), WeightFiles(), 16, run.device)
        seen = TokenizerUpdate(run.accelerator, trained, loss, adversary)(batch().float().chunk(parts), 0)
        found = {name: parameter.grad for name, parameter in trained.module.named_parameters()}
        results.append((found, {name: term.item() for name, term in seen.terms.by_name().items()}))
        assert 0 < results[-1][1]["adversarial_weight"] <= 8
        discriminator = list(adversary._trained.module.parameters())
        assert all(parameter.grad is None and parameter.requires_grad for parameter in discriminator)
    assert_close(results[1][0], results[0][0], rtol=1e-3)
    assert results[1][1] == pytest.approx(results[0][1], rel=1e-4)


@pytest.mark.slow
def test_one_precision_of_the_whole_or_none(tmp_path, has_bfloat16):
    """The network in bfloat16, the losses and the adaptive weight in float32."""
    results = []
    for precision in ("no", "bf16"):
        AcceleratorState._reset_state(reset_partial_state=True)
        torch.manual_seed(0)
        config = RunConfig("run", str(tmp_path), mixed_precision=precision)
        run = Run(config, OptimConfig(max_steps=11, lr=1e-3), {"run": {}})
        trained = run.add_module(VQTokenizer(3, 16, codebook_size=12, codebook_dim=4, **NETWORKS["vqgan"]), "model")
        adversary = Adversary(run, AdversarialConfig(weight=0.75, channels=4, layers=2, disc_start=5), 3, 16)
        loss = ReconstructionLoss(LossConfig(pixel="l1"), WeightFiles(), 16, run.device)
        update = TokenizerUpdate(run.accelerator, trained, loss, adversary)
        for _ in range(10):
            for part in run._trained:
                part.begin(1e-3)
            seen = update(batch().float().chunk(2), 0)
            adversary.update(batch().float().chunk(2), seen.reconstructions)
            run.record_step(seen.updated, seen.terms)
            run.end_step()
            assert seen.terms.values.isfinite().all()
        assert all(parameter.dtype == torch.float32 for parameter in trained.module.parameters())
        results.append(seen.terms.by_name()["loss"].item())
    AcceleratorState._reset_state(reset_partial_state=True)
    assert results[1] == pytest.approx(results[0], rel=0.02 if has_bfloat16 else 0.05) and results[1] != results[0]
