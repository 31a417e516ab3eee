"""Configs that somebody else has written: they are options, or one line; models of any size are reckoned, not built."""

import math
import os
import re
import string
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from jsonargparse import Namespace
from places import ROOT

from arcvq.cli.parser import ScriptParser
from arcvq.cli.safe_yaml import LARGEST_FILE, read_yaml
from arcvq.evaluation import command as evaluate
from arcvq.evaluation import schedulers as compare_schedulers
from arcvq.planning.train_or_plan import train_or_plan
from arcvq.runs.settings import read_settings
from arcvq.training import ldm as train_ldm
from arcvq.training import memory_check as model_memory
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer
from arcvq.training.memory_check import refuse_beyond
from priors.pixelcnn import PixelCNN
from priors.unet import make_unet
from tokenizer import VQTokenizer
from tokenizer.data import DataConfig
from tokenizer.networks.discriminator import PatchDiscriminator

TRAININGS = {"train_tokenizer": train_tokenizer, "train_ldm": train_ldm, "train_pixelcnn": train_pixelcnn}
SECTIONS = ("data", "optim", "run", "loss", "adversarial", "latents")
FILES = [file for file in sorted((ROOT / "configs").rglob("*.yaml")) if file.parent.name != "accelerate"]

LAUGHS = "a: &a [x,x,x,x,x,x,x,x,x]\n" + "".join(
    f"{new}: &{new} [{', '.join([f'*{old}'] * 9)}]\n" for old, new in zip("abcdefgh", "bcdefghi", strict=True)
)
REFUSED = {
    "aliases": (LAUGHS, "line 1: & and *"),
    "an alias of itself": ("run: &a [*a]", "line 1: & and *"),
    "twice": ("run:\n  seed: 1\n  seed: 2\n", "line 3: 'seed' is there twice"),
    "twice with quotes": ("run: {seed: 1}\n'run': {seed: 1}\n", "line 2: 'run' is there twice"),
    "a number for a name": ("1: 2", "line 1: '1' is no option's name"),
    "a date for a name": ("run:\n  2020-01-01: 2", "line 2: '2020-01-01' is no option's name"),
    "null for a name": ("~: 2", "is no option's name"),
    "a list for a name": ("? [1, 2]\n: 3", "a list or mapping is no option's name"),
    "a merge": ("run: {<<: {seed: 1}}", "'<<' is no option's name"),
    "a name of jsonargparse": ("__path__: x", "'__path__' is no option's name"),
    "a tag of Python": ("!!python/object/apply:os.system ['true']", "line 1: the tag"),
    "binary": ("run: !!binary aGVsbG8=", "the tag"),
    "a set": ("run: !!set {a}", "the tag"),
    "two documents": ("run: {seed: 1}\n---\nrun: {seed: 2}\n", "line 2: but found another document"),
    "empty": ("", "holds nothing"),
    "comments": ("# run:\n", "holds nothing"),
    "a tab": ("run:\n\tseed: 1\n", "line 2: "),
    "a null byte": ("run: \x00", "no YAML"),
    "a list": ("[1, 2]", "holds a list"),
    "a word": ("hello", "holds a str"),
    "open": ("run: {seed: 1", "line 1: expected ',' or '}'"),
    "deep lists": ("run: " + "[" * 10**5, "no YAML"),
    "many digits": ("run: {seed: " + "9" * 5000 + "}", "no YAML: Exceeds the limit"),
    "a day that is none": ("run: {name: 2020-13-45}", "no YAML: month must be in 1..12"),
    "large": ("# " + "x" * LARGEST_FILE + "\nrun: {}\n", f"larger than {LARGEST_FILE} bytes"),
}  # fmt: skip
# What only a parser of options can tell.
NO_OPTIONS = {
    "a section of a number": ("data: 5", "data must hold options by name, got 5"),
    "a section of a list": ("run: []", "run must hold options by name"),
    "a section of nothing": ("model:", "model must hold options by name, got None"),
    "a section of another file": (f"run: {FILES[0]}", "run must hold options by name"),
    "another file": (f"config: {FILES[0]}", "a config names no other"),
    "null where a number belongs": ("optim: {lr: null}", "optim.lr must not be null"),
    "no such option": ("optim: {rate: 1}", "rate"),
    "a class": ("model: {class_path: os.system, init_args: {}}", "'class_path' is no option's name"),
    "an option in an option": ("run: {seed.x: 1}", "run.seed"),
    "a word for a number": ("optim: {lr: much}", "optim.lr"),
    "too few": ("optim: {betas: [0.9]}", "optim.betas"),
}


