"""Training steps beside busy processes: the table, and that all cores stay about the fastest choice."""

import io
import json
from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from arcvq.benchmarks import threads as benchmark


@pytest.fixture
def fake_workers(monkeypatch):
    """Processes that answer, in turn, given seconds of a step; records what was started."""
    started = []

    def answer(answers):
        @contextmanager
        def workers(kind, options):
            started.append((kind, dict(options)))
            yield {
                name: SimpleNamespace(stdin=io.StringIO(), stdout=io.StringIO("".join(f"{s}\n" for s in answers[name])))
                for name in options
                if kind == "steps"
            }

        monkeypatch.setattr(benchmark, "_workers", workers)
        return started

    return answer


def test_the_choice_stands_beside_the_best_fixed_number(fake_workers, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "usable_cores", lambda: 4)
    times = {"chosen": [3, 9, 2], "1 thread": [4, 4, 4], "2 threads": [1, 2, 3], "4 threads": [5, 5, 5]}
    started = fake_workers(times | {"own barrier": [8, 8, 8]})
    output = tmp_path / "made" / "threads.json"
    benchmark.main(["--busy", "[3]", "--rounds", "3", "--trainings", "[64 px]", "--output", str(output)])
    written = json.loads(output.read_text())
    row = written["results"]["64 px"]["3"]
    assert row["chosen_over_best"] == 3 / 2 and row["cases"]["chosen"] == {"seconds": [3, 9, 2], "median": 3}
    assert "1.50 x the best fixed" in capsys.readouterr().out and written["protocol"]["cores"]
    (_, cases), (busy, others) = started
    assert busy == "busy" and len(others) == 3
    assert cases["chosen"] == cases["own barrier"] == benchmark.TRAININGS["64 px"]
    assert cases["2 threads"] == [*benchmark.TRAININGS["64 px"], "--run.threads=2"]


def test_an_unknown_training_is_refused(tmp_path):
    with pytest.raises(ValueError, match="trainings has 'faces'; there are digits, 64 px"):
        benchmark.main(["--trainings", "[faces]", "--output", str(tmp_path / "none.json")])


@pytest.mark.parametrize("option", [["--rounds", "0"], ["--busy", "[-1]"]])
def test_numbers_that_measure_nothing_are_refused(option, fake_workers):
    started = fake_workers({})
    with pytest.raises(ValueError, match="rounds must be at least 1, and busy from 0 on"):
        benchmark.main(option)
    assert not started


@pytest.mark.robustness
def test_beside_a_busy_process_the_choice_is_about_the_best(tmp_path):
    output = tmp_path / "threads.json"
    small = "--options=[--optim.batch_size=16]"
    benchmark.main(["--busy", "[0,2]", "--trainings", "[digits]", "--rounds", "3", "--output", str(output), small])
    alone, beside = json.loads(output.read_text())["results"]["digits"].values()
    assert alone["chosen_over_best"] < 2 and beside["chosen_over_best"] < 2
    cases = beside["cases"]
    if benchmark.usable_cores() > 1:
        assert cases["own barrier"]["median"] > 1.5 * cases["chosen"]["median"]
