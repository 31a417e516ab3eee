"""The dry run says what a training takes, refuses what the training refuses, and touches nothing."""

import pytest
import torch
from accelerate.state import AcceleratorState
from places import ROOT

from arcvq.planning.dry_run import _epochs, format_bytes
from arcvq.planning.train_or_plan import make_parser, train_or_plan
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer
from priors.pixelcnn import PixelCNN
from priors.unet import make_unet
from tokenizer import VQTokenizer

IMAGENET = ["--config", str(ROOT / "configs" / "imagenet" / "arcvq_f8.yaml")]
SMALL = [
    *("--model.hidden_channels", "32", "--model.num_residual_layers", "1"),
    *("--model.network_options.channel_multipliers", "[1,2]"),
    *("--data.image_size", "32"),
]
ADVERSARIAL = ["--adversarial.weight", "0.8"]
LOCAL = ["--model.quantizer_options", '{"top_k": 40, "gather": "local"}']
VQGAN = ["--model.network", "vqgan", "--model.hidden_channels", "32"]


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    """An empty folder, one thread, and no process group of another test."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    AcceleratorState._reset_state(reset_partial_state=True)
    yield
    AcceleratorState._reset_state(reset_partial_state=True)


def parameters(module):
    return sum(parameter.numel() for parameter in module.parameters())


@pytest.mark.slow
def test_imagenet_without_imagenet(tmp_path, capsys):
    report = train_or_plan(train_tokenizer)([*IMAGENET, "--dry_run", "8"])
    # The reference's networks, and their two 1 x 1 convolutions.
    assert report.parameters["encoder"] == 27_453_072 + 16 * 16 + 16
    assert report.parameters["decoder"] == 40_309_251 + 16 * 16 + 16
    assert report.parameters["quantizer"] == 1024 * 16
    trained = sum(count for name, count in report.parameters.items() if "frozen" not in name)
    memory = report.memory.tensors
    assert memory["weights"] == 4 * trained + 8 + 8  # the quantizer's step, the discriminator's two anchors
    assert memory["gradients in exchange"] == 4 * trained
    assert memory["optimiser"] == pytest.approx(4 * 2 * trained, rel=1e-4)
    assert memory["batch"] == 4 * 4 * 3 * 256 * 256
    # The discriminator's gradients come when the tokenizer's are gone; most is held before any are there.
    tokenizer = sum(report.parameters[part] for part in ("encoder", "quantizer", "decoder"))
    assert report.memory.most["gradients"] == 4 * tokenizer > 2 * memory.get("gradients", 0)
    assert all(report.memory.most[part] >= size for part, size in memory.items())
    assert report.memory.total == sum(memory.values()) + report.memory.fragmentation + report.memory.program
    assert report.others["processes"] == "8, each 4 of 32 images a step"
    assert report.others["tokens"] == "1,024 an image, 32,768 a step, 1,311,899,648 an epoch"
    assert report.others["learning rate"].startswith("0.000144")
    line, _, printed = capsys.readouterr().out.partition("\n")
    assert line.startswith("data: 1281167 train, 1000 classes, 3 x 256 x 256") and printed == f"{report}\n"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_what_saves_memory_is_seen_to():
    def others(*options):
        memory = train_or_plan(train_tokenizer)(
            [*IMAGENET, *SMALL, "--run.mixed_precision", "no", *options, "--dry_run"]
        ).memory
        return memory.tensors["activations and temporaries"]

    plain = others()
    assert others("--run.mixed_precision", "bf16") < 0.8 * plain
    assert others("--run.gradient_checkpointing", "true") < 0.8 * plain
    assert others("--optim.accumulation", "4") < 0.4 * plain
    assert others("--adversarial.weight", "0", "--loss.perceptual_weight", "0") < plain


@pytest.mark.slow
def test_the_step_is_the_fullest_of_the_training():
    def others(*options):
        # A tokenizer so small that the discriminator's side decides.
        report = train_or_plan(train_tokenizer)(["--model.hidden_channels", "4", *ADVERSARIAL, *options, "--dry_run"])
        return report.memory.tensors["activations and temporaries"]

    whole = others()
    assert others("--adversarial.disc_start", "599", "--optim.max_steps", "600") == whole
    assert others("--adversarial.r1_weight", "1") > whole > others("--adversarial.weight", "0")


def test_fp16_is_planned_without_the_gpu_that_it_trains_on():
    report = train_or_plan(train_tokenizer)(["--run.mixed_precision", "fp16", "--dry_run"])
    float32 = train_or_plan(train_tokenizer)(["--run.mixed_precision", "no", "--dry_run"])
    assert report.others["precision"] == "fp16"
    assert report.memory.tensors["optimiser"] == pytest.approx(float32.memory.tensors["optimiser"], rel=1e-3)
    others = [each.memory.tensors["activations and temporaries"] for each in (report, float32)]
    assert others[0] < others[1]


def test_processes_are_those_of_the_launcher(monkeypatch, capsys):
    monkeypatch.setenv("WORLD_SIZE", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    report = train_or_plan(train_tokenizer)(["--dry_run"])
    assert report.others["processes"] == "4, each 16 of 64 images a step"
    assert report.others["precision"] == "bf16"
    capsys.readouterr()
    monkeypatch.setenv("RANK", "3")
    assert train_or_plan(train_tokenizer)(["--dry_run"]) is None
    assert capsys.readouterr().out == ""


def test_a_prior_takes_a_tokenizer_that_is_trained_or_planned(tmp_path):
    tokenizer = VQTokenizer(in_channels=1, image_size=32, hidden_channels=8)
    tokenizer.save_pretrained("trained/tokenizer")
    reports = {
        place: train_or_plan(train_pixelcnn)(["--tokenizer", place, "--dry_run"])
        for place in ("runs/tokenizer", str(ROOT / "configs" / "digits" / "tokenizer.yaml"), "trained")
    }
    planned, named, trained = reports.values()
    prior = PixelCNN(512, 10, (8, 8), num_layers=8, head_channels=256)
    assert planned.parameters == named.parameters
    assert [report.parameters["PixelCNN"] for report in (planned, trained)] == [parameters(prior)] * 2
    assert trained.parameters["tokenizer, frozen"] == parameters(tokenizer)
    weights, average = trained.memory.tensors["weights"], trained.memory.tensors["average"]
    assert weights == 4 * parameters(prior) and average == 2 * weights  # the average, and the copy that samples
    assert [path.name for path in tmp_path.iterdir()] == ["trained"]


@pytest.mark.slow
def test_a_diffusion_prior_from_the_cache_or_on_the_fly():
    cached = train_or_plan(train_ldm)(["--dry_run"])
    encoded = train_or_plan(train_ldm)(["--latents.mode", "on_the_fly", "--optim.accumulation", "2", "--dry_run"])
    unet = make_unet((64, 8, 8), 10, num_blocks=1)
    assert cached.parameters == encoded.parameters
    assert cached.parameters["UNet"] == parameters(unet)
    # Latents float32, codes and labels int64; images float32 and labels.
    assert cached.memory.tensors["batch"] == 64 * (4 * 64 * 64 + 8 * 64 + 8)
    assert encoded.memory.tensors["batch"] == 64 * (4 * 32 * 32 + 8)
    read = format_bytes(1437 * 64 * (64 * 4 + 4))  # float32 latents, int32 codes
    assert cached.others["read from disk"] == f"in an epoch {read} of latents and codes of digits"
    assert "images of digits" in encoded.others["read from disk"]


REFUSED = {
    "tokens fewer than top_k": (
        train_tokenizer,
        [*VQGAN, "--model.quantizer_options.top_k", "200", "--optim.batch_size", "1", "--data.image_size", "32"],
        "16 tokens is fewer than top_k 200",
    ),
    "attention that never occurs": (
        train_tokenizer,
        [*VQGAN, "--model.network_options.attention_sizes", "[5]"],
        "attention_sizes holds 5",
    ),
    "batch that cannot be split": (train_tokenizer, ["--optim.accumulation", "3"], "multiple of 3"),
    "batch larger than the data": (train_tokenizer, ["--optim.batch_size", "2048"], "not in 1..1437"),
    "image size": (train_tokenizer, ["--data.image_size", "30"], "image_size must be a multiple of 4"),
    "a discriminator that never enters": (
        train_tokenizer,
        [*VQGAN, *ADVERSARIAL, "--adversarial.disc_start", "600"],
        "not before the end",
    ),
    "images too small for the discriminator": (
        train_tokenizer,
        [*ADVERSARIAL, "--adversarial.layers", "4"],
        "too small for the discriminator",
    ),
    "checkpoints of the small network": (
        train_tokenizer,
        ["--run.gradient_checkpointing", "true"],
        "has no gradient checkpointing",
    ),
    "checkpoints of the PixelCNN": (
        train_pixelcnn,
        ["--run.gradient_checkpointing", "true"],
        "the PixelCNN has no gradient checkpointing",
    ),
    "random crops in the cache": (train_ldm, ["--data.crop", "random"], "latents.mode cache keeps those of one"),
    "attention of the UNet": (train_ldm, ["--unet.attention_sizes", "[3]"], "attention_sizes [3]"),
    "images that are not the tokenizer's": (train_pixelcnn, ["--data.channels", "3"], "the tokenizer was trained on"),
    "shares": (train_ldm, ["--ema_decay", "1"], "ema_decay must be at least 0 and below 1"),
}


@pytest.mark.parametrize("script, options, text", REFUSED.values(), ids=REFUSED)
def test_what_cannot_work_is_refused_as_the_training_refuses_it(script, options, text, tmp_path):
    if script is not train_tokenizer:
        torch.manual_seed(0)
        VQTokenizer(in_channels=1, image_size=32, hidden_channels=8).save_pretrained("runs/tokenizer")
    with pytest.raises(ValueError) as dry:
        train_or_plan(script)([*options, "--dry_run"])
    with pytest.raises(ValueError) as real:
        script.main(options)
    assert str(dry.value) == str(real.value)
    assert text in str(dry.value) and "\n" not in str(dry.value)


def test_a_tokenizer_is_not_sharded(monkeypatch):
    monkeypatch.setenv("ACCELERATE_USE_FSDP", "true")
    for options in ([], ["--dry_run"]):
        with pytest.raises(ValueError, match=r"FSDP shards the UNet of arcvq train-ldm"):
            train_or_plan(train_tokenizer)(options)


@pytest.mark.parametrize(
    "script, options, text",
    [
        (train_tokenizer, ["--dry_run", "5"], "64 does not go into 5 processes"),
        (train_tokenizer, ["--dry_run", "-1"], "dry_run takes the number of processes, got -1"),
        (train_tokenizer, ["--data.name", "someone/photographs", "--dry_run"], "nothing is known here"),
        (train_tokenizer, ["--data.name", "imagenet", "--dry_run"], "set data.image_size"),
        (train_ldm, ["--tokenizer", "runs/other", "--dry_run"], "no file of configs/ trains it"),
        (
            train_tokenizer,
            [*LOCAL, "--data.image_size", "16", "--dry_run", "32"],
            "32 tokens is fewer than top_k 40",
        ),
    ],
)
def test_what_the_dry_run_alone_is_asked(script, options, text):
    with pytest.raises(ValueError, match=text):
        train_or_plan(script)(options)


def test_a_run_does_not_know_that_there_are_dry_ones(tmp_path):
    assert "dry_run" not in train_tokenizer.make_parser().parse([])
    parser = make_parser(train_tokenizer)
    assert parser.parse([]).dry_run is None
    assert (parser.parse(["--dry_run"]).dry_run, parser.parse(["--dry_run", "2"]).dry_run) == (0, 2)


@pytest.mark.parametrize(
    ("number", "text"), [(20 / 22, "0.91"), (15.0, "15"), (500.004, "500"), (1000.5, "1,000.5"), (0.004, "0.004")]
)
def test_a_number_of_epochs_keeps_at_most_two_decimals_and_never_becomes_zero(number, text):
    assert _epochs(number) == text