def parsed(script, file, capsys):
    """The options in a file, or the one line that says what is wrong with it."""
    try:
        found = script.make_parser().parse(["--config", str(file)])
    except SystemExit as error:
        assert error.code == 2
        lines = capsys.readouterr().err.splitlines()
        assert len(lines) == 1 and lines[0].startswith("error: ") and len(lines[0]) < 3000
        found = lines[0]
    return found


@pytest.mark.parametrize(("text", "said"), REFUSED.values(), ids=REFUSED)
def test_what_is_no_config_is_one_line_that_names_file_and_line(tmp_path, capsys, text, said):
    file = tmp_path / "theirs.yaml"
    file.write_text(text)
    with pytest.raises(ValueError, match=re.escape(said)) as error:
        read_yaml(file)
    assert str(file) in str(error.value) and "\n" not in str(error.value)
    assert said in parsed(train_tokenizer, file, capsys)
    assert read_settings(file) == {}


@pytest.mark.parametrize(("text", "said"), NO_OPTIONS.values(), ids=NO_OPTIONS)
def test_what_are_no_options_is_one_line(tmp_path, capsys, text, said):
    (tmp_path / "theirs.yaml").write_text(text)
    assert said in parsed(train_tokenizer, tmp_path / "theirs.yaml", capsys)


def test_bytes_that_are_no_text_are_refused_with_their_line(tmp_path, capsys):
    file = tmp_path / "theirs.yaml"
    file.write_bytes(b"run:\n  seed: 1\n  name: \xff\n")
    assert "line 3: not UTF-8" in parsed(train_tokenizer, file, capsys)
    file.write_bytes(b"\xef\xbb\xbfrun:\n  seed: 7\n")
    assert parsed(train_tokenizer, file, capsys).run.seed == 7


def test_what_is_no_regular_file_is_not_read(tmp_path, capsys):
    os.mkfifo(tmp_path / "pipe.yaml")
    for place in ("/dev/zero", "/dev/stdin", tmp_path, tmp_path / "pipe.yaml", tmp_path / "absent.yaml"):
        assert f"{place} is not there, or no file" in parsed(train_tokenizer, place, capsys)
        assert read_settings(Path(place)) == {}


@pytest.mark.parametrize(
    "options", [["--run", str(FILES[0])], [f"--run={FILES[0]}"], ["--optim.lr", "0x" + "f" * 5000]]
)
def test_options_of_the_command_line_are_one_line_as_well(capsys, options):
    with pytest.raises(SystemExit):
        train_tokenizer.make_parser().parse(options)
    assert len(capsys.readouterr().err.splitlines()) == 1


