import json
from itertools import count
from math import isfinite

import torch

from arcvq.runs import log as run_log
from arcvq.runs.log import LoaderClock, Means, RunLog, last_step
from arcvq.runs.named_scalars import Terms


class Clock:
    """Time that passes when it is told to."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr(run_log.time, "perf_counter", lambda: self.now)

    def slow(self, items, seconds):
        for item in items:
            self.now += seconds
            yield item


def test_the_share_of_the_time_that_goes_into_waiting(monkeypatch):
    clock = Clock(monkeypatch)
    loader, found = LoaderClock(), []
    for step, _ in enumerate(loader.timed(clock.slow(range(6), 0.25), 8)):
        clock.now += 0.75 if step < 4 else 0.0
        if step in (3, 5):
            found.append(loader.take())
    assert found[0] == {"loader_share": 0.25, "images_per_second": 8.0}
    assert found[1] == {"loader_share": 1.0, "images_per_second": 32.0}  # of the time since then alone


def test_the_batches_pass_unchanged_and_none_is_fetched_early():
    source = count()
    batches = LoaderClock().timed(source, 1)
    assert [next(batches) for _ in range(3)] == [0, 1, 2] and next(source) == 3
    assert list(LoaderClock().timed("abc", 1)) == ["a", "b", "c"]


def test_means_are_over_what_was_added_and_begin_anew():
    means = Means(torch.device("cpu"))
    means.add(Terms.stack({"loss": torch.tensor(1.0, requires_grad=True), "usage": torch.tensor(3)}))
    means.add(Terms.stack({"loss": torch.tensor(2.0).bfloat16(), "r1": torch.tensor(5.0, dtype=torch.float64)}))
    names, values = means.take()
    assert dict(zip(names, values.tolist(), strict=True)) == {"loss": 1.5, "usage": 3.0, "r1": 5.0}
    assert not values.requires_grad and values.dtype == torch.float32
    means.add(Terms.stack({"loss": torch.tensor(4.0), "arc": torch.tensor(torch.inf)}))
    names, values = means.take()
    assert {name: value for name, value in zip(names, values.tolist(), strict=True) if isfinite(value)} == {"loss": 4.0}


def test_a_resumed_log_goes_on_after_the_last_checkpoint(tmp_path):
    log = RunLog(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, {"loss": step / 2})
    log.close()
    with (tmp_path / "metrics.jsonl").open("a") as lines:
        lines.write('{"step": Infinity}\n' + "[" * 100_000 + "\n")
    with (tmp_path / "metrics.jsonl").open("ab") as lines:  # what a killed process leaves, or a damaged disk
        lines.write(b'\xff\xfe\0\n{"step": 6, "lo')
    log = RunLog(tmp_path, 3)
    log.write(4, {"loss": 9.0})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [(line["step"], line["loss"]) for line in lines] == [(1, 0.5), (2, 1.0), (3, 1.5), (4, 9.0)]


def test_the_step_is_that_of_the_last_whole_line(tmp_path):
    assert last_step(tmp_path) == 0
    log = tmp_path / "metrics.jsonl"
    log.write_text("".join(json.dumps({"step": step, "padding": 50 * "x"}) + "\n" for step in range(1000)))
    assert last_step(tmp_path) == 999
    with log.open("a") as lines:
        lines.write('{"step": 10')
    assert last_step(tmp_path) == 999
