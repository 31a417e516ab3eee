"""A finished run => a folder to give away."""

import contextlib
import json
import re
import shlex
import shutil

import numpy as np
import pytest
import torch
import yaml
from finished_runs import BATCH, STEPS, write_run
from PIL import Image
from safetensors.torch import load_file, save_file

from arcvq.evaluation.command import main as evaluate
from arcvq.export.command import as_json, main
from arcvq.export.known_data import data_facts, is_known
from arcvq.export.public_text import public, public_data_name, public_folder
from arcvq.runs.starts import STARTS
from arcvq.sampling.reconstructions import round_trip
from arcvq.training import ldm
from pipelines import ArcVQLDMPipeline
from tokenizer import VQTokenizer
from tokenizer.quantizers import QUANTIZERS

WEIGHTS = "diffusion_pytorch_model.safetensors"
SOME_SAMPLES = "generation --num_images 20 --sampling.num_inference_steps 2"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """As conftest.py has it: the script would take all cores."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("arcvq.compute.process.use_all_cores", lambda: None)
        yield


@pytest.fixture(scope="module")
def home(tmp_path_factory, classifier_cache):
    """A working directory with a run of a tokenizer and of a prior, both exported."""
    cwd = tmp_path_factory.mktemp("home")
    shutil.copytree(classifier_cache, cwd / "runs" / "cache")
    write_run(cwd / "runs" / "tokenizer", "tokenizer")
    write_run(cwd / "runs" / "ldm", "ldm")
    with contextlib.chdir(cwd):
        main(["runs/tokenizer", "--output", "models/digits-arcvq"])
        main(["runs/ldm", "--output", "models/digits-ldm", "--evaluate", SOME_SAMPLES])
    return cwd


@pytest.fixture(autouse=True)
def at_home(home, monkeypatch):
    monkeypatch.chdir(home)


@pytest.fixture
def card(home):
    return json.loads((home / "models/digits-arcvq/card.json").read_text())


def refused(*arguments):
    """The error of a command that leaves nothing at its output."""
    with pytest.raises(ValueError) as error:
        main([*arguments, "--output", "models/none"])
    return str(error.value)


@pytest.fixture(autouse=True)
def nothing_is_left(home):
    yield
    assert sorted(file.name for file in (home / "models").iterdir()) == ["digits-arcvq", "digits-ldm"]


def test_weights_are_halved_and_load_in_float32_and_the_quantizer_is_the_same_to_the_bit(home):
    before, stored = (
        load_file(home / folder / WEIGHTS) for folder in ("runs/tokenizer/tokenizer", "models/digits-arcvq")
    )
    loaded = VQTokenizer.from_pretrained("models/digits-arcvq").state_dict()
    assert before.keys() == stored.keys() == loaded.keys()
    for name, tensor in before.items():
        if name.startswith("bottleneck."):
            assert stored[name].dtype == tensor.dtype and torch.equal(stored[name], tensor)
        else:
            assert stored[name].dtype == torch.float16 and torch.equal(stored[name], tensor.half())
        assert loaded[name].dtype == tensor.dtype and torch.equal(loaded[name], stored[name].to(tensor.dtype))


def test_a_pipeline_computes_in_float32_and_keeps_what_is_no_weight(home):
    before, after = (ArcVQLDMPipeline.from_pretrained(folder) for folder in ("runs/ldm", "models/digits-ldm"))
    assert {tensor.dtype for tensor in after.unet.state_dict().values()} == {torch.float32}
    assert after.config.latent_scale == before.config.latent_scale and after.class_names == before.class_names
    assert dict(after.scheduler.config) == dict(before.scheduler.config)


def test_float32_keeps_every_bit(home, tmp_path):
    main(["runs/tokenizer", "--output", str(tmp_path / "whole"), "--dtype", "float32"])
    before, stored = load_file(home / "runs/tokenizer/tokenizer" / WEIGHTS), load_file(tmp_path / "whole" / WEIGHTS)
    assert all(stored[name].dtype == before[name].dtype and torch.equal(stored[name], before[name]) for name in before)


def test_a_weight_beyond_half_precision_is_named(home, tmp_path):
    run = shutil.copytree(home / "runs/tokenizer", tmp_path / "large")
    tensors = load_file(run / "tokenizer" / WEIGHTS)
    tensors["decoder.conv_out.weight"][0, 0] = 1e5
    save_file(tensors, run / "tokenizer" / WEIGHTS, metadata={"format": "pt"})
    assert "decoder.conv_out.weight" in (error := refused(str(run))) and "float32" in error


def test_the_numbers_are_those_of_the_written_folder(card, tmp_path):
    (evaluation,) = card["evaluations"]
    words = evaluation["protocol"]["command"].split()[2:]
    evaluate([*words, "--output", str(tmp_path)])
    again = json.loads((tmp_path / "reconstruction.json").read_text())
    assert again["numbers"] == evaluation["numbers"] and again["numbers"]["images"] == 360
    assert again["protocol"]["tokenizer"] == evaluation["protocol"]["tokenizer"]


def test_an_interrupted_measurement_is_not_made_again(home, tmp_path, monkeypatch):
    run, output, measured = shutil.copytree(home / "runs/tokenizer", tmp_path / "run"), tmp_path / "out", []

    def fail_at_the_end(*_):
        raise OSError("the disk is full")

    monkeypatch.setattr(
        "arcvq.evaluation.reconstruction.round_trip", lambda *args: measured.append(1) or round_trip(*args)
    )
    with monkeypatch.context() as patch, pytest.raises(OSError, match="the disk is full"):
        patch.setattr("arcvq.evaluation.command.write_result", fail_at_the_end)
        main([str(run), "--output", str(output)])
    assert measured and sorted(file.name for file in tmp_path.iterdir()) == ["run"]

    measured.clear()
    main([str(run), "--output", str(output)])
    assert not measured and json.loads((output / "card.json").read_text())["evaluations"][0]["numbers"]["images"] == 360


def test_the_training_is_described_by_its_log(card):
    training = card["training"]
    assert (training["steps"], training["batch_size"], training["seed"]) == (STEPS, BATCH, 0)
    assert training["hours"] == pytest.approx(STEPS * BATCH / 32 / 3600, abs=1e-3)
    assert training["starts"] == []


def test_starts_are_listed_and_then_nothing_else_is_told(home, tmp_path):
    run = shutil.copytree(home / "runs/tokenizer", tmp_path / "started")
    start = {
        "commit": "abc",
        "versions": {"torch": "2"},
        "processor": "that one",
        "cores": 4,
        "threads": 1,
        "processes": 2,
        "device": "cpu",
    }
    (run / STARTS).write_text("".join(f"{json.dumps({'step': step, **start})}\n" for step in (0, 20)))
    main([str(run), "--output", str(tmp_path / "out")])
    text = (tmp_path / "out" / "README.md").read_text()
    assert "step 20" in text and text.count("that one") == 2
    assert "--trained_on" in refused(str(run), "--trained_on", "another machine")


def test_config_yaml_repeats_the_training_on_the_folder_s_own_tokenizer(home):
    stored = yaml.safe_load((home / "models/digits-ldm/config.yaml").read_text())
    assert stored["tokenizer"] == "models/digits-ldm" and not {"output_dir", "threads"} & stored["run"].keys()
    command = json.loads((home / "models/digits-ldm/card.json").read_text())["training"]["command"].split()
    assert command[:2] == ["arcvq", "train-ldm"]
    parser = ldm.make_parser()
    again = parser.settings(parser.parse(command[2:]))
    before = yaml.safe_load((home / "runs/ldm/config.yaml").read_text())
    for section in ("unet", "diffusion", "optim", "data", "latents"):
        assert again[section] == before[section]


@pytest.fixture
def secret_run(tmp_path):
    return make_secret_run(tmp_path, "things")


def make_secret_run(tmp_path, name):
    """Writes a run on a folder of images, whose settings and options name places of its machine."""
    images = tmp_path / "secret" / name
    for split, number in (("train", 12), ("test", 9)):
        (images / split).mkdir(parents=True)
        for index in range(number):
            pixels = np.random.default_rng(index).integers(0, 256, (32, 32), dtype=np.uint8)
            Image.fromarray(pixels).save(images / split / f"{index}.png")
    places = [f"--data.name={images}", f"--weights.vgg16={tmp_path}/a secret folder/vgg.pth"]
    run = write_run(tmp_path / "secret" / "run", "tokenizer", "--data.image_size=32", *places)
    return run, images


def test_a_folder_called_as_a_known_data_set_has_neither_its_licence_nor_its_place(tmp_path, capsys):
    run, _ = make_secret_run(tmp_path, "mnist")
    main([str(run), "--output", str(tmp_path / "out"), "--licence", "cc-by-nc-4.0"])
    card, text = (json.loads((tmp_path / "out/card.json").read_text()), (tmp_path / "out/README.md").read_text())
    assert (card["data"]["name"], card["data"]["hub_id"], card["data"]["licence"]) == ("own-mnist", None, None)
    assert "--data.name=own-mnist" in card["evaluations"][0]["protocol"]["command"] and "MIT" not in text
    assert "license: cc-by-nc-4.0" in text and "Weights and card: cc-by-nc-4.0" in text and "pache" not in text
    said = capsys.readouterr().out
    assert "not those of mnist" in said and "licence cc-by-nc-4.0" in said and "was trained on 'own-mnist'" not in said


def test_the_commands_of_a_folder_with_a_space_are_those_of_a_shell(home, tmp_path):
    main(["runs/tokenizer", "--output", str(tmp_path / "my model")])
    command = json.loads((tmp_path / "my model/card.json").read_text())["training"]["command"]
    assert shlex.split(command) == ["arcvq", "train-tokenizer", "--config", "my model/config.yaml"]


def test_no_place_of_the_machine_is_told(secret_run, tmp_path, monkeypatch):
    run, images = secret_run
    output, cache = tmp_path / "out" / "things-arcvq", tmp_path / "secret" / "cache"
    main([str(run), "--output", str(output), "--evaluate", f"reconstruction --cache_dir={cache}"])
    for file in output.rglob("*"):
        if file.is_file():
            assert b"secret" not in file.read_bytes() and str(tmp_path).encode() not in file.read_bytes(), file
    card = json.loads((output / "card.json").read_text())
    (command,) = [evaluation["protocol"]["command"] for evaluation in card["evaluations"]]
    assert command == (
        "arcvq evaluate reconstruction things-arcvq --data.name=things --data.image_size=32 --cache_dir=cache"
    )
    assert len(card["examples"]) == 9  # all that are held out

    monkeypatch.chdir(tmp_path)
    moved = images.rename(tmp_path / "secret" / "moved")
    with pytest.raises(ValueError, match="things"):
        main([str(run), "--output", str(tmp_path / "none")])
    main([str(run), "--output", "again", "--data", str(moved)])
    assert json.loads((tmp_path / "again" / "card.json").read_text())["data"]["name"] == "moved"


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("/home/me/data/cifar10", "cifar10"),
        ("~/data", "data"),
        ("../elsewhere/data", "data"),
        (r"C:\Users\me\data", "data"),
        ("file:///home/me/data", "data"),
        ("--weights.alexnet=/home/me/alexnet.pth", "--weights.alexnet=alexnet.pth"),
        ("cannot open '/home/me/a' (/b/c)", "cannot open 'a' (c)"),
        ("runs/cache", "runs/cache"),
        ("uoft-cs/cifar10", "uoft-cs/cifar10"),
        ("hf://datasets/owner/name/data", "hf://datasets/owner/name/data"),
        ("/home/John Doe/a, b/it's (1).pth", "it's (1).pth"),
        ("--weights.vgg16=/home/John Doe/vgg.pth", "--weights.vgg16=vgg.pth"),
        ("~3 hours / 2 cores", "~3 hours / 2 cores"),
        ("https://me:secret@host/data?token=secret", "https://host/data"),
        ("see s3://key:secret@bucket/x, and more", "see s3://bucket/x, and more"),
        ("hf://datasets/owner/name@main/data", "hf://datasets/owner/name@main/data"),
        ("1 / 2, 3 x 32 x 32 ... +/- 1", "1 / 2, 3 x 32 x 32 ... +/- 1"),
    ],
)
def test_public_text_keeps_all_but_places(text, shown):
    assert public({"nested": [text, 1.5]}) == {"nested": [shown, 1.5]}


def test_a_data_set_is_named_by_its_folder_or_as_it_was_given(tmp_path, monkeypatch):
    (tmp_path / "data" / "mine").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "data")
    assert [public_data_name(name) for name in ("mine", ".", "../data/mine", str(tmp_path / "gone"))] == [
        *("mine", "data", "mine", "gone"),
    ]
    assert [public_data_name(name) for name in ("cifar10", "owner/name")] == ["cifar10", "owner/name"]
    assert public_data_name("https://me:secret@host/data?token=secret") == "https://host/data"


def test_a_folder_is_named_as_others_will_have_it(tmp_path):
    assert public_folder(tmp_path / "models" / "x") == "x"
    assert [public_folder(type(tmp_path)(name)) for name in ("models/x", "../models/x")] == ["models/x", "x"]


def test_a_licence_is_not_that_of_another_data_set():
    assert data_facts("cifar10", None, None).hub_id == "uoft-cs/cifar10"
    assert data_facts("mnist", "other/mnist", None) == type(data_facts("x", None, None))("mnist", "other/mnist", None)
    assert data_facts("owner/name", None, "CC0").hub_id == "owner/name"
    assert data_facts("mine", None, None).hub_id is data_facts("mine", None, None).licence is None


@pytest.mark.parametrize(
    ("given", "line", "hold_out", "known"),
    [
        ("mnist", "data: 12 train, 9 held out", 0, True),  # never a folder
        ("/data/mnist", "data: 60000 train, 10000 held out, 10 classes", 0, True),
        ("/data/mnist", "data: 59000 train, 1000 held out, 10 classes", 1000, True),
        ("/data/mnist", "data: 60000 train, 1000 held out, 10 classes", 1000, False),
        ("/data/mnist", "data: 60000 train, 9 held out", 0, False),
        ("/data/mnist", "data: streamed", 0, False),
    ],
)
def test_a_folder_is_a_known_data_set_if_it_has_as_many_images(given, line, hold_out, known):
    assert is_known(given, "mnist", line, hold_out) == known
    assert not is_known("/data/mine", "mine", line, hold_out)


def test_rows_of_codes_stand_in_a_line_and_are_read_back():
    nested = {"codes": [[1, 2], [3, -4]], "text": "[1,\n 2]", "none": [], "scores": [0.5, 1e-7]}
    assert json.loads(as_json(nested)) == nested and '"codes": [\n  [1, 2],' in as_json(nested)


def test_a_run_that_is_not_finished_is_refused(home, tmp_path):
    run = shutil.copytree(home / "runs/tokenizer", tmp_path / "unfinished")
    lines = (run / "metrics.jsonl").read_text().splitlines()
    (run / "metrics.jsonl").write_text(f"{lines[0]}\n")
    assert f"step 20 of {STEPS}" in refused(str(run))
    shutil.rmtree(run / "tokenizer")
    assert "no such result yet" in refused(str(run))


def test_what_is_no_run_is_refused():
    assert "config.yaml" in refused("runs/tokenizer/tokenizer")
    assert "'runs/nothing' is not there" in refused("runs/nothing")
    assert "'models/digits-ldm' is an exported folder" in refused("models/digits-ldm")


def test_a_damaged_run_is_refused_with_the_file(home, tmp_path):
    run = shutil.copytree(home / "runs/tokenizer", tmp_path / "cut")
    (run / "tokenizer" / WEIGHTS).write_bytes((run / "tokenizer" / WEIGHTS).read_bytes()[:100])
    assert f"{WEIGHTS} is damaged" in refused(str(run))
    (run / "config.yaml").write_text("data: {name: digits}\n")
    assert "config.yaml" in (error := refused(str(run))) and "no section optim" in error


def test_a_bar_in_a_text_divides_no_cell_of_a_table(home, tmp_path):
    main(["runs/tokenizer", "--output", str(tmp_path / "out"), "--trained_on", "commit a | laptop"])
    assert "| commit a \\| laptop |" in (tmp_path / "out/README.md").read_text()


def test_a_run_without_the_line_on_its_images_says_how_to_get_it(home, tmp_path):
    run = shutil.copytree(home / "runs/tokenizer", tmp_path / "old")
    (run / "data.txt").unlink()
    assert "data.txt" in (error := refused(str(run))) and "start the training again" in error


def test_an_output_that_holds_something_is_untouched(home):
    before = {file: file.read_bytes() for file in (home / "models").rglob("*") if file.is_file()}
    with pytest.raises(ValueError, match="not an empty folder"):
        main(["runs/tokenizer", "--output", "models/digits-ldm"])
    assert all(file.read_bytes() == content for file, content in before.items())


@pytest.mark.parametrize(
    ("run", "evaluate", "named"),
    [
        ("tokenizer", "generation", "reconstruction"),
        ("ldm", "reconstruction", "generation"),
        ("tokenizer", "", "reconstruction"),
        ("tokenizer", "reconstruction 'x", "close the quotation"),
        ("tokenizer", "reconstruction --output elsewhere", "--output"),
        ("tokenizer", "reconstruction --data.name mnist", "--data.name"),
        ("tokenizer", "reconstruction --protocol adm", "adm"),
        ("tokenizer", "reconstruction --sampling.eta 1", "sampling.eta"),
    ],
)
def test_a_measurement_that_cannot_be_is_refused_before_anything_is_written(run, evaluate, named):
    assert named in refused(f"runs/{run}", "--evaluate", evaluate)


@pytest.mark.parametrize(
    "options", [("--dtype", "float8"), ("--evaluate", "reconstruction --lpips resnet"), ("--sampling.eta", "1")]
)
def test_an_unknown_value_ends_with_a_line(options, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["runs/tokenizer", "--output", "models/none", *options])
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: ") and re.search(r"float8|resnet|sampling.eta", line)


def test_other_images_than_those_of_the_training_are_noted(capsys, tmp_path):
    main(["runs/tokenizer", "--output", str(tmp_path / "out")])
    assert "note: the files of 'digits'" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize("quantizer", sorted(QUANTIZERS))
def test_every_quantizer_s_tokenizer_is_exported(quantizer, tmp_path):
    run = write_run(tmp_path / "run", "tokenizer", quantizer=quantizer)
    main([str(run), "--output", str(tmp_path / "out")])
    card = json.loads((tmp_path / "out" / "card.json").read_text())
    has_codes = VQTokenizer.from_pretrained(tmp_path / "out").has_codes
    assert all((example["codes"] is not None) == has_codes for example in card["examples"])
