"""--config takes a path, or the name of a config that comes with the project."""

import pytest

from arcvq.cli import configs
from arcvq.cli.configs import CONFIGS, config_names, find_config
from arcvq.cli.parser import ScriptParser


@pytest.fixture(autouse=True)
def elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def parser():
    parser = ScriptParser("Does something.")
    parser.add_argument("--data.name", type=str, default="digits")
    return parser


@pytest.mark.parametrize("name", config_names())
def test_every_config_is_found_by_its_name(name):
    for spelling in (name, f"configs/{name}", f"./configs/{name}", name.removesuffix(".yaml"), str(CONFIGS / name)):
        assert find_config(spelling) == CONFIGS / name


def test_a_path_that_exists_comes_before_a_name(tmp_path):
    ours = tmp_path / "mnist" / "arcvq.yaml"
    ours.parent.mkdir()
    ours.write_text("data: {name: ours}")

    assert find_config("mnist/arcvq.yaml").resolve() == ours
    assert find_config("configs/mnist/arcvq.yaml") == CONFIGS / "mnist" / "arcvq.yaml"


def test_a_path_may_begin_at_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "ours.yaml").write_text("")

    assert find_config("~/ours.yaml") == tmp_path / "ours.yaml"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("mnist/arcqv.yaml", "mnist/arcvq.yaml"),
        ("arcvq.yaml", "cifar10/arcvq.yaml or mnist/arcvq.yaml"),  # of several data sets: none is taken
        ("arcvq", "cifar10/arcvq.yaml or mnist/arcvq.yaml"),
        ("qqq", "mnist/"),
        ("../configs/mnist/arcvq.yaml", "mnist/arcvq.yaml"),
        ("accelerate/one_gpu.yaml", "configs has"),
    ],
)
def test_a_name_that_is_none_names_those_that_are_close(name, meant):
    with pytest.raises(ValueError) as error:
        find_config(name)

    assert name in str(error.value) and meant in str(error.value)


def test_the_file_is_printed_where_it_was_found_by_name_and_by_the_first_process_alone(
    parser, tmp_path, monkeypatch, capsys
):
    monkeypatch.setattr(configs, "CONFIGS", tmp_path / "installed")
    (tmp_path / "installed" / "mnist").mkdir(parents=True)
    file = tmp_path / "installed" / "mnist" / "ours.yaml"
    file.write_text("data.name: mnist")

    for words in (["--config", "mnist/ours.yaml"], ["--config=mnist/ours"]):
        assert parser.parse(words).data.name == "mnist"
        assert capsys.readouterr().out == f"config: {file}\n"

    monkeypatch.setenv("RANK", "1")
    assert parser.parse(["--config", "mnist/ours"]).data.name == "mnist"
    monkeypatch.delenv("RANK")
    assert parser.parse(["--config", str(file)]).data.name == "mnist"
    assert capsys.readouterr().out == ""


def test_a_config_that_is_not_there_is_one_line(parser, capsys):
    with pytest.raises(SystemExit) as end:
        parser.parse(["--config", "mnist/arcqv.yaml"])

    line = capsys.readouterr().err
    assert end.value.code == 2 and line.count("\n") == 1 and "did you mean mnist/arcvq.yaml" in line
