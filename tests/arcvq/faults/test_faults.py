"""Trainings that are killed, starved and told NaN end as if nothing had happened; broken inputs are refused."""

import errno
import json
import os
import resource

import pytest

from arcvq.faults import command as faults
from arcvq.faults import inputs as fault_inputs
from arcvq.faults.states import FAULTS, FaultyRun, training_for
from arcvq.faults.trainings import fault_trainings, kills

SINGLE = ["tokenizer", "tokenizer-gan", "ldm", "pixelcnn"]


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    return tmp_path_factory.mktemp("faults")


@pytest.fixture(scope="module")
def trainings(home):
    found = {training.name: training for training in fault_trainings(home)}
    found["tokenizer"].finish(home, "tokenizer")
    return found


@pytest.mark.robustness
@pytest.mark.parametrize("name", SINGLE)
def test_a_killed_training_ends_with_the_weights_and_the_log_of_one_never_killed(home, trainings, name):
    found = list(kills(trainings[name], home, 3, seed=1))
    assert [same for _, same in found] == [True] * 3, found


@pytest.mark.robustness
@pytest.mark.parametrize("way", ["2 processes", "streamed by 2 workers"])
@pytest.mark.parametrize("name", SINGLE)
def test_so_do_several_processes_and_streamed_images(home, trainings, name, way):
    assert [same for _, same in kills(trainings[f"{name}, {way}"], home, 1, seed=2)] == [True]


STATUS = {
    "SIGTERM": 143,
    "SIGUSR1": 138,
    "flipped byte in the newest checkpoint": 0,
    "newest checkpoint half written": 0,
    "flipped byte in the stored latents": 0,
}
SAID = {
    "full disk (ulimit -f)": "the disk is full, or a file may not grow so large; mend that and start",
    "checkpoints read-only": f"{os.strerror(errno.EACCES)}: ",
    "run folder renamed": "",
    "flipped byte in the newest checkpoint": "step-20 is damaged (",
    "newest checkpoint half written": "step-20 is damaged (optimizer.bin has ",
    "truncated shard": "error: shard shards/train-1.parquet cannot be read",
    "flipped byte in the stored latents": "damaged, computed again: runs/cache/latents-train-",
    "second start in one folder": "is in use by process ",
    "SIGTERM": "SIGTERM: step ",
    "SIGUSR1": "SIGUSR1: step ",
}


QUICK = ("flipped byte in the newest checkpoint", "SIGTERM")


@pytest.mark.parametrize(
    "name", [name if name in QUICK else pytest.param(name, marks=pytest.mark.robustness) for name in FAULTS]
)
def test_a_fault_leaves_the_last_state_and_says_what_it_is(home, trainings, name):
    training = trainings[training_for(name)]
    whole = f"{training.name.partition(',')[0]}-{len(training.options)}"
    if not (home / "runs" / whole).exists():
        training.finish(home, whole)
    outcome = FAULTS[name](
        FaultyRun(training, home, name.partition(" (")[0].replace(" ", "-")), training.result(home, whole)[0]
    )
    assert outcome.equal, outcome
    assert outcome.status == STATUS.get(name, 2) and SAID[name] in outcome.said and "TRACEBACK" not in outcome.said
    assert int(outcome.kept.removeprefix("step-")) >= 20
    if name.startswith("SIG"):
        assert f": {outcome.kept.replace('-', ' ')} is saved" in outcome.said and outcome.kept != "step-20"


QUICK_TERMS = [("tokenizer-gan", "codebook"), ("tokenizer-gan", "discriminator"), ("pixelcnn", "loss")]


@pytest.mark.parametrize(
    ("name", "term"),
    [
        pytest.param(name, term, marks=() if (name, term) in QUICK_TERMS else pytest.mark.slow)
        for name, terms in faults.NAN_TERMS.items()
        for term in terms
    ],
)
def test_a_term_that_is_nan_is_named_and_never_reaches_what_is_saved(home, trainings, name, term):
    row = faults.with_nan(trainings[name], home, term, "22:24")
    assert row["status"] == 0 and row["finite"] and not row["traceback"]
    named = term.removesuffix("@1")  # on the second of two processes alone
    assert row["said"] == [f"warning: step 22 is skipped: {named} is not finite"]
    folder = home / "runs" / faults.nan_run(trainings[name], term, "22:24")
    log = map(json.loads, (folder / "metrics.jsonl").read_text().splitlines())
    skipped = {line["step"]: line["skipped_steps"] for line in log if "skipped_steps" in line}
    assert [skipped[step] for step in (20, 22, 24, 26, 40)] == [0, 1, 2, 2, 2]


@pytest.mark.parametrize(
    ("name", "term"), [("tokenizer-gan", "generator"), pytest.param("pixelcnn", "loss", marks=pytest.mark.slow)]
)
def test_a_term_that_stays_nan_ends_the_run_with_the_state_before_it(home, trainings, name, term):
    row = faults.with_nan(trainings[name], home, term, "22:")
    assert row["status"] == 2 and row["saved"] == "step-21" and row["finite"]
    first, last = row["said"]
    assert first == f"warning: step 22 is skipped: {term} is not finite"
    assert f"10 steps in a row were skipped, from step 22 on, in which {term} is not finite" in last
    assert "step-21 is from before and untouched" in last


@pytest.mark.robustness
def test_broken_inputs_are_taken_or_refused():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    found = fault_inputs.try_inputs(1000, seed=3)
    for numbers in found.values():
        assert numbers["inputs"] == 500 == numbers["taken"] + numbers["refused"], numbers["failures"]
        assert min(numbers["taken"], numbers["refused"]) > 10
        assert numbers["slowest_s"] < fault_inputs.LONGEST_S
    # The largest image that is taken has its pixels twice, whatever the process has held before.
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < 1.5 * 2**30


def test_what_is_no_error_of_ours_is_counted_as_such():
    tally = fault_inputs.Tally()

    def fail():
        raise KeyError("x")

    tally.add(fail, "an input")
    assert tally.numbers()["foreign error"] == 1 and "KeyError" in tally.failures[0]
