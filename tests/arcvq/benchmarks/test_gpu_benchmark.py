"""The GPU benchmark without a GPU: what it counts, what it says of a part that fails, the whole command in small."""

import json
import math
import subprocess
import sys
import time
import warnings
from types import SimpleNamespace

import psutil
import pytest
import torch
from places import ROOT
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from arcvq.benchmarks.gpu import command, part_process, part_worker, watched_steps
from arcvq.benchmarks.gpu.bench import LeftOut
from arcvq.benchmarks.gpu.device_step import DeviceTraining
from arcvq.benchmarks.gpu.needs import beside_limit, needs_of
from arcvq.benchmarks.gpu.part_worker import NO_TIME, PARTS, Part
from arcvq.benchmarks.gpu.sizes import SIZES
from arcvq.benchmarks.gpu.waits import reported_waits
from arcvq.benchmarks.gpu.watched_steps import WatchedSteps
from arcvq.training import tokenizer as train_tokenizer
from tokenizer.functional import vectors

CPU = torch.device("cpu")


def test_the_flops_are_those_of_torchs_own_counter():
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * 6 * 6, 7))
    images = torch.randn(2, 3, 8, 8, requires_grad=True)

    def work():
        network(images).sum().backward()

    with FlopCounterMode(display=False) as expected:
        work()
    assert needs_of(work)["flops"] == {"float32": expected.get_total_flops()}
    with torch.autocast("cpu", torch.bfloat16):
        assert set(needs_of(work)["flops"]) == {"bf16"}


@pytest.mark.parametrize(
    ("operation", "numbers"),
    [
        (lambda a, b: a + b, 3),
        (lambda a, b: a.add_(b), 3),
        (lambda a, b: a.view(-1).t(), 0),
        (lambda a, b: torch.empty(100), 0),
        (lambda a, b: torch._foreach_add_([a, b], 1.0), 4),
        (lambda a, b: b[:1].expand(100) + a, 2 + 1 / 100),  # one number, read a hundred times, is read once
        (lambda a, b: torch.add(a, a, out=b), 3),
    ],
)
def test_the_bytes_are_what_operations_read_and_write(operation, numbers):
    first, second = torch.ones(100), torch.ones(100)
    assert needs_of(lambda: operation(first, second))["bytes"] == pytest.approx(400 * numbers)


def test_a_figure_stands_beside_the_larger_of_its_two_limits():
    limits = {"bytes_per_s": 100.0, "flops_per_s": {"bf16": 1000.0, "float32": 10.0}}
    figure = {"seconds": 8.0, "needs": {"bytes": 200, "flops": {"bf16": 1000, "float32": 30}}}
    found = beside_limit(figure, limits)["limit"]
    assert found == {"least_s_by_bytes": 2.0, "least_s_by_flops": 4.0, "seconds": 4.0, "time_over_limit": 2.0}
    figure["needs"]["bytes"] = 1600
    assert beside_limit(figure, limits)["limit"]["time_over_limit"] == 0.5
    assert beside_limit({"failed": "x"}, limits) == {"failed": "x"} and beside_limit(figure, None) is figure


def test_a_wait_is_told_by_the_line_of_this_project(monkeypatch):
    modes, waits, promote_types = ["default"], [], torch.promote_types
    monkeypatch.setattr(torch.cuda, "get_sync_debug_mode", lambda: modes[-1])
    monkeypatch.setattr(torch.cuda, "set_sync_debug_mode", modes.append)

    def waiting(*arguments):  # a function of torch that a line of this project calls
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
        return promote_types(*arguments)

    monkeypatch.setattr(vectors.torch, "promote_types", waiting)
    with reported_waits(waits.append):
        for _ in range(2):
            vectors.at_least_float32(torch.ones(1), torch.ones(1))
        warnings.warn("of something else", stacklevel=1)
    assert modes == ["default", "warn", "default"]
    assert len(waits) == 2 and waits[0] == waits[1]
    assert waits[0].startswith("tokenizer/functional/vectors.py:") and waits[0].endswith(" in at_least_float32")


def test_the_steps_of_a_training_are_timed_from_outside():
    weight = nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.AdamW([weight])
    with WatchedSteps(8, CPU) as watched:
        for _ in range(8):
            optimizer.step()
    optimizer.step()  # no longer seen
    assert watched.result()["timed_steps"] == 5 and 0 < watched.result()["seconds"] <= watched.result()["slowest_s"]


