"""The discriminator's side: when it is trained and heard, on what, and what cannot work."""

from types import SimpleNamespace

import pytest
import torch
from accelerate.state import AcceleratorState

from arcvq.runs.options import OptimConfig, RunConfig
from arcvq.runs.run import Run
from arcvq.training.adversary import AdversarialConfig, Adversary
from tokenizer.losses.adversarial import discriminator_loss, generator_loss, lecam_penalty, r1_penalty

SMALL = {"channels": 4, "layers": 2}
TINY = {"max_channels": 4}


def make(folder, max_steps=10, optim=None, compiled=False, **config):
    """An adversary of 16 px images in a run that writes nothing, the same every time."""
    AcceleratorState._reset_state(reset_partial_state=True)
    run = Run(RunConfig("run", str(folder), compile=compiled), OptimConfig(max_steps, **(optim or {})), {"run": {}})
    small = TINY if config.get("discriminator") == "stylegan2" else SMALL
    return run, Adversary(run, AdversarialConfig(weight=0.8, **{**small, **config}), 3, 16)


def sides(n=8):
    """Real images and others, float32 (n, 3, 16, 16)."""
    generator = torch.Generator().manual_seed(1)
    return 2 * torch.rand(n, 3, 16, 16, generator=generator) - 1, torch.rand(n, 3, 16, 16, generator=generator) - 0.5


def weights(adversary):
    return {name: value.clone() for name, value in adversary._trained.module.state_dict().items()}


@pytest.mark.parametrize(
    ("disc_start", "max_steps", "expected"), [(0.4, 5, 2), (0.0, 9, 0), (0.25, 1000, 250), (7, 9, 7), (1, 9, 1)]
)
def test_the_start_is_a_step_or_a_share(disc_start, max_steps, expected):
    config = AdversarialConfig(weight=1.0, disc_start=disc_start)
    config.check(max_steps)
    assert config.start(max_steps) == expected


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"disc_start": 100}, r"disc_start 100 is not before the end, optim.max_steps 100: .* lower it, or set"),
        ({"disc_start": 0.999}, "disc_start 0.999 is not before the end"),
        ({"disc_start": 2.5}, r"a share below 1 or a whole step, got 2\.5"),
        ({"disc_start": float("inf")}, "a share below 1 or a whole step, got inf"),
        ({"disc_start": float("nan")}, "disc_start must not be negative, got nan"),
        ({"weight": float("inf")}, "adversarial.weight must be finite, got inf"),
        ({"lecam_weight": float("inf")}, "adversarial.lecam_weight must be finite, got inf"),
        ({"discriminator_factor": 0.0}, "adversarial.discriminator_factor must be above 0, got 0.0"),
        ({"discriminator_factor": float("inf")}, "adversarial.discriminator_factor must be finite, got inf"),
        ({"r1_every": 0}, "adversarial.r1_every must be at least 1, got 0"),
        *(
            ({name: -1}, f"adversarial.{name} must not be negative, got -1")
            for name in ("weight", "max_weight", "disc_start", "ramp_steps", "pretrain_steps", "r1_weight")
        ),
    ],
    ids=str,
)
def test_numbers_that_cannot_work(config, text):
    with pytest.raises(ValueError, match=text):
        AdversarialConfig(**{"weight": 1.0, **config}).check(100)
    AdversarialConfig(disc_start=100).check(100)  # of no weight


@pytest.mark.parametrize(
    ("disc_start", "began", "first_trained", "first_heard"),
    [(0, 0, 0, 0), (0, 4, 4, 6), (5, 4, 4, 6), (8, 4, 6, 8), (0.9, 2, 7, 9), (3, 0, 1, 3)],
)
def test_one_that_joins_a_run_is_trained_alone_first_and_ramps_up_from_there(
    tmp_path, disc_start, began, first_trained, first_heard
):
    run, adversary = make(tmp_path, disc_start=disc_start, pretrain_steps=2, ramp_steps=4)
    run.counts = {"discriminator_began": began} if began else {}
    trained, heard = [], {}
    for run.step in range(began, 10):
        adversary._trained.begin(1e-3)
        trained += [run.step] if adversary.update([sides()[0]], [sides()[1]]) else []
        heard |= {run.step: adversary.weight} if adversary.is_active else {}
    assert trained == list(range(first_trained, 10)) and list(heard) == list(range(first_heard, 10))
    assert heard[first_heard] == pytest.approx(0.8 / 4)


@pytest.mark.parametrize(("pretrain_steps", "said"), [(5, 0), (6, 1)])
def test_one_that_would_never_be_heard_is_told(tmp_path, capsys, pretrain_steps, said):
    run, adversary = make(tmp_path, pretrain_steps=pretrain_steps)
    run.step, run.counts = 4, {"discriminator_began": 4}
    adversary.resume()
    assert capsys.readouterr().err.count("adversarial.pretrain_steps") == said


