"""What a training has cost, from the files of its run folder, and its curves."""

import json

import pytest
import yaml

from arcvq.paper.rows import history, save_intervals
from arcvq.paper.training_cost import cost_of, logged_hours


def lines(*records):
    return "".join(json.dumps(record) + "\n" for record in records)


@pytest.fixture
def run(tmp_path):
    """A run of 100 steps of 50 images, whose speed changed."""
    (tmp_path / "config.yaml").write_text(yaml.safe_dump({"optim": {"max_steps": 100, "batch_size": 50}}))
    log = [{"step": step, "images_per_second": 10.0 if step <= 40 else 25.0} for step in range(20, 81, 20)]
    (tmp_path / "metrics.jsonl").write_text(lines(*log, {"step": 80, "test_psnr": 20.0}) + '{"step": 10')
    return tmp_path


def start(step, commit="a", processor="fast", threads=2):
    machine = {"processor": processor, "threads": threads, "cores": 2, "processes": 1, "device": "cpu"}
    return {"step": step, "commit": commit, "versions": {}, **machine}


def test_hours_are_those_of_the_logged_steps_each_at_its_own_speed(run):
    assert logged_hours(run, 80, 50) == (pytest.approx((40 * 5 + 40 * 2) / 3600), 80)
    assert logged_hours(run, 50, 50) == (pytest.approx((40 * 5 + 10 * 2) / 3600), 50)  # of a checkpoint before the end
    assert logged_hours(run, 100, 50) == (pytest.approx(280 / 3600), 80)
    assert logged_hours(run / "none", 80, 50) == (None, 0)


def test_commits_and_processors_are_those_of_the_starts_that_made_the_weights(run):
    starts = [start(0, "lost"), start(0, "a"), start(30, "b", "slow", 1), start(60, "repeated"), start(50, None)]
    (run / "starts.jsonl").write_text(lines(*starts))
    cost = cost_of(run, 80)
    assert cost.commits == ("a", "b", "no git checkout") and cost.state == "step 80 of 100"
    assert cost.processors == ("fast", "slow") and cost.threads == (2, 1)
    assert cost_of(run, 40).commits == ("a", "b") and cost_of(run, 30).commits == ("a",)
    assert cost_of(run).state == "finished" and cost_of(run).step == 100
    assert cost_of(run, 0).state == "begun, no whole checkpoint" and cost_of(run / "none", 0).state == "not begun"


def test_what_older_runs_did_not_record_is_said_to_be_missing(run):
    assert cost_of(run, 80).commits == ("not recorded",) and cost_of(run, 80).processors == ("not recorded",)
    (run / "starts.jsonl").write_text(lines(start(60, "new")))  # resumed by newer code
    assert cost_of(run, 80).commits == ("not recorded", "new")
    (run / "starts.jsonl").write_text("broken\n")
    with pytest.raises(ValueError, match=r"line 1 of .*starts.jsonl is no start"):
        cost_of(run, 80)


def test_curves_have_the_evaluations_and_the_share_on_the_ball_before_each(tmp_path):
    log = [{"step": step, "share_on_ball": step / 100, "train_usage": 0.5} for step in range(10, 60, 10)]
    log.insert(3, {"step": 35, "test_psnr": 1.0, "test_usage": 0.25})
    log.insert(5, {"step": 40, "test_psnr": 2.0})
    (tmp_path / "metrics.jsonl").write_text(lines(*log))
    assert history(tmp_path) == [
        {"step": 30, "share_on_ball": 0.3},
        {"step": 35, "psnr": 1.0, "usage": 0.25},
        {"step": 40, "share_on_ball": 0.4, "psnr": 2.0},
        {"step": 50, "share_on_ball": 0.5},
    ]
    assert history(tmp_path / "none") == []


def test_a_long_run_is_saved_every_few_hundred_steps_and_a_short_one_five_times():
    assert set(save_intervals(400).values()) == {80} and set(save_intervals(24_000).values()) == {480}