def test_no_class_that_a_config_names_is_imported(tmp_path, monkeypatch, capsys):
    (tmp_path / "trap.py").write_text(
        f"from pathlib import Path\nPath({str(tmp_path / 'run')!r}).touch()\nclass Trap: 0\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    asked = ("{class_path: trap.Trap, init_args: {a: 1}}", "{'class_path': trap.Trap}", "trap.Trap", "{a: trap.Trap}")
    for section in ("model", "data", "model: {quantizer_options", "model: {network_options", "run: {name", "ema_decay"):
        for value in (*asked, "[trap.Trap]"):
            (tmp_path / "theirs.yaml").write_text(f"{section}: {value}" + "}" * section.count("{"))
            parsed(train_tokenizer, tmp_path / "theirs.yaml", capsys)
        for option in ("data.class_path: trap.Trap", "data.class_path.a: trap.Trap"):
            (tmp_path / "theirs.yaml").write_text(option)
            parsed(train_tokenizer, tmp_path / "theirs.yaml", capsys)
    assert "trap" not in sys.modules and not (tmp_path / "run").exists()


def test_what_is_read_is_what_pyyaml_reads(tmp_path):
    for file in FILES:
        assert read_yaml(file) == yaml.safe_load(file.read_text())
    nested = {"a": [1, 2.5, None, True, "x: y", "*no alias", "&", ""], "b": {"c": {"d": [[1], {"e": "null"}]}}, "f": {}}
    (tmp_path / "a.yaml").write_text(yaml.safe_dump(nested | {"step of adversarial.disc_start": "5"}))
    assert read_yaml(tmp_path / "a.yaml") == nested | {"step of adversarial.disc_start": "5"}


def test_the_settings_of_a_run_are_read_back(tmp_path):
    for script in TRAININGS.values():
        parser = script.make_parser()
        written = parser.settings(parser.parse([]))
        (tmp_path / "config.yaml").write_text(yaml.safe_dump(written, sort_keys=False))
        assert read_settings(tmp_path / "config.yaml") == written
        assert parser.settings(parser.parse(["--config", str(tmp_path / "config.yaml")])) == written


def test_other_scripts_read_the_same(tmp_path, capsys):
    (tmp_path / "theirs.yaml").write_text(LAUGHS)
    for script in (evaluate, compare_schedulers):
        with pytest.raises(SystemExit) as error:
            script.main(["--config", str(tmp_path / "theirs.yaml")])
        assert error.value.code == 2 and "& and *" in capsys.readouterr().err


def build(config):
    """Build the model of a parsed config without weights."""
    with torch.device("meta"):
        if "model" in config:
            tokenizer = VQTokenizer(3, config.data.image_size or 32, **config.model.as_dict())
            PatchDiscriminator(3, config.adversarial.channels, config.adversarial.layers, config.adversarial.norm)
            assert math.prod(tokenizer.latent_shape) > 0
        elif "unet" in config:
            make_unet((4, 8, 8), 10, **config.unet.as_dict())
        else:
            PixelCNN(512, 10, (8, 8), **config.prior.as_dict())


def use(script, file, capsys):
    """Parses, checks and builds: each step works or says in one line why not."""
    start = time.monotonic()
    config = parsed(script, file, capsys)
    if isinstance(config, str):
        return None
    for section in SECTIONS:
        if section in config:
            try:
                arguments = {"latents": [DataConfig()], "adversarial": [config.optim.max_steps]}.get(section, [])
                config[section].check(*arguments)
            except ValueError as error:
                assert "\n" not in str(error)
    for action in (script.check, build):
        try:
            action(config)
        except ValueError as error:
            assert "\n" not in str(error)
    assert time.monotonic() - start < 30, "it hangs"
    return config


NUMBERS = ["0", "-1", "1", "2", "7", "1e999", "-.inf", ".nan", "99", "1.5", "'8'", "-0.0", "1_000", "0o17", "1:30"]
# A model of as many layers would be built for hours.
LARGE_NUMBERS = ["10000000000000", "16777216", "0x" + "f" * 30, "9" * 39, "65536", "4294967296", "2147483647"]
WORDS = [
    "null",
    "true",
    "no",
    "''",
    "x",
    "[]",
    "{}",
    "[1, 2]",
    "[.nan]",
    "{a: 1}",
    "2020-01-01",
    "!!int 5",
    "&a 1",
    "*a",
]
WORDS += [
    "[" + "2, " * 500 + "2]",
    '"\\0"',
    "'" + "y" * 5000 + "'",
    "{class_path: os.system}",
    "<<",
    "- 1",
    "vqgan",
    "hvq",
]


@pytest.mark.robustness
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_a_config_with_other_lines_works_or_is_one_line(tmp_path_factory, capsys, data):
    file = data.draw(st.sampled_from(FILES))
    text = file.read_text()
    script = next(script for name, script in TRAININGS.items() if name in text.splitlines()[0])
    lines = text.splitlines()
    for _ in range(data.draw(st.integers(1, 3))):
        index = data.draw(st.integers(0, len(lines) - 1))
        what = data.draw(st.sampled_from(["value", "value", "value", "again", "gone", "indent", "letters"]))
        if what == "value":
            lines[index] = lines[index].partition(":")[0] + ": " + data.draw(st.sampled_from(NUMBERS + WORDS))
        elif what == "again":
            lines.insert(index, lines[index])
        elif what == "gone":
            lines[index] = "" if lines[index].startswith(" ") else lines[index]
        elif what == "indent":
            lines[index] = data.draw(st.sampled_from(["  ", " ", "\t", "- "])) + lines[index]
        else:
            place = data.draw(st.integers(0, len(lines[index])))
            lines[index] = lines[index][:place] + data.draw(st.text(max_size=3)) + lines[index][place:]
    mutated = tmp_path_factory.mktemp("fuzz") / "mutated.yaml"
    mutated.write_bytes("\n".join(lines).encode("utf-8", "surrogatepass"))
    use(script, mutated, capsys)


@pytest.mark.robustness
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_an_option_of_any_value_works_or_is_one_line(tmp_path_factory, capsys, data):
    script = data.draw(st.sampled_from(list(TRAININGS.values())))
    options = [name for name in vars(script.make_parser().get_defaults().as_flat()) if "." in name]
    chosen = data.draw(st.lists(st.sampled_from(options), min_size=1, max_size=4, unique=True))
    nested = {}
    for name in chosen:
        section, _, option = name.partition(".")
        large = [] if section in ("model", "unet", "prior", "adversarial") else LARGE_NUMBERS
        nested.setdefault(section, []).append(f"  {option}: {data.draw(st.sampled_from(NUMBERS + large + WORDS))}")
    file = tmp_path_factory.mktemp("fuzz") / "made.yaml"
    file.write_text("".join(f"{section}:\n" + "\n".join(lines) + "\n" for section, lines in nested.items()))
    use(script, file, capsys)


VALUES = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.dates() | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(
            st.text(string.ascii_letters + "._", max_size=8) | st.integers() | st.none(), inner, max_size=3
        )
    ),
    max_leaves=12,
)


