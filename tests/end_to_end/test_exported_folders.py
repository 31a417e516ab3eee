"""A training's result is exported, and the other verbs take the exported folder, as a user starts them."""

import json
import shutil

import pytest
from small_runs import run, training

pytestmark = pytest.mark.slow
MODEL = "models/digits-arcvq"


@pytest.fixture(scope="module")
def home(tmp_path_factory, classifier_cache):
    """A working directory with an exported tokenizer, and an exported pipeline of a prior trained on it."""
    cwd = tmp_path_factory.mktemp("home")
    shutil.copytree(classifier_cache, cwd / "runs" / "cache")
    run(*training("tokenizer", "runs", 20, "--ema_decay", "0.9"), cwd=cwd)
    run("export", "runs/tokenizer", "--output", MODEL, "--evaluate", "reconstruction --num_images 40", cwd=cwd)
    script, *options = training("ldm", "runs", 20)
    options[options.index("--tokenizer") + 1] = MODEL
    run(script, *options, cwd=cwd)
    few = "generation --num_images 20 --sampling.num_inference_steps 2"
    run("export", "runs/ldm", "--output", "models/digits-ldm", "--evaluate", few, cwd=cwd)
    shutil.rmtree(cwd / "runs" / "tokenizer")  # nothing below reads it
    return cwd


def card_of(home, name):
    return json.loads((home / "models" / name / "card.json").read_text())


def test_the_card_says_which_code_has_trained_it(home):
    (start,) = card_of(home, "digits-arcvq")["training"]["starts"]
    assert start["step"] == 0 and start["processor"] == card_of(home, "digits-arcvq")["exported"]["processor"]
    assert f"commit {start['commit']}" in (home / MODEL / "README.md").read_text()


def test_the_prior_was_trained_on_the_exported_tokenizer(home):
    measured = card_of(home, "digits-arcvq")["evaluations"][0]["protocol"]["tokenizer"]
    assert card_of(home, "digits-ldm")["training"]["inputs"]["tokenizer"] == measured


@pytest.mark.parametrize("name", ["digits-arcvq", "digits-ldm"])
def test_the_command_on_the_card_gives_its_numbers(home, name):
    (evaluation,) = card_of(home, name)["evaluations"]
    arcvq, verb, *words = evaluation["protocol"]["command"].split()
    assert (arcvq, verb) == ("arcvq", "evaluate")
    run("evaluate", *words, cwd=home)
    (result,) = (home / "models" / name / "evaluation").glob("*.json")
    assert json.loads(result.read_text())["numbers"] == evaluation["numbers"]


def test_the_exported_pipeline_is_sampled_and_its_tokenizer_measured(home):
    run("sample", "models/digits-ldm", "--num_images", 4, "--sampling.num_inference_steps", 2, cwd=home)
    assert len(list((home / "models/digits-ldm/samples-0/images").glob("*.png"))) == 4
    run("evaluate", "reconstruction", "models/digits-ldm", "--num_images", 20, "--output", "of-ldm", cwd=home)


def test_other_data_than_the_card_s_are_noted(home):
    done = run("evaluate", "reconstruction", MODEL, "--data.name", "mnist", cwd=home, check=False)
    assert f"{MODEL} was trained on 'digits'" in done.stdout + done.stderr


def test_the_command_on_the_card_trains_again(home):
    arcvq, verb, *words = card_of(home, "digits-ldm")["training"]["command"].split()
    assert (arcvq, verb) == ("arcvq", "train-ldm")
    run("train_ldm", *words, "--run.name", "again", "--optim.max_steps", 2, cwd=home)
    assert (home / "runs/again/pipeline/model_index.json").is_file()