class FakeEvent:
    """A mark of a GPU's clock, which goes on by a millisecond with each."""

    made = 0

    def __init__(self, enable_timing):
        assert enable_timing

    def record(self):
        FakeEvent.made += 1
        self.time = FakeEvent.made

    def elapsed_time(self, other):
        return float(other.time - self.time)


class FakeProfile:
    """A profile of two steps."""

    def __init__(self, activities):
        self.running = False

    def start(self):
        self.running = True

    def stop(self):
        assert self.running

    def key_averages(self):
        counts = {"cudaLaunchKernel": 300, "cuLaunchKernelEx": 4, "cudaMemcpyAsync": 2, "void kernel<float>": 304}
        return [SimpleNamespace(key=key, count=count) for key, count in counts.items()]


def test_on_a_gpu_waits_and_launches_are_those_of_steady_steps(monkeypatch):
    for name, stand_in in (
        ("Event", FakeEvent),
        ("synchronize", lambda: None),
        ("get_sync_debug_mode", lambda: 0),
        ("set_sync_debug_mode", lambda mode: None),
    ):
        monkeypatch.setattr(torch.cuda, name, stand_in)
    monkeypatch.setattr(watched_steps, "profile", FakeProfile)
    optimizer = torch.optim.AdamW([nn.Parameter(torch.zeros(1))])
    with WatchedSteps(16, torch.device("cuda")) as watched:
        for _ in range(16):  # each step waits once, and so do what comes before and after all
            warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
            optimizer.step()
        warnings.warn("called a synchronizing CUDA operation", stacklevel=1)
    found = watched.result()
    # Steps 3 to 15, but for the two profiled ones; of the times also the one after, in which the profiler ended.
    assert list(found["waits"].values()) == [11] and found["timed_steps"] == 10
    assert found["seconds"] == found["slowest_s"] == pytest.approx(1e-3)
    assert found["launches_per_step"] == 152 and found["calls_per_step"]["cudaMemcpyAsync"] == 1
    assert not any("kernel<" in name for name in found["calls_per_step"])


def printed(*figures):
    return [["a", "b", "c"], *figures]


def test_what_a_process_did_not_come_to_is_named():
    first = {"name": "a", "figure": {"seconds": 1.0}}
    over = part_process._result(printed(first), NO_TIME, "Killed", 3.0)
    assert over.figures == {"a": {"seconds": 1.0}} and over.left_out == {"b": NO_TIME, "c": NO_TIME}
    broken = part_process._result(printed(first), None, "device-side assert", 3.0)
    assert broken.figures["b"] == {"failed": "device-side assert"} and broken.left_out == {"c": "the process had ended"}
    assert part_process._result([], None, "no module", 3.0).figures == {"start": {"failed": "no module"}}
    whole = part_process._result(printed(first, {"name": "b", "left_out": "x"}, first | {"name": "c"}), None, "", 3.0)
    assert list(whole.figures) == ["a", "c"] and whole.left_out == {"b": "x"}


@pytest.mark.parametrize(("seconds", "expected"), [(100.0, ["failed", "left_out", "figure"]), (0.0, ["left_out"] * 3)])
def test_a_figure_that_fails_does_not_take_the_others_along(seconds, expected, monkeypatch, capfd):
    def fail():
        raise RuntimeError("out of\nmemory")

    def refuse():
        raise LeftOut("no room")

    def figures(bench):
        yield "fails", fail
        yield "refuses", refuse
        yield "works", lambda: print("loud") or {"seconds": 1.0}

    monkeypatch.setitem(PARTS, "made up", Part("made_up:figures", 1.0))
    monkeypatch.setattr(part_worker.importlib, "import_module", lambda name: SimpleNamespace(figures=figures))
    part_worker.work_on("made up", CPU, SIZES["tiny"], seconds)
    names, *found = map(json.loads, capfd.readouterr().out.splitlines())
    assert names == ["fails", "refuses", "works"] == [figure["name"] for figure in found]
    assert ["failed" if "failed" in one.get("figure", {}) else list(one)[1] for one in found] == expected
    if seconds:
        assert found[0]["figure"]["failed"] == "RuntimeError: out of memory" and found[1]["left_out"] == "no room"


