"""Adversarial trainings of a narrow VQGAN tokenizer on the digits, in this process where one is enough."""

import json
import os
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from lpips_stand_in import StandIn
from places import HELPERS
from safetensors.torch import load_file

from arcvq.faults import forked_process
from arcvq.training import tokenizer as train_tokenizer
from arcvq.training.adversary import Adversary
from arcvq.training.tokenizer_step import TokenizerUpdate
from tokenizer import VQTokenizer

WORKER = HELPERS / "training_worker.py"
SMALL = [
    *("--data.image_size", "16", "--run.log_every", "1", "--run.sample_every", "5", "--loss.pixel", "l1"),
    *("--optim.max_steps", "5", "--optim.batch_size", "8", "--optim.warmup_steps", "0"),
    *("--model.codebook_size", "16", "--model.codebook_dim", "4"),
    *("--adversarial.weight", "0.8", "--adversarial.channels", "8", "--adversarial.layers", "2"),
]
# Adam follows a gradient that is rounding alone at the full rate, unless its epsilon is above that.
GAN = [
    *SMALL,
    *("--model.network", "vqgan", "--model.hidden_channels", "32", "--model.num_residual_layers", "1"),
    *("--model.network_options.channel_multipliers", "[1,2]", "--adversarial.disc_start", "0.4"),
    *("--optim.lr", "1e-4", "--optim.eps", "1e-4", "--optim.schedule", "constant"),
]
TIMES = ("loader_share", "images_per_second")
CONV = [*SMALL, "--model.hidden_channels", "8"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("home")


@pytest.fixture
def train(home, monkeypatch):
    """Trains in this process, on few held-out images, and returns the run's folder."""
    monkeypatch.chdir(home)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setattr(train_tokenizer, "PREVIEW_IMAGES", 8)

    def run(name, *options):
        AcceleratorState._reset_state(reset_partial_state=True)
        train_tokenizer.main([*map(str, options), "--run.name", name])
        return home / "runs" / name

    yield run
    AcceleratorState._reset_state(reset_partial_state=True)


def weights(run, step=5):
    """Of the discriminator and the tokenizer."""
    files = sorted((run / f"checkpoints/step-{step}").glob("model*.safetensors"))
    assert len(files) == 2
    return {f"{file.stem} {name}": value for file in files for name, value in load_file(file).items()}


def log(run):
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    return [line for line in lines if "lr" in line]


@pytest.fixture
def one(train, home):
    """One process with the whole batch, and where it began."""
    if not (home / "runs/one").exists():
        train("one", *GAN, "--run.checkpoint_every", 1, "--run.keep_checkpoints", 9)
    return home / "runs/one"


def assert_trained_alike(found, expected, began):
    """To 1e-5, and to a thousandth of the way that the weights have gone."""
    assert found.keys() == expected.keys()
    off = {name: (found[name].double() - value.double()).abs() for name, value in expected.items()}
    gone = {name: (began[name].double() - value.double()).abs() for name, value in expected.items()}
    assert max((value.max().item(), name) for name, value in off.items())[0] < 1e-5
    for file in ("model ", "model_1 "):
        off_here, gone_here = (
            torch.cat([value.flatten() for name, value in values.items() if name.startswith(file)]).mean()
            for values in (off, gone)
        )
        assert gone_here > 1e-5 and off_here < 1e-3 * gone_here, file


def in_processes(folder, number, *runs, **variables):
    """Trains the runs one after the other in so many processes, with these environment variables."""
    arguments = [word for run in runs for word in ("--", *map(str, run))][1:]
    environment = os.environ | {"OMP_NUM_THREADS": "1"} | variables
    done = forked_process.run([sys.executable, str(WORKER), *arguments], folder, processes=number, env=environment)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.slow
def test_processes_and_parts_with_equal_global_batch_train_as_one(one, home):
    """Tokenizer and discriminator: arc loss, adaptive weight and all are those of the whole batch."""
    in_processes(
        home,
        2,
        [*GAN, "--run.name", "two"],
        [*GAN, "--run.name", "two-by-two", "--optim.accumulation", 2],
    )
    began, expected = weights(one, 1), weights(one)
    heard = ["adversarial_weight" in line for line in log(one)]
    assert heard == [False, False, True, True, True]
    for name in ("two", "two-by-two"):
        assert_trained_alike(weights(home / "runs" / name), expected, began)
        for line, other in zip(log(one), log(home / "runs" / name), strict=True):
            line, other = (
                {key: value for key, value in numbers.items() if key not in TIMES} for numbers in (line, other)
            )
            assert other == pytest.approx(line, rel=1e-4, abs=1e-6)


@pytest.mark.slow
def test_processes_and_parts_train_as_one_to_the_precision_of_float64(home):
    """By Adam's own epsilon, and with all that a discriminator can have: in float32 rounding would be followed."""
    options = [*GAN, "--optim.eps", 1e-8, "--optim.lr", 1e-3, "--optim.max_grad_norm", 0.1, "--ema_decay", 0.9]
    options += ["--adversarial.r1_weight", 1, "--adversarial.r1_every", 2, "--adversarial.lecam_weight", 0.1]
    in_processes(home, 1, [*options, "--run.name", "one-64"], FLOAT64="1")
    in_processes(
        home,
        2,
        [*options, "--run.name", "two-64"],
        [*options, "--run.name", "two-by-two-64", "--optim.accumulation", 2],
        FLOAT64="1",
    )
    expected = weights(home / "runs/one-64")
    assert {value.dtype for value in expected.values() if value.is_floating_point()} == {torch.float64}
    for name in ("two-64", "two-by-two-64"):
        for key, value in weights(home / "runs" / name).items():
            torch.testing.assert_close(
                value, expected[key], rtol=0, atol=1e-9, msg=lambda text, key=key: f"{key}: {text}"
            )


def test_an_adversarial_training_that_was_cut_off_ends_with_the_same_weights(one, train, monkeypatch):
    update = Adversary.update

    def cut_off(self, *batch):
        if self._run.step == 3:
            raise KeyboardInterrupt
        return update(self, *batch)

    monkeypatch.setattr(Adversary, "update", cut_off)
    with pytest.raises(KeyboardInterrupt):
        train("cut-off", *GAN, "--run.checkpoint_every", 2)
    monkeypatch.setattr(Adversary, "update", update)
    found = weights(train("cut-off", *GAN, "--run.checkpoint_every", 2))
    for name, expected in weights(one).items():
        assert torch.equal(found[name], expected), name
    assert [line["step"] for line in log(one.parent / "cut-off")] == [1, 2, 3, 4, 5]
    assert [line["loss"] for line in log(one.parent / "cut-off")] == [line["loss"] for line in log(one)]


@pytest.mark.slow
@pytest.mark.parametrize("fresh", [False, True])
def test_the_discriminator_learns_from_reconstructions_of_the_update_or_of_the_updated_tokenizer(
    train, monkeypatch, fresh
):
    made, differences = [], []
    update_tokenizer, update_discriminator = TokenizerUpdate.__call__, Adversary.update

    def updated(self, parts, seed):
        made.append((self, update_tokenizer(self, parts, seed)))
        return made[-1][1]

    def compared(self, images, reconstructions):
        update, output = made[-1]
        with torch.no_grad():
            updated = [update._trained.module(part).reconstruction for part in images]
        differences.append(
            [
                max((a - b).abs().max().item() for a, b in zip(reconstructions, of, strict=True))
                for of in (output.reconstructions, updated)
            ]
        )
        return update_discriminator(self, images, reconstructions)

    monkeypatch.setattr(TokenizerUpdate, "__call__", updated)
    monkeypatch.setattr(Adversary, "update", compared)
    options = ("--adversarial.fresh_reconstructions", fresh, "--optim.accumulation", 2)
    train(f"fresh-{fresh}", *CONV, *options, "--optim.lr", "0.01")
    of_the_update, of_the_updated = map(max, zip(*differences, strict=True))
    assert (of_the_update > 1e-3, of_the_updated > 1e-3) == (fresh, not fresh)


def test_compiled_trains_as_eager_does(one, train, monkeypatch):
    """Both networks' forward and backward graphs as torch.compile cuts them, run by PyTorch's own kernels."""
    compile_module, compiled = torch.nn.Module.compile, []

    def compile_without_code(module):
        compiled.append(type(module).__name__)
        compile_module(module, backend="aot_eager")

    monkeypatch.setattr(torch.nn.Module, "compile", compile_without_code)
    # At most 4 graphs of a function: one for each step would be 5. monkeypatch would delete the limits afterwards.
    with torch._dynamo.config.patch(fail_on_recompile_limit_hit=True, recompile_limit=4):
        found = weights(train("compiled", *GAN, "--run.compile", "true"))
    assert {"PatchDiscriminator", "Attention", "ResnetBlock2D"} <= set(compiled)
    assert_trained_alike(found, weights(one), weights(one, 1))


def test_averaged_weights_are_saved_with_the_step_of_the_last(train):
    options = ["--run.checkpoint_every", 1, "--run.keep_checkpoints", 9, "--ema_decay", 0.5]
    run = train("averaged", *CONV, *options, "--optim.lr", 0.01)
    saved = VQTokenizer.from_pretrained(run / "tokenizer")
    assert saved.bottleneck.step == 5
    average = None
    for step in range(1, 6):
        current = load_file(run / f"checkpoints/step-{step}/model_1.safetensors")
        decay = min(0.5, step / (step + 9)) if step > 1 else 0.0
        average = current if average is None else {
            name: decay * average[name] + (1 - decay) * current[name] for name in current
        }  # fmt: skip
    for name, parameter in saved.named_parameters():
        torch.testing.assert_close(parameter.detach(), average[name], rtol=1e-4, atol=1e-6)
        assert not torch.equal(parameter, current[name]), name


def test_lpips_of_drawn_weights_takes_part(train, tmp_path):
    squeeze = StandIn("squeeze", tmp_path).files
    files = ("--weights.squeezenet", squeeze.squeezenet, "--weights.lpips", squeeze.lpips)
    hashed = ("--weights.accept_sha256", squeeze.accept_sha256)
    lpips = ("--loss.perceptual_weight", 0.5, "--loss.perceptual_net", "squeeze", "--data.image_size", 20)
    run = train("lpips", *CONV, "--adversarial.disc_start", 4, *files, *hashed, *lpips)
    for line in log(run):
        expected = line["reconstruction"] + 0.5 * line["perceptual"] + line["codebook"] + 0.25 * line["commitment"]
        expected += line["arc"] * torch.exp(torch.tensor(-5e-4 * (line["step"] - 1))).item()
        expected += line.get("adversarial_weight", 0.0) * line.get("generator", 0.0)
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
        assert line["perceptual"] > 0.01 and ("generator" in line) == (line["step"] == 5)


@pytest.mark.slow
def test_bfloat16_is_near_float32(train):
    means = {}
    for precision in ("no", "bf16"):
        options = ["--run.mixed_precision", precision, "--optim.max_steps", 20, "--run.sample_every", 20]
        lines = log(train(f"precision-{precision}", *GAN, *options))
        values = torch.tensor([[line["loss"], line["reconstruction"]] for line in lines])
        assert len(lines) == 20 and values.isfinite().all()
        means[precision] = values[-10:].mean(dim=0)
    torch.testing.assert_close(means["bf16"], means["no"], rtol=0.02, atol=0)
    assert not torch.equal(means["bf16"], means["no"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (["--adversarial.disc_start", 5], "disc_start 5 is not before the end, optim.max_steps 5"),
        (["--adversarial.disc_start", 2.5], "adversarial.disc_start is a share below 1 or a whole step, got 2.5"),
        (["--adversarial.weight", -1], "adversarial.weight must not be negative, got -1"),
        (["--adversarial.layers", 3], "images of 16x16 are too small for the discriminator, which takes 24 pixels"),
        (["--loss.perceptual_weight", -1], "loss.perceptual_weight must not be negative, got -1"),
        (["--optim.accumulation", 3], "optim.batch_size 8 does not go into 1 processes with optim.accumulation 3"),
        (["--run.gradient_checkpointing", "true"], "network 'conv' has no gradient checkpointing"),
        (["--ema_decay", 1.5], "ema_decay must be at least 0 and below 1, got 1.5"),
        (["--loss.perceptual_weight", 1, "--weights.vgg16", "none.pth"], "none.pth"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, list) else "",
)
def test_bad_input_is_refused_before_anything_is_written(train, home, options, text):
    with pytest.raises((ValueError, OSError)) as error:
        train("refused", *CONV, *options)
    assert text in str(error.value) and "\n" not in str(error.value)
    assert not (home / "runs/refused").exists()


def test_images_too_small_for_lpips_are_refused(train, home, tmp_path):
    squeeze = StandIn("squeeze", tmp_path).files
    files = ("--weights.squeezenet", squeeze.squeezenet, "--weights.lpips", squeeze.lpips)
    lpips = ("--loss.perceptual_weight", 1, "--loss.perceptual_net", "squeeze")
    with pytest.raises(ValueError, match=r"images of 16x16 are too small for lpips-squeeze.*, which takes 17 pixels"):
        train("refused", *CONV, *files, *lpips, "--weights.accept_sha256", squeeze.accept_sha256)
    assert not (home / "runs/refused").exists()