@pytest.mark.parametrize(("before", "now"), [(0.0, 0.1), (0.1, 0.0), (0.1, 0.2), (0.0, 0.0)])
def test_the_means_of_lecam_begin_at_zero_where_it_is_switched_on(tmp_path, capsys, before, now):
    run, adversary = make(tmp_path, lecam_weight=before)
    run.step = 3
    adversary.resume()
    adversary._trained.begin(1e-3)
    adversary.update([sides()[0]], [sides()[1]])
    run, goes_on = make(tmp_path, lecam_weight=now)
    goes_on.discriminator.load_state_dict(adversary.discriminator.state_dict())
    run.step, run.was = 4, {"adversarial": {"lecam_weight": before}}
    capsys.readouterr()
    goes_on.resume()
    said = [line for line in capsys.readouterr().out.splitlines() if "LeCAM" in line]
    assert len(said) == (bool(before) != bool(now)) and all(("anew" in line) == (now > 0) for line in said)
    assert goes_on.discriminator.anchors.any() == (before > 0 and now > 0)


def test_it_enters_with_a_ramp_after_a_training_of_its_own(tmp_path):
    run, adversary = make(tmp_path, disc_start=0.5, ramp_steps=2, pretrain_steps=2)
    before, moved, heard = weights(adversary), [], {}
    for run.step in range(10):
        adversary._trained.begin(1e-3)
        if adversary.is_active:
            heard[run.step] = adversary.weight
        terms = adversary.update([sides()[0]], [sides()[1]])
        after = weights(adversary)
        changed = any(not torch.equal(after[name], before[name]) for name in after)
        assert changed == bool(terms)
        moved, before = moved + [run.step] * changed, after
    assert moved == [3, 4, 5, 6, 7, 8, 9]
    assert heard == pytest.approx({5: 0.4, 6: 0.8, 7: 0.8, 8: 0.8, 9: 0.8})


@pytest.mark.parametrize("kind", ["hinge", "non_saturating"])
def test_what_it_asks_of_reconstructions_leaves_its_own_weights_alone(tmp_path, kind):
    _, adversary = make(tmp_path, loss=kind)
    fake = sides()[1].requires_grad_()
    loss = adversary.generator_loss(fake, len(fake))
    loss.backward()
    module = adversary._trained.module
    assert loss.item() == pytest.approx(generator_loss(module(fake.detach())[0], kind).item())
    assert fake.grad.abs().max() > 0
    assert all(parameter.grad is None and parameter.requires_grad for parameter in module.parameters())


@pytest.mark.parametrize("kind", ["hinge", "hinge_softplus"])
def test_averaged_logits_make_one_judgement_of_an_image_and_its_two_reconstructions(tmp_path, kind):
    _, adversary = make(tmp_path, loss=kind, average_logits=True)
    real, first = sides()
    second = first.flip(3) + 0.3
    judge = adversary.discriminator
    of_real = judge(real)[0].mean(dim=(1, 2, 3))
    of_fake = torch.stack([judge(fake)[0].mean(dim=(1, 2, 3)) for fake in (first, second)]).mean(dim=0)

    both = torch.cat([first, second])
    assert adversary.generator_loss(both, len(real)).item() == pytest.approx(generator_loss(of_fake, kind).item())
    adversary._trained.begin(1e-3)
    terms = adversary.update([real], [both])
    assert terms["discriminator"].item() == pytest.approx(discriminator_loss(of_real, of_fake, "hinge").item())