def test_a_step_on_a_device_is_a_step_of_the_training():
    words = ["--config=cifar10/arcvq.yaml", "--optim.batch_size=4", "--ema_decay=0.9", "--model.hidden_channels=8"]
    made = DeviceTraining.of(train_tokenizer, words, CPU)
    batch = made.batch()
    assert batch["images"].shape == (4, 3, 32, 32)
    before = [weight.detach().clone() for weight in made.run.model.parameters()]
    for _ in range(25):  # beyond the interval of the log
        made.step(batch)
    assert made.run.step == 25 and made.run.average is not None
    assert any(not torch.equal(*pair) for pair in zip(before, made.run.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--parts", "[cards]"], "unknown part 'cards'; there are card, tests,"),
        (["--parts", "[]"], "parts is empty; name some of card, tests,"),
        (["--minutes", "0"], "minutes must be above 0, got 0"),
        ([], "--device cpu --size tiny runs the same without one"),
    ],
)
def test_what_cannot_be_is_refused_in_a_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ValueError, match=message):
        command.main(options)
    assert not list(tmp_path.iterdir())


def numbers_in(found):
    if isinstance(found, dict | list):
        for value in found.values() if isinstance(found, dict) else found:
            yield from numbers_in(value)
    elif isinstance(found, float):
        yield found


@pytest.mark.slow
def test_the_command_runs_on_a_cpu_in_small(tmp_path):
    options = ["--device", "cpu", "--size", "tiny", "--minutes", "60", "--output", "out/gpu.json"]
    script = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "gpu", *options]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=3000)
    assert done.returncode == 0, done.stderr[-3000:]
    assert [file.name for file in tmp_path.iterdir()] == ["out"]  # the trainings have cleaned up
    found = json.loads((tmp_path / "out/gpu.json").read_text())
    assert list(found["parts"]) == list(PARTS)
    assert not [
        (title, figure["failed"])
        for part in found["parts"].values()
        for title, figure in part["figures"].items()
        if "failed" in figure
    ]
    assert all(math.isfinite(number) for number in numbers_in(found))
    compared = {}
    for name in ("grids", "priors", "steps"):
        for title, figure in found["parts"][name]["figures"].items():
            compared[title] = figure["limit"]["time_over_limit"]
            assert figure["seconds"] > 0 and figure["needs"]["bytes"] > 0
    assert len(compared) == 11 and all(ratio > 0 for ratio in compared.values()), compared
    assert set(found["parts"]["deterministic"]["figures"]["hashes"]["equal"].items()) == {("arc", True), ("rq", True)}
    assert len(found["parts"]["quickstart"]["figures"]["quickstart"]["lines"]) == 4
    assert len(found["parts"]["quantizers"]["figures"]) >= 16
    left_out = found["left_out"]
    assert "need a GPU" in left_out["tests: tests/gpu"] and "steps: arc bf16 compiled" in left_out
    assert done.stdout.count("left out: ") == len(left_out)


@pytest.mark.slow
def test_a_part_without_time_is_ended_and_named(tmp_path):
    options = ["--device", "cpu", "--size", "tiny", "--minutes", "0.02", "--parts", "[card,quickstart]"]
    script = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "gpu", *options, "--output", "gpu.json"]
    done = subprocess.run(script, cwd=tmp_path, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["left_out"].keys() == {"card: start", "quickstart: start"}
    assert set(found["left_out"].values()) == {NO_TIME}


@pytest.mark.slow
def test_sigterm_ends_the_command_and_all_that_it_has_started(tmp_path):
    options = ["--device", "cpu", "--size", "tiny", "--minutes", "60", "--parts", "[deterministic]"]
    script = [sys.executable, str(ROOT / "scripts" / "benchmark.py"), "gpu", *options]
    process, started = subprocess.Popen(script, cwd=tmp_path), []
    while len(started) < 5 and process.poll() is None:  # the part, and its four trainings
        time.sleep(0.1)
        started = psutil.Process(process.pid).children(recursive=True)
    process.terminate()
    assert process.wait(60) == 143
    _, alive = psutil.wait_procs(started, timeout=10)
    for one in alive:
        one.kill()
    assert len(started) == 5 and not alive
