"""What a script says of an option that is wrong: the option that was meant, the value, and what it takes."""

import importlib
import sys
from types import SimpleNamespace

import pytest
import yaml

from arcvq import quickstart
from arcvq.benchmarks import command as benchmark
from arcvq.cli.parser import ScriptParser
from arcvq.conversion import codebook, convert
from arcvq.evaluation import command as evaluate
from arcvq.faults import command as faults
from arcvq.faults import forked_process
from arcvq.planning.train_or_plan import train_or_plan
from arcvq.queue import command as queue
from arcvq.sampling import command as sample
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer
from arcvq.verbs import VERBS

SHARED = {"train_tokenizer": train_tokenizer, "train_ldm": train_ldm, "train_pixelcnn": train_pixelcnn}
SHARED |= {"evaluate": evaluate, "sample": sample}
VERB_MODULES = {name: verb.module for name, verb in VERBS.items()}
VERB_MODULES |= {f"{name} {other}": module for name, verb in VERBS.items() for other, module in verb.others.items()}
planned = SimpleNamespace(main=train_or_plan(train_tokenizer))  # as the verb runs it
PARSERS = {name: script.make_parser() for name, script in SHARED.items()}


def said(capsys, script, *args):
    """The one line by which a script, or its parser, refuses options."""
    with pytest.raises(SystemExit) as error:
        (script.parse if isinstance(script, ScriptParser) else script.main)([*map(str, args)])
    lines = capsys.readouterr().err.splitlines()
    assert error.value.code == 2 and len(lines) == 1 and lines[0].startswith("error: ")
    assert "typing" not in lines[0] and "<class" not in lines[0] and "Parser key" not in lines[0]
    return lines[0].removeprefix("error: ")


def options(name):
    """Each option of a script that takes one value."""
    actions = PARSERS[name]._actions
    return [action for action in actions if action.option_strings and (action.choices or hasattr(action, "_typehint"))]


def takes_any_text(action):
    return "str" in str(getattr(action, "_typehint", ""))


@pytest.mark.parametrize("name", SHARED)
def test_a_wrong_value_of_any_option_names_that_option_and_the_value_and_no_other(name, capsys):
    every = {action.dest for action in options(name)}
    for action in options(name):
        if takes_any_text(action) or action.nargs == "+":
            continue
        line = said(capsys, PARSERS[name], f"--{action.dest}", "qqq")
        assert line.startswith(f"--{action.dest} takes ") and "'qqq'" in line and "did you mean" not in line
        words = set(line.replace("--", " ").replace(",", " ").split())
        assert not (words & {other for other in every if "." in other}) - {action.dest}


@pytest.mark.parametrize("name", SHARED)
def test_a_wrong_value_in_a_config_is_told_as_on_the_command_line(name, capsys, tmp_path):
    for action in options(name):
        if takes_any_text(action) or action.nargs == "+" or "." not in action.dest:
            continue
        section, option = action.dest.split(".")
        (tmp_path / "a.yaml").write_text(yaml.safe_dump({section: {option: "qqq"}}))
        line = said(capsys, PARSERS[name], "--config", tmp_path / "a.yaml")
        assert line.startswith(f"--{action.dest} takes ") and "'qqq'" in line


@pytest.mark.parametrize("name", SHARED)
def test_a_name_with_a_letter_less_or_more_or_another_or_without_its_section_means_the_option(name, capsys):
    every = [action.dest for action in options(name)]
    for dest in every:
        section, dot, last = dest.rpartition(".")
        if len(last) < 6:
            continue
        for wrong in (last[:2] + last[3:], last[:2] + "q" + last[2:], last[:-1] + "q", last.replace("_", "-")):
            if f"{section}{dot}{wrong}" in every:
                continue
            line = said(capsys, PARSERS[name], f"--{section}{dot}{wrong}", "1")
            assert f"--{section}{dot}{wrong}" in line and f"did you mean --{dest}?" in line
        if [other.rpartition(".")[2] for other in every].count(last) == 1 and section:
            assert f"did you mean --{dest}?" in said(capsys, PARSERS[name], f"--{last}", "1")


