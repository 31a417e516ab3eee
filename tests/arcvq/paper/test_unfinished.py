"""Rows of trainings that are not at their end: the same weights as the training's own export, and nothing touched."""

import hashlib
import json
import shutil
from pathlib import Path

import pytest
from safetensors.torch import load_file, save_file
from tiny_rows import make_rows_tiny, table

from arcvq.checkpoints.manifest import read_progress, write_manifest
from arcvq.paper import command as reproduce
from arcvq.paper import snapshots
from arcvq.paper.budget import Budget
from arcvq.paper.result_table import ResultTable, write_table
from arcvq.paper.row_runs import RowRuns
from arcvq.paper.snapshots import read_newest, take_snapshot
from arcvq.paper.tables import Row, Table
from arcvq.paper.training_cost import TrainingCost
from tokenizer import VQTokenizer

WEIGHTS = "diffusion_pytorch_model.safetensors"
BENCH = Path("runs/reproduce/mnist-4steps")


def contents(folder):
    return {file: hashlib.sha256(file.read_bytes()).hexdigest() for file in folder.rglob("*") if file.is_file()}


def trained(name="arcvq"):
    """Trains a row's tokenizer; returns its run folder and its parsed options."""
    config = reproduce.make_parser().parse(table())
    training = RowRuns(config, Budget.parse("4steps"), 4, BENCH, Row(name), 0).tokenizer
    training.script.main(training.arguments)
    return training.run, training.script.make_parser().parse(training.arguments)


@pytest.mark.parametrize(
    "options",
    [{}, {"ema_decay": 0.9}, {"ema_decay": 0.9, "adversarial": {"weight": 0.1, "channels": 8, "layers": 1}}],
    ids=["raw", "averaged", "averaged, with a discriminator"],
)
def test_the_newest_checkpoint_is_the_tokenizer_that_its_training_exports(options, monkeypatch, tmp_path):
    make_rows_tiny(monkeypatch, tmp_path, **options)
    run, config = trained()
    exported = load_file(run / "tokenizer" / WEIGHTS)
    last = 1 if "adversarial" in options else 0
    raw = load_file(run / "checkpoints/step-4" / ("model_1.safetensors" if last else "model.safetensors"))
    assert raw["encoder.conv_in.weight"].equal(exported["encoder.conv_in.weight"]) == (not options)
    snapshot = take_snapshot(run, config, Path("unfinished"))
    found = load_file(snapshot.folder / "tokenizer" / WEIGHTS)
    assert snapshot.step == 4 and found.keys() == exported.keys()
    assert all(found[name].equal(exported[name]) for name in exported)
    assert VQTokenizer.from_pretrained(snapshot.folder / "tokenizer").config.quantizer == "arc"
    if options:
        with pytest.raises(ValueError, match="has averaged weights, but ema_decay is None"):
            config.ema_decay = None
            take_snapshot(run, config, Path("other"))


@pytest.mark.slow
def test_a_row_is_measured_at_its_step_and_later_anew_when_it_is_finished(monkeypatch, tmp_path):
    make_rows_tiny(monkeypatch, tmp_path, ema_decay=0.9)
    run, _ = trained()
    shutil.rmtree(run / "tokenizer")
    shutil.rmtree(run / "checkpoints/step-4")
    before = contents(run)
    reproduce.main(table("--unfinished", "true"))
    assert contents(run) == before and not (BENCH / "vq-seed0").exists()
    unfinished = json.loads((BENCH / "table_12-mnist.json").read_text())["rows"]
    assert unfinished["ArcVQ-VAE"]["state"] == "step 3 of 4" and unfinished["VQ-VAE"]["state"] == "not begun"
    assert unfinished["VQ-VAE"]["ours"] == {} and unfinished["VQ-VAE"]["history"] == {}
    text = (BENCH / "table_12-mnist.md").read_text()
    assert "| ArcVQ-VAE (`arcvq`), step 3 of 4 | " in text and "| VQ-VAE (`vq`), not begun | - " in text
    (measured,) = BENCH.glob("unfinished/arcvq-seed0-step3-*")

    reproduce.main(table(rows="[arcvq]"))  # resumes, and measures the result
    finished = json.loads((BENCH / "table_12-mnist.json").read_text())["rows"]["ArcVQ-VAE"]
    assert finished["state"] == "finished" and finished["ours"] != unfinished["ArcVQ-VAE"]["ours"]
    assert [start["step"] for start in map(json.loads, (run / "starts.jsonl").read_text().splitlines())] == [0, 3]
    (result,) = measured.glob("evaluation/*.json")
    assert json.loads(result.read_text())["numbers"] == unfinished["ArcVQ-VAE"]["all"]["0"]

    reproduce.main(table("--unfinished", "true"))  # a finished one is the finished one
    again = json.loads((BENCH / "table_12-mnist.json").read_text())["rows"]["ArcVQ-VAE"]
    assert again == finished and len(list(BENCH.glob("unfinished/*"))) == 1