@pytest.mark.parametrize(
    ("kind", "discriminator", "all_parts"),
    [("hinge", "patch", (1, 2, 4)), ("non_saturating", "patch", (1, 2, 4)), ("non_saturating", "stylegan2", (1, 2))],
)
def test_its_gradient_in_any_parts_is_that_of_its_losses(tmp_path, kind, discriminator, all_parts):
    penalties = {"r1_weight": 0.5, "r1_every": 4, "lecam_weight": 0.3, "discriminator_factor": 0.75}
    real, fake = sides()
    run, adversary = make(tmp_path, loss=kind, discriminator=discriminator, **penalties)
    module = adversary._trained.module
    module.anchors.copy_(torch.tensor([0.2, -0.1]))
    anchors = module.anchors.clone()
    real_logits, fake_logits = module(real, fake)
    lecam = lecam_penalty(real_logits, fake_logits, *anchors)
    r1 = r1_penalty(lambda images: module(images)[0], real)
    classification = discriminator_loss(real_logits, fake_logits, kind)
    for step, loss in (
        (4, 0.75 * classification + 0.3 * lecam + 0.5 * 4 * r1),
        (5, 0.75 * classification + 0.3 * lecam),
    ):
        parameters = list(module.parameters())
        expected = torch.autograd.grad(loss, parameters, retain_graph=True)
        for parts in all_parts:
            run.step = step
            module.anchors.copy_(anchors)
            adversary._trained.optimizer_step = lambda loss: torch.tensor(True)
            module.zero_grad()
            terms = adversary.update(real.chunk(parts), fake.requires_grad_().chunk(parts))
            assert fake.grad is None
            for parameter, gradient in zip(parameters, expected, strict=True):
                assert (parameter.grad - gradient).norm() <= 1e-5 * gradient.norm() + 1e-8
            assert ("r1" in terms) == (step == 4)
            assert terms["discriminator"].item() == pytest.approx(classification.item(), rel=1e-5)
            both = torch.stack([terms["logits_real"], terms["logits_fake"]])
            torch.testing.assert_close(
                both, torch.stack([real_logits.mean(), fake_logits.mean()]), rtol=1e-5, atol=1e-6
            )
            torch.testing.assert_close(module.anchors, 0.999 * anchors + 0.001 * both)


@pytest.mark.parametrize(
    ("config", "rate"), [({}, 3e-3), ({"discriminator": "stylegan2", "max_channels": 16}, 3e-2)], ids=["patch", "whole"]
)
def test_it_learns_to_tell_the_two_kinds_apart(tmp_path, config, rate):
    run, adversary = make(tmp_path, optim={"lr": rate}, **config)
    for run.step in range(10):
        adversary._trained.begin(rate)
        terms = adversary.update([sides()[0]], [sides()[1]])
    assert terms["discriminator"] < 0.5 and terms["logits_real"] > 0 > terms["logits_fake"]


def test_r1_is_not_of_the_compiled_module(tmp_path, monkeypatch):
    """What torch.compile makes has no second derivative."""
    _, adversary = make(tmp_path, r1_weight=1.0, r1_every=1)
    module = adversary._trained.module
    monkeypatch.setattr(module, "_compiled_call_impl", torch.autograd.function.once_differentiable(lambda *_: 1 / 0))
    adversary._trained.wrapped = module.forward
    adversary._trained.begin(1e-3)
    assert adversary.update([sides()[0]], [sides()[1]])["r1"] > 0


def test_what_processes_and_sizes_cannot_share(tmp_path):
    run, _ = make(tmp_path)
    with pytest.raises(ValueError, match=r"images of 8x8 are too small for the discriminator, which takes 12 pixels"):
        Adversary(run, AdversarialConfig(weight=1.0, **SMALL), 3, 8)
    pair = SimpleNamespace(accelerator=SimpleNamespace(num_processes=2), device=torch.device("cpu"))
    with pytest.raises(ValueError, match=r"adversarial.norm batch on several processes needs GPUs; take .*norm group"):
        Adversary(pair, AdversarialConfig(weight=1.0, norm="batch", **SMALL), 3, 16)
    assert make(tmp_path, norm="batch")[1].update([sides()[0]], [sides()[1]])


@pytest.mark.parametrize(
    ("config", "text"),
    [
        ({"discriminator": "stylegan2", "layers": 2}, "adversarial.layers is an option of .* patch, not of stylegan2"),
        ({"discriminator": "stylegan2", "norm": "batch"}, "adversarial.norm .* leave it at group, or take the other"),
        ({"max_channels": 64}, "adversarial.max_channels is an option of .* stylegan2, not of patch: leave it at 512"),
    ],
    ids=str,
)
def test_no_options_of_the_discriminator_that_is_not_chosen(config, text):
    with pytest.raises(ValueError, match=text):
        AdversarialConfig(weight=1.0, **config).check(100)


def test_groups_that_parts_of_a_batch_cannot_form_are_refused_before_the_first_step(tmp_path):
    with pytest.raises(ValueError, match="4 images at a time, and 6 do not divide"):
        make(tmp_path, discriminator="stylegan2", optim={"batch_size": 12, "accumulation": 2})
    for batch_size in (4, 6, 16):  # parts of 2, 3 and 8
        make(tmp_path, discriminator="stylegan2", optim={"batch_size": batch_size, "accumulation": 2})
    run, adversary = make(tmp_path, discriminator="stylegan2", optim={"batch_size": 6, "accumulation": 2})
    with pytest.raises(ValueError, match="4 images at a time, and 6 do not divide"):  # 3 images, decoded twice
        Adversary(run, adversary.config, 3, 16, decodes=2)