@pytest.mark.parametrize(
    ("script", "arguments", "texts"),
    [
        (sample, ["--sampling.guidance_scale", "nan"], ["--sampling.guidance_scale takes a number", "'nan'"]),
        (sample, ["--sampling.guidance_scale"], ["--sampling.guidance_scale takes a number", "no value"]),
        (sample, ["--sampling.guidance_scale="], ["--sampling.guidance_scale takes a number", "''"]),
        (sample, ["--sampling.scheduler", "dpm"], ["--sampling.scheduler", "did you mean dpmsolver++?"]),
        (sample, ["--sampling.guidance_interval", "0.2"], ["--sampling.guidance_interval", "2 values", "'0.2'"]),
        (sample, ["--sampling.steps", "3"], ["--sampling.steps", "did you mean --sampling.num_inference_steps?"]),
        (sample, ["--format", "jpeg"], ["--format takes one of png, npz, webdataset", "'jpeg'"]),
        (sample, ["--num_images", "1e3"], ["--num_images takes a whole number", "'1e3'"]),
        (evaluate, ["--extractr", "x"], ["--extractr", "did you mean --extractor?"]),
        (evaluate, ["reconstructon"], ["task", "did you mean reconstruction?"]),
        (evaluate, ["generation", "x", "--protocol", "ad"], ["--protocol takes one of", "did you mean adm?"]),
        (train_tokenizer, ["--optim.learning_rate", "1"], ["--optim.learning_rate", "optim has", "lr,"]),
        (train_tokenizer, ["--codebook_size", "1"], ["did you mean --model.codebook_size?"]),
        (train_tokenizer, ["--name", "x"], ["--data.name or --run.name"]),
        (train_tokenizer, ["--Optim.LR", "1"], ["did you mean --optim.lr?"]),
        (train_tokenizer, ["\N{EN DASH}optim.lr", "1"], ["did you mean --optim.lr?"]),
        (train_tokenizer, ["-lr", "1"], ["did you mean --optim.lr?"]),
        (train_tokenizer, ["--steps", "9"], ["--optim.max_steps"]),
        (train_tokenizer, ["--run.seed", "1.5"], ["--run.seed takes a whole number", "'1.5'"]),
        (train_tokenizer, ["--run.other_settings", "goon"], ["--run.other_settings", "did you mean go_on?"]),
        (train_tokenizer, ["--run.compile", "1"], ["--run.compile takes true or false"]),
        (train_tokenizer, ["--run.name", "--run.seed", "1"], ["--run.name", "no value"]),
        (train_tokenizer, ["--model.norm_groups", "8"], ["did you mean --model.network_options.norm_groups?"]),
        (train_tokenizer, ["--strided_layers=1"], ["did you mean --model.network_options.strided_layers?"]),
        (train_tokenizer, ["--model.top_k", "8"], ["did you mean --model.quantizer_options.top_k?"]),
        (train_tokenizer, ["--model.network_options", "{a: b"], ["--model.network_options", "{name: value}"]),
        (train_tokenizer, ["--model.quantizer_options", "{a: b"], ["--model.quantizer_options", "{name: value}"]),
        (train_tokenizer, ["--optim.lr", "1", "--optim.lr", "x"], ["--optim.lr takes a number", "'x'"]),
        (train_tokenizer, ["--optim.lr", "x" * 5000], ["--optim.lr takes a number"]),
        (train_ldm, ["--diffusion.prediction_type", "eps"], ["--diffusion.prediction_type", "did you mean epsilon?"]),
        (convert, ["a", "b", "--quantizer", "l2"], ["--quantizer takes one of arc, vq", "'l2'"]),
        (convert, ["a", "b", "--image_size", "x"], ["--image_size takes a whole number", "'x'"]),
        (convert, ["a", "b", "--emma"], ["--emma", "did you mean --ema?"]),
        (convert, ["a"], ["folder"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, list) else "",
)
def test_the_option_that_was_meant_is_named(capsys, script, arguments, texts):
    line = said(capsys, script, *arguments)
    assert all(text in line for text in texts) and len(line) < 400


@pytest.mark.parametrize(
    ("text", "texts"),
    [
        ("optim: {rate: 1}", ["no option optim.rate", "optim has"]),
        ("optims: {lr: 1}", ["no option optims.lr", "--optim.lr"]),
        ("run: {seed.x: 1}", ["run.seed.x", "--run.seed"]),
        ("rcon_norm: true", ["rcon_norm", "--recon_norm"]),
        ("model: {quantiser: vq}", ["model.quantiser", "--model.quantizer"]),
        ("model: {norm_groups: null}", ["model.norm_groups", "--model.network_options.norm_groups"]),
        ("model: {channel_multipliers: [1, 2]}", ["--model.network_options.channel_multipliers"]),
    ],
)
def test_an_unknown_name_in_a_config_is_told_with_its_file(capsys, tmp_path, text, texts):
    (tmp_path / "theirs.yaml").write_text(text)
    line = said(capsys, train_tokenizer, "--config", tmp_path / "theirs.yaml")
    assert str(tmp_path / "theirs.yaml") in line and all(part in line for part in texts)


def test_the_value_that_is_wrong_is_told_and_not_the_one_that_overrides_it(capsys, tmp_path):
    (tmp_path / "a.yaml").write_text("optim: {lr: much}")
    assert "'much'" in said(capsys, train_tokenizer, "--config", tmp_path / "a.yaml", "--optim.lr", "1e-3")
    (tmp_path / "a.yaml").write_text("optim: {lr: 0.5}")
    assert "'many'" in said(capsys, train_tokenizer, "--config", tmp_path / "a.yaml", "--optim.lr", "many")


def test_names_within_an_option_of_names_are_its_own(tmp_path):
    config = train_tokenizer.make_parser().parse(["--model.quantizer_options.init", "unit"])
    assert config.model.quantizer_options == {"init": "unit"}
    (tmp_path / "a.yaml").write_text("model: {quantizer_options: {init: unit}}")
    assert train_tokenizer.make_parser().parse(["--config", str(tmp_path / "a.yaml")]).model == config.model


def test_a_networks_option_on_the_command_line_is_added_to_those_of_the_config(tmp_path):
    (tmp_path / "a.yaml").write_text("model: {network_options: {norm_groups: 8, channel_multipliers: [1]}}")
    added = ["--model.network_options.channel_multipliers", "[1,2]", "--model.network_options.z_channels=3"]
    config = train_tokenizer.make_parser().parse([*added, "--config", str(tmp_path / "a.yaml")])
    assert config.model.network_options == {"norm_groups": 8, "channel_multipliers": [1, 2], "z_channels": 3}


@pytest.mark.parametrize("name", VERB_MODULES)
def test_every_verb_refuses_an_unknown_option_by_its_name(name, capsys):
    first = {"codebook": ["reduce", "runs/none"]}.get(name, [])
    assert "--outptu" in said(capsys, importlib.import_module(VERB_MODULES[name]), *first, "--outptu", "x")


@pytest.mark.parametrize(
    ("script", "arguments", "texts"),
    [
        (codebook, ["features", "--num_images", "-5"], ["num_images", "-5"]),
        (codebook, ["features", "--seed", "-1"], ["seed", "-1"]),
        (codebook, ["reduce", "nowhere", "--codebook_size", "4", "--seed", str(2**32)], ["seed", str(2**32)]),
        (faults, ["--trials", "0"], ["trials", "0"]),
        (faults, ["--inputs", "-2"], ["inputs", "-2"]),
        (faults, ["--sections", "[]"], ["sections", "kills"]),
        (faults, ["--trainings", "gan("], ["trainings", "gan("]),
        (benchmark, ["quantizers", "--threads", "0"], ["threads", "0"]),
        (quickstart, ["--num_images", "3"], ["num_images", "3"]),
        (train_tokenizer, ["--run.output_dir", " "], ["run.output_dir", "empty"]),
        (train_pixelcnn, ["--run.output_dir="], ["run.output_dir", "empty"]),
        (train_tokenizer, ["--data.num_workers", "-1"], ["data.num_workers", "-1"]),
        (planned, ["--data.num_workers", "-1", "--dry_run", "1"], ["data.num_workers", "-1"]),
        (evaluate, ["statistics", "--data.num_workers", "-7"], ["data.num_workers", "-7"]),
    ],
    ids=lambda value: " ".join(map(str, value))[:60] if isinstance(value, list) else "",
)
def test_a_number_out_of_range_is_told_by_its_name_before_anything_is_made(
    script, arguments, texts, tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError) as error:
        script.main(arguments)
    line = str(error.value)
    assert all(text in line for text in texts) and "\n" not in line and list(tmp_path.iterdir()) == []


@pytest.mark.slow
def test_a_script_in_its_own_process_says_it_in_one_line(tmp_path):
    command = [sys.executable, "-m", "arcvq", "sample", "--sampling.guidance_scale", "nan"]
    done = forked_process.run(command, tmp_path)
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert "--sampling.guidance_scale" in done.stderr and "--format" not in done.stderr


@pytest.mark.parametrize(
    ("words", "status"),
    [
        (["q.yaml"], False),
        (["q.yaml", "--status"], True),
        (["--status", "q.yaml"], True),
        (["--status", "false", "q.yaml"], False),
        (["--status=false", "q.yaml"], False),
        (["--status", "--jobs", "1", "q.yaml"], True),
    ],
)
def test_a_flag_takes_no_other_word_for_its_value(words, status):
    config = queue.make_parser().parse(words)
    assert (config.file, config.status) == ("q.yaml", status)
