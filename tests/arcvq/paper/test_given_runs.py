"""Runs that were begun outside a table, taken for its rows if they are the same trainings."""

import json
from pathlib import Path

import pytest
import yaml
from images import noise
from PIL import Image
from tiny_rows import make_rows_tiny, table

from arcvq.paper import command as reproduce
from arcvq.paper.budget import Budget
from arcvq.paper.given_runs import check_given, find_given
from arcvq.paper.row_runs import RowRuns
from arcvq.paper.tables import Row
from arcvq.training import tokenizer as train_tokenizer
from tokenizer.data.facts import dataset_info

SHORT = ("--optim.batch_size=128", "--optim.lr=1e-3", "--optim.schedule=cooldown", "--optim.max_steps=4")
# What a run may have of its own.
OWN = ("--run.name=mine", "--run.output_dir=elsewhere", "--run.log_every=1", "--run.mixed_precision=bf16")


@pytest.fixture
def rows(monkeypatch, tmp_path):
    make_rows_tiny(monkeypatch, tmp_path)


def arguments(*options):
    return ["--config=configs/mnist/arcvq.yaml", "--data.name=images", *SHORT, *OWN, *options]


def written(*options, name="mine"):
    """Writes a run folder with the settings of these options, as a training does before its first step."""
    parser = train_tokenizer.make_parser()
    config = parser.parse(arguments(*options))
    run = Path("elsewhere", name)
    run.mkdir(parents=True)
    (run / "config.yaml").write_text(yaml.safe_dump(parser.settings(config)))
    (run / "inputs.yaml").write_text(yaml.safe_dump({"data": dataset_info(config.data).images.fingerprint()}))
    return run


def wanted(seed=0, *options):
    config = reproduce.make_parser().parse(table(*options))
    return RowRuns(config, Budget.parse("4steps"), 4, Path("bench"), Row("arcvq"), seed).own_tokenizer


@pytest.mark.usefixtures("rows")
def test_a_run_of_its_own_name_threads_and_precision_is_the_rows_training_and_says_so():
    own = check_given(written("--run.threads=1", "--run.seed=3"), wanted(3))
    assert own == {"run.mixed_precision": ("bf16", "no"), "run.threads": (1, None)}


@pytest.mark.usefixtures("rows")
@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("--optim.lr=2e-3", r"optim.lr is 0.002, the row's 0.001"),
        ("--optim.batch_size=64", r"optim.batch_size is 64, the row's 128"),
        ("--optim.max_steps=5", r"optim.max_steps is 5, the row's 4"),
        ("--optim.schedule=constant", r"optim.schedule is 'constant'"),
        ("--model.quantizer=vq", r"model.quantizer is 'vq', the row's 'arc'"),
        ("--model.quantizer_options={margin: 0.5}", r"model.quantizer_options.margin is 0.5, the row's None"),
        ("--ema_decay=0.9", r"ema_decay is 0.9"),
        ("--run.seed=1", r"run.seed is 1, the row's 0"),
        ("--data.flip=true", r"data.flip is True"),
    ],
)
def test_another_training_is_refused_with_the_difference(option, said):
    with pytest.raises(ValueError, match=rf"elsewhere/mine is another training than the row's \({said}"):
        check_given(written(option), wanted())


@pytest.mark.usefixtures("rows")
def test_other_images_of_the_same_name_are_refused_and_the_same_under_another_are_not():
    run = written()
    Path("images").rename("moved")
    config = reproduce.make_parser().parse([*table(), "--images", "moved"])
    moved = RowRuns(config, Budget.parse("4steps"), 4, Path("bench"), Row("arcvq"), 0).own_tokenizer
    assert check_given(run, moved)["data.name"] == ("images", "moved")
    Image.fromarray(noise(1, 1, 28, 28)[0, 0].numpy()).save("moved/train/000.png")
    with pytest.raises(ValueError, match="elsewhere/mine was trained on other images than those of 'moved'"):
        check_given(run, moved)


@pytest.mark.usefixtures("rows")
def test_a_run_is_that_of_its_own_seed(monkeypatch):
    first, third = written(), written("--run.seed=3", name="third")
    monkeypatch.setenv("HOME", str(Path.cwd()))
    assert find_given({"arcvq": "~/elsewhere/mine"}, ["arcvq"], [0])["arcvq", 0].run == first.absolute()
    found = find_given({"arcvq": [str(first), str(third)]}, ["vq", "arcvq"], [0, 3])
    assert {key: run.run for key, run in found.items()} == {("arcvq", 0): first, ("arcvq", 3): third}
    for given, said in (
        ({"arcvq": str(third)}, r"elsewhere/third has seed 3; take --seeds '\[0, 3\]'"),
        ({"arcvq": [str(first), str(first)]}, "both have seed 0"),
        ({"arc": str(first)}, "no row 'arc'; it has vq, arcvq"),
        ({"vq": "elsewhere"}, "vq: elsewhere is no run of a tokenizer"),
    ):
        with pytest.raises(ValueError, match=said):
            find_given(given, ["vq", "arcvq"], [0])


@pytest.mark.slow
@pytest.mark.usefixtures("rows")
def test_a_table_goes_on_with_a_given_run_in_its_folder_and_measures_it(capsys):
    train_tokenizer.main(arguments("--run.seed=3", "--run.checkpoint_every=1"))
    weights = Path("elsewhere/mine/tokenizer/diffusion_pytorch_model.safetensors")
    whole = weights.read_bytes()
    weights.unlink()
    for left in (weights.with_name("config.json"), *Path("elsewhere/mine/checkpoints/step-4").iterdir()):
        left.unlink()
    weights.parent.rmdir()
    Path("elsewhere/mine/checkpoints/step-4").rmdir()
    reproduce.main(table("--runs", "{arcvq: elsewhere/mine}", rows="[arcvq]", seeds="[3]"))
    assert weights.read_bytes() == whole  # its own precision, to the bit
    bench = Path("runs/reproduce/mnist-4steps")
    assert not (bench / "arcvq-seed3").exists()
    row = json.loads((bench / "table_12-mnist.json").read_text())["rows"]["ArcVQ-VAE"]
    cost = row["trainings"]["3"]["tokenizer"]
    assert cost["run"] == "elsewhere/mine" and cost["own_settings"] == {"run.mixed_precision": ["bf16", "no"]}
    measured = json.loads(Path("elsewhere/mine/evaluation/reconstruction-official_jpeg.json").read_text())
    assert row["all"]["3"] == measured["numbers"] and row["history"]["3"][-1]["step"] == 4
    assert "run.mixed_precision bf16 (the table: no)" in (bench / "table_12-mnist.md").read_text()
    assert "arcvq-seed3 is elsewhere/mine" in capsys.readouterr().out
