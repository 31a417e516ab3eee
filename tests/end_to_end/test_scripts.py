"""The scripts as a user starts them: real processes, on the embedded digits, with networks of a few hundred weights."""

import importlib
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import load_file
from small_runs import ACCELERATE, ARTEFACT, SMALL, TWO_PROCESSES, command, run, training

from arcvq.faults import forked_process
from arcvq.verbs import VERBS
from tokenizer import VQTokenizer

# The UNet's samples take long; what it shares with the others is tested quickly on those.
SLOW_LDM = pytest.param("ldm", marks=pytest.mark.slow)


@pytest.fixture(scope="module")
def home(tmp_path_factory, classifier_cache):
    """A working directory in which the three trainings have been run, one after the other, as the README says."""
    cwd = tmp_path_factory.mktemp("home")
    shutil.copytree(classifier_cache, cwd / "runs" / "cache")
    for stage in SMALL:
        run(*training(stage, "runs", 60, "--run.checkpoint_every", 20), cwd=cwd)
    return cwd


@pytest.mark.slow
def test_the_launcher_starts_what_a_script_is(home):
    """One process that `accelerate launch` starts trains and measures to the bit what the script itself does."""
    run(*training("tokenizer", "launched", 60), cwd=home, launcher=ACCELERATE)
    weights, expected = (
        load_file(home / folder / "tokenizer" / ARTEFACT["tokenizer"]) for folder in ("launched", "runs")
    )
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


@pytest.mark.slow
def test_two_launched_processes_measure_and_sample_as_one(home):
    for folder, started in (("alone", {}), ("pair", {"launcher": TWO_PROCESSES})):
        run("evaluate", "reconstruction", "--output", f"{folder}-evaluation", cwd=home, **started)
        run("sample", "runs/pixelcnn", "--num_images", 6, "--output", f"{folder}-samples", cwd=home, **started)
    alone, pair = (
        json.loads((home / f"{folder}-evaluation/reconstruction.json").read_text())["numbers"]
        for folder in ("alone", "pair")
    )
    assert pair == pytest.approx(alone, rel=1e-9)
    alone, pair = (sorted((home / f"{folder}-samples").rglob("*.png")) for folder in ("alone", "pair"))
    assert [file.read_bytes() for file in pair] == [file.read_bytes() for file in alone] and len(pair) == 7


def test_a_run_folder_holds_all_it_promises(home):
    for stage, artefact in ARTEFACT.items():
        folder = home / "runs" / stage
        assert (folder / artefact).is_file()
        assert sorted(path.name for path in (folder / "checkpoints").iterdir()) == ["step-40", "step-60"]
        assert yaml.safe_load((folder / "config.yaml").read_text())["optim"]["max_steps"] == 60
        steps = [json.loads(line)["step"] for line in (folder / "metrics.jsonl").read_text().splitlines()]
        assert sorted(set(steps)) == list(range(1, 61))
        assert list((folder / "tensorboard").glob("events.*"))
        assert ("share_on_ball" in (folder / "metrics.jsonl").read_text()) == (stage == "tokenizer")
        assert (folder / "samples" / "step-000060.png").stat().st_size > 500


def test_training_lowers_the_loss(home):
    for stage in SMALL:
        lines = [json.loads(line) for line in (home / "runs" / stage / "metrics.jsonl").read_text().splitlines()]
        losses = [line["loss"] for line in lines if "loss" in line]
        assert np.mean(losses[-10:]) < 0.9 * np.mean(losses[:5]), stage


def test_the_tokenizers_codebook_is_inside_the_ball_of_its_step(home):
    tokenizer = VQTokenizer.from_pretrained(home / "runs/tokenizer/tokenizer")
    assert tokenizer.bottleneck.step == 60
    norms = torch.linalg.vector_norm(tokenizer.codebook, dim=1)
    assert norms.max() <= np.exp(3e-4 * 60) * (1 + 1e-6)