@pytest.mark.robustness
@settings(max_examples=120, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_sections_of_any_structure_work_or_are_one_line(tmp_path_factory, capsys, data):
    script = data.draw(st.sampled_from(list(TRAININGS.values())))
    names = st.sampled_from(["model", "unet", "prior", "data", "optim", "run", "loss", "latents", "tokenizer"])
    written = data.draw(st.dictionaries(names | st.text(max_size=4), VALUES, min_size=1, max_size=3))
    file = tmp_path_factory.mktemp("fuzz") / "structure.yaml"
    file.write_bytes(yaml.safe_dump(written, allow_unicode=True).encode("utf-8", "surrogatepass"))
    use(script, file, capsys)


LARGE = {
    "train_tokenizer": ["--model.codebook_size", "16777216", "--model.codebook_dim", "65536"],
    "train_ldm": ["--unet.channels", "8388608", "--unet.head_channels", "32"],
    "train_pixelcnn": ["--prior.channels", "1048576"],
}


@pytest.mark.parametrize("name", TRAININGS)
def test_a_model_beyond_the_machine_is_refused_before_it_is_built(tmp_path, monkeypatch, name):
    """On a machine of any size: the models are of terabytes, which none could build."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_memory, "machine_memory", lambda device: 2**40)
    tokenizer = VQTokenizer(1, 32, codebook_size=8, codebook_dim=4, hidden_channels=8)
    tokenizer.save_pretrained("tokenizer")
    options = ["--optim.max_steps", "1", "--optim.batch_size", "4"]
    options += [] if name == "train_tokenizer" else ["--tokenizer", "tokenizer"]
    with pytest.raises(ValueError, match=r" [\d,]{10,} parameters, .* has 1,024 GiB: lower "):
        TRAININGS[name].main([*LARGE[name], *options])
    assert not Path("runs", "tokenizer").exists()


def test_a_dry_run_reckons_with_a_model_beyond_the_machine(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(model_memory, "machine_memory", lambda device: 2**30)
    large = ["--optim.batch_size", "4", "--model.codebook_size", "64", "--model.hidden_channels", "32768"]
    report = train_or_plan(train_tokenizer)([*large, "--dry_run", "1"])
    assert report.memory.total > 2**38


def test_the_bytes_of_a_parameter_are_counted():
    refuse_beyond(2**30, 16 * 2**30, 16 * 2**30, "x")
    with pytest.raises(ValueError) as error:
        refuse_beyond(2**30, 16 * 2**30, 16 * 2**30 - 1, "model.codebook_size")
    for part in ("1,073,741,824 parameters", "16 GiB", "15 GiB", "lower model.codebook_size"):
        assert part in str(error.value)
    layer = torch.nn.Linear(1000, 1000, bias=False)
    frozen = torch.nn.Linear(1000, 1000, bias=False).requires_grad_(False)
    run = Namespace(device=torch.device("cpu"))
    for model, needed in ((layer, 16_000_000), (frozen, 4_000_000)):
        for there in (needed, needed - 1):
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(model_memory, "machine_memory", lambda device, there=there: there)
                if there == needed:
                    model_memory.check_memory(run, lambda model=model: model, "x")
                else:
                    with pytest.raises(ValueError, match="1,000,000 parameters"):
                        model_memory.check_memory(run, lambda model=model: model, "x")


@pytest.mark.parametrize("name", TRAININGS)
def test_a_training_needs_no_argument(name):
    config = TRAININGS[name].make_parser().parse([])
    TRAININGS[name].check(config)
    assert config.data.name == "digits"


def test_nor_does_a_script_that_has_no_config_of_its_own():
    parser = ScriptParser("as sample.py, evaluate.py and quickstart.py")
    parser.add_argument("--seed", type=int, default=7)
    assert parser.parse([]).seed == 7