def test_the_weights_of_another_run_with_this_name_and_step_are_measured_anew(monkeypatch, tmp_path):
    make_rows_tiny(monkeypatch, tmp_path)
    run, config = trained()
    first = take_snapshot(run, config, Path("unfinished"))
    assert take_snapshot(run, config, Path("unfinished")) == first
    checkpoint = run / "checkpoints/step-4"
    model = load_file(checkpoint / "model.safetensors")
    save_file({name: 2 * tensor for name, tensor in model.items()}, checkpoint / "model.safetensors")
    progress = read_progress(checkpoint)
    (checkpoint / "progress.json").unlink()
    write_manifest(checkpoint, progress)
    second = take_snapshot(run, config, Path("unfinished"))
    assert second.step == first.step and second.folder != first.folder
    assert load_file(second.folder / "tokenizer" / WEIGHTS)["decoder.conv_out.bias"].equal(
        2 * model["decoder.conv_out.bias"]
    )


def test_a_damaged_checkpoint_is_passed_over_where_it_is_and_a_deleted_one_is_looked_for_again(
    monkeypatch, tmp_path, capsys
):
    make_rows_tiny(monkeypatch, tmp_path)
    run, _ = trained()
    newest = run / "checkpoints/step-4"
    aside = shutil.copytree(newest, tmp_path / "aside")
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    before = contents(run)
    assert read_newest(run).step == 3 and contents(run) == before
    assert "step-4 is damaged (model.safetensors is not as it was written)" in capsys.readouterr().err

    # The training writes step 4 and deletes step 3 while step 3 is read.
    shutil.rmtree(newest)
    real = snapshots.read_stored

    def read_late(checkpoint, name):
        if checkpoint.name == "step-3" and checkpoint.is_dir():
            shutil.copytree(aside, newest)
            shutil.rmtree(checkpoint)
        return real(checkpoint, name)

    monkeypatch.setattr(snapshots, "read_stored", read_late)
    assert read_newest(run).step == 4


def test_finished_and_unfinished_numbers_never_mix(tmp_path):
    cost = {
        "finished": TrainingCost("a", "finished", 9, 9),
        "at 5": TrainingCost("b", "step 5 of 9", 5, 9),
        "not begun": TrainingCost("c", "not begun"),
    }
    table = Table(
        "title", ("psnr",), {name: Row(name, {"mnist": (20.0 + index,)}) for index, name in enumerate("ABCDE")}
    )
    results = ResultTable(list(table.rows), [0, 1])
    for row, seeds in {"A": ("finished", "at 5"), "B": ("at 5", "at 5"), "C": ("finished", "finished")}.items():
        for seed, state in enumerate(seeds):
            results.add(row, seed, {"psnr": 10.0 + seed + ord(row)}, trainings={"tokenizer": cost[state]})
    results.add("D", 0, {}, trainings={"tokenizer": cost["not begun"]})  # nothing of E, which has failed
    facts = {"table": "t", "data": "mnist", "title": "", "budget": "", "training": {}, "priors": {}}
    facts |= {"measured_at": [], "command": "", "commit": "", "failures": []}
    write_table(results, table, "mnist", facts, tmp_path / "t")
    found = json.loads((tmp_path / "t.json").read_text())
    assert found["rows"]["A"]["ours"]["psnr"]["seeds"] == [75.0] and found["rows"]["B"]["ours"]["psnr"]["mean"] == 76.5
    states = {name: row["state"] for name, row in found["rows"].items()}
    assert states == {
        "A": "seed 1: step 5 of 9, not in the mean",
        "B": "step 5 of 9",
        "C": "finished",
        "D": "not begun",
        "E": "failed",
    }
    assert found["order"]["psnr"] == {"as_in_the_paper": 0, "reversed": 0, "open": 1}  # A and C alone


def test_a_table_without_a_number_is_a_table(monkeypatch, tmp_path):
    make_rows_tiny(monkeypatch, tmp_path)
    reproduce.main(table("--unfinished", "true"))
    text = (BENCH / "table_12-mnist.md").read_text()
    assert "measured at" not in text
    begin = text.splitlines().index("| nothing is measured yet |")
    assert text.splitlines()[begin + 1 : begin + 5] == [
        "|---|",
        "| VQ-VAE (`vq`), not begun |",
        "| ArcVQ-VAE (`arcvq`), not begun |",
        "",
    ]


def test_a_row_of_finished_parts_has_no_unfinished_one():
    with pytest.raises(ValueError, match="unfinished: row 'PixelCNN, VQ-VAE' of table_13 is made of a finished"):
        reproduce.main(["table_13", "--data", "mnist", "--budget", "4steps", "--unfinished", "true"])
    with pytest.raises(ValueError, match="runs: row 'linear codebook, 256' of reduction is made of a finished"):
        reproduce.main(["reduction", "--data", "mnist", "--budget", "4steps", "--runs", "{lc: runs/lc}"])