@pytest.mark.slow
def test_a_fresh_process_repeats_the_final_samples_bit_for_bit(home):
    code = """
import numpy as np, torch
from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
for stage, pipeline in (("ldm", ArcVQLDMPipeline), ("pixelcnn", ArcVQPixelCNNPipeline)):
    final = np.load(f"runs/{stage}/samples/final.npz")
    pipe = pipeline.from_pretrained(f"runs/{stage}/pipeline")
    generators = [torch.Generator().manual_seed(int(seed)) for seed in final["seeds"]]
    images = pipe(final["class_labels"].tolist(), generator=generators, output_type="np").images
    assert final["images"].shape == (10, 32, 32, 1) and final["images"].std() > 0, stage
    assert np.array_equal(images, final["images"]), stage
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=home, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.mark.parametrize("stage", ["tokenizer", pytest.param("pixelcnn", marks=pytest.mark.slow), SLOW_LDM])
def test_a_killed_training_ends_with_the_weights_of_one_never_killed(home, stage):
    arguments = training(stage, "killed", 60, "--run.checkpoint_every", 7)
    process = forked_process.PreloadedProcess(command(*arguments), home)
    log = home / "killed" / stage / "metrics.jsonl"
    while process.poll() is None and not (log.exists() and log.read_text().count("\n") > 25):
        time.sleep(0.002)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not (home / "killed" / stage / ARTEFACT[stage]).exists()

    resumed = run(*arguments, cwd=home)
    assert "resuming from killed" in resumed.stdout
    steps = [json.loads(line)["step"] for line in log.read_text().splitlines() if "lr" in json.loads(line)]
    assert steps == list(range(1, 61))
    weights, expected = (load_file(home / folder / stage / ARTEFACT[stage]) for folder in ("killed", "runs"))
    assert weights.keys() == expected.keys()
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["tokenizer", "ldm"])
def test_bfloat16_trains_and_saves_float32(home, stage):
    run(*training(stage, "bf16", 2, "--run.mixed_precision", "bf16"), cwd=home)
    weights, single = (load_file(home / folder / stage / ARTEFACT[stage]) for folder in ("bf16", "runs"))
    assert {name: tensor.dtype for name, tensor in weights.items()} == {
        name: tensor.dtype for name, tensor in single.items()
    }
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile needs a compiler")
def test_compiled_trains_as_eager_does(home):
    for name, compiled in (("eager", "false"), ("compiled", "true")):
        run(*training("tokenizer", "compile", 4, "--run.compile", compiled, "--run.name", name), cwd=home)
    eager, compiled = (load_file(home / "compile" / name / ARTEFACT["tokenizer"]) for name in ("eager", "compiled"))
    assert compiled.keys() == eager.keys()
    for name in eager:
        assert torch.allclose(compiled[name].float(), eager[name].float(), atol=1e-4), name


def test_a_run_is_made_longer_and_a_finished_one_is_left_as_it_is(home):
    weights = {}
    for folder, steps in (("longer", 5), ("longer", 10), ("longer", 10), ("straight", 10)):
        done = run(*training("tokenizer", folder, steps, "--optim.schedule", "constant"), cwd=home)
        saved = load_file(home / folder / "tokenizer" / ARTEFACT["tokenizer"])
        weights.setdefault((folder, steps), []).append(saved)
        assert ("nothing is left to train" in done.stdout) == (len(weights[folder, steps]) == 2)
    again = weights["longer", 10]
    for name, expected in weights["straight", 10][0].items():
        assert torch.equal(again[0][name], expected) and torch.equal(again[1][name], expected), name


@pytest.mark.parametrize("limit", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_a_run_goes_on_with_the_same_weights_in_memory_or_not(home, limit):
    folder = home / f"limit-{limit}" / "tokenizer"
    shutil.copytree(home / "runs/tokenizer", folder)
    shutil.rmtree(folder / "checkpoints/step-60")
    shutil.rmtree(folder / "tokenizer")
    done = run(*training("tokenizer", folder.parent, 60, "--data.memory_limit_gib", limit), cwd=home)
    assert "resuming from" in done.stdout and ("decoding train" in done.stderr) == (limit > 0)
    weights, expected = (load_file(run / ARTEFACT["tokenizer"]) for run in (folder, home / "runs/tokenizer"))
    for name in expected:
        assert torch.equal(weights[name], expected[name]), name


@pytest.mark.slow
def test_another_seed_gives_other_weights(home):
    run(*training("tokenizer", "seeded", 60, "--run.seed", 1), cwd=home)
    weights, expected = (load_file(home / run / "tokenizer" / ARTEFACT["tokenizer"]) for run in ("seeded", "runs"))
    assert not torch.equal(weights["encoder.conv_in.weight"], expected["encoder.conv_in.weight"])


@pytest.mark.parametrize("stage", [pytest.param("tokenizer", marks=pytest.mark.slow), "pixelcnn", SLOW_LDM])
def test_two_processes_train_and_save(home, stage):
    started = {"launcher": TWO_PROCESSES} if stage == "tokenizer" else {"processes": 2}
    done = run(*training(stage, "pair", 6), cwd=home, **started)
    assert ", 2 processes" in done.stdout and done.stdout.count("run folder") == 1
    weights, single = (load_file(home / folder / stage / ARTEFACT[stage]) for folder in ("pair", "runs"))
    assert weights.keys() == single.keys()
    assert all(torch.isfinite(tensor).all() for tensor in weights.values())
    lines = (home / "pair" / stage / "metrics.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in lines if "lr" in json.loads(line)] == list(range(1, 7))


@pytest.mark.slow
def test_two_processes_train_as_one_with_the_whole_batch(home):
    """The arc loss runs over the tokens of both; the tokenizer draws no noise, so only rounding may differ."""
    shared = ["--model.quantizer_options.arc_initial", 100.0]
    run(*training("tokenizer", "whole", 5, *shared, "--run.name", "one"), cwd=home)
    run(*training("tokenizer", "whole", 5, *shared, "--run.name", "two"), cwd=home, processes=2)
    one, two = (load_file(home / "whole" / name / ARTEFACT["tokenizer"]) for name in ("one", "two"))
    for name in one:
        assert torch.allclose(one[name].float(), two[name].float(), atol=1e-4), name


def test_a_prior_is_not_resumed_on_another_tokenizer(home):
    run(*training("tokenizer", "swapped", 3), cwd=home)
    arguments = training("pixelcnn", "swapped", 3, "--tokenizer", "swapped/tokenizer")
    run(*arguments, cwd=home)
    before = (home / "swapped/pixelcnn" / ARTEFACT["pixelcnn"]).read_bytes()
    shutil.rmtree(home / "swapped/tokenizer")
    run(*training("tokenizer", "swapped", 3, "--run.seed", 1), cwd=home)
    assert_one_line(run(*arguments, cwd=home, check=False), "tokenizer was")
    assert (home / "swapped/pixelcnn" / ARTEFACT["pixelcnn"]).read_bytes() == before


@pytest.mark.parametrize("script", ["train_tokenizer", "train_ldm", "train_pixelcnn", "sample", "evaluate"])
def test_options_override_the_config_wherever_it_stands_and_are_printed(tmp_path, script, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    main = importlib.import_module(VERBS[script.replace("_", "-")].module).main
    option = "run.seed" if script.startswith("train") else "seed"
    nested = {"run": {"seed": 5}} if script.startswith("train") else {"seed": 5}
    Path("mine.yaml").write_text(yaml.safe_dump(nested))
    for given, seed in (((), 5), ((f"--{option}", "7"), 7)):
        with pytest.raises(SystemExit, match="0"):
            main([*given, "--config", "mine.yaml", "--print_config"])
        printed = yaml.safe_load(capsys.readouterr().out)
        assert (printed["run"] if script.startswith("train") else printed)["seed"] == seed


def test_a_folder_with_other_settings_is_refused_and_left_alone(home):
    before = {path: path.read_bytes() for path in (home / "runs/tokenizer").rglob("*") if path.is_file()}
    done = run(*training("tokenizer", "runs", 60, "--optim.lr", "0.5"), cwd=home, check=False)
    assert_one_line(done, "optim.lr was 0.002 and is now 0.5")
    assert before == {path: path.read_bytes() for path in (home / "runs/tokenizer").rglob("*") if path.is_file()}


def test_a_result_that_no_run_has_described_is_left_alone(home):
    shutil.copytree(home / "runs/tokenizer/tokenizer", home / "undescribed/tokenizer/tokenizer")
    before = (home / "undescribed" / "tokenizer" / ARTEFACT["tokenizer"]).read_bytes()
    done = run(*training("tokenizer", "undescribed", 3, "--run.seed", 1), cwd=home, check=False)
    assert_one_line(done, "holds a result, and no config.yaml")
    assert (home / "undescribed" / "tokenizer" / ARTEFACT["tokenizer"]).read_bytes() == before


def test_broken_weights_are_never_saved(home):
    """Checkpoints are written every 2 steps; the first step breaks the weights, and no later one is made."""
    options = ["--run.checkpoint_every", 2, "--run.log_every", 20, "--optim.lr", "1e30", "--optim.schedule", "constant"]
    done = run(*training("tokenizer", "broken", 30, "--optim.warmup_steps", 0), *options, cwd=home, check=False)
    assert_one_line(done, "20 steps in a row were skipped, from step 2 on, in which reconstruction")
    assert "nothing was saved before" in done.stderr and "warning: step 2 is skipped: reconstruction" in done.stderr
    assert not list((home / "broken/tokenizer").glob("checkpoints/*"))


def test_a_foreign_config_beside_a_tokenizer_is_not_looked_into(home):
    shutil.copytree(home / "runs/tokenizer/tokenizer", home / "foreign/tokenizer")
    (home / "foreign/config.yaml").write_text("data: /my/images\n")
    run("evaluate", "reconstruction", "foreign/tokenizer", cwd=home)


def test_samples_are_written_and_repeat(home):
    for output in ("first", "second"):
        run("sample", "runs/pixelcnn", "--class_labels", 3, 7, "--per_class", 2, "--output", output, cwd=home)
    names = sorted(path.relative_to(home / "first").as_posix() for path in (home / "first").rglob("*.png"))
    labels = ("0003", "0003", "0007", "0007")
    assert names == ["grid.png", *(f"images/{index:08d}-class-{label}.png" for index, label in enumerate(labels))]
    for name in names:
        assert (home / "first" / name).read_bytes() == (home / "second" / name).read_bytes()


def test_evaluation_writes_named_numbers_with_their_protocol(home):
    run("evaluate", "reconstruction", cwd=home)
    sampling = ["--num_images", 20, "--sampling.num_inference_steps", 2]
    run("evaluate", "generation", "runs/ldm", *sampling, cwd=home)
    reconstruction, generation = (
        json.loads((home / "runs" / run / "evaluation" / f"{task}.json").read_text())
        for run, task in (("tokenizer", "reconstruction"), ("ldm", "generation"))
    )
    assert reconstruction["numbers"]["images"] == 360
    assert 5 < reconstruction["numbers"]["psnr"] < 40
    assert 0 < reconstruction["numbers"]["usage"] <= 1
    assert reconstruction["protocol"]["split"] == "test"
    assert len(reconstruction["protocol"]["fingerprint"]) == 64
    assert 0 <= generation["numbers"]["class_accuracy[digits-classifier]"] <= 1
    assert generation["numbers"]["frechet_distance[digits-classifier]@20"] > 0
    assert "fid" not in " ".join(generation["numbers"])
    sampling = {"guidance_scale": 1.4, "num_inference_steps": 2, "eta": 0.0, "guidance_interval": [0.0, 1.0]}
    assert generation["protocol"]["sampling"] == sampling
    assert generation["protocol"]["scheduler"]["class"] == "DDIMScheduler"


def assert_one_line(done, text):
    """An error of one line that holds `text`, a status that is not 0, and no traceback."""
    assert done.returncode != 0
    assert "Traceback" not in done.stderr + done.stdout
    lines = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1 and text in lines[0], done.stderr
    assert done.stderr.splitlines()[-1] == lines[0]


@pytest.mark.parametrize(
    ("arguments", "text"),
    [
        (("train_tokenizer", "--optim.max_step", 3), "--optim.max_steps"),
        (("train_tokenizer", "--optim.lr", "fast"), "optim.lr"),
        (("train_tokenizer", "--model.quantizer", "arcs"), "unknown quantizer 'arcs'; there are arc, "),
        (("train_tokenizer", "--model.quantizer_options.margni", 1), "'margni'; it has beta"),
        (("train_tokenizer", "--data.name", "./no/such/folder"), "no/such/folder"),
        (("train_tokenizer", "--data.name", "no-such-set"), "no-such-set"),
        (("train_tokenizer", "--optim.batch_size", 5000), "5000"),
        (("train_tokenizer", "--run.seed", -1), "run.seed must not be negative"),
        (
            ("train_ldm", "--tokenizer", "runs/tokenizer", "--unet.channel_multipliers", "[1,1,1,1,1]"),
            "unet.channel_mul",
        ),
        (("train_tokenizer", "--config", "none.yaml"), "none.yaml"),
        (("train_ldm", "--tokenizer", "none"), "folder 'none' is not there"),
        (("train_ldm", "--tokenizer", "runs/pixelcnn/pipeline/prior"), "holds a PixelCNN"),
        (("train_pixelcnn", "--tokenizer", "runs/tokenizer", "--data.channels", 3), "(channels, size) (3, 32)"),
        (("sample", "runs/ldm", "--class_labels", 10), "class label 10 is out of range: the classes are 0 to 9"),
        (("sample", "runs/tokenizer"), "holds a VQTokenizer"),
        (("evaluate", "generation", "runs/ldm", "--sampling.top_k", 3), "no option sampling.top_k"),
        (("evaluate", "generation", "runs/ldm", "--extractor", "inception"), "weights-inception"),
    ],
    ids=lambda value: " ".join(map(str, value)) if isinstance(value, tuple) else "",
)
def test_bad_input_is_one_clear_line(home, arguments, text, monkeypatch):
    monkeypatch.setenv("TORCH_HOME", str(home / "torch"))
    before = sorted(home.glob("runs/*"))
    arguments = [*arguments, *(["--run.name", "new"] if arguments[0].startswith("train") else [])]
    done = run(*arguments, cwd=home, check=False)
    assert_one_line(done, text)
    assert sorted(home.glob("runs/*")) == before
