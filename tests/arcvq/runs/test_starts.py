"""The record of a run's starts."""

import pytest
import torch

from arcvq.cli.provenance import commit
from arcvq.runs.starts import read_starts, record_start, starts_behind


def test_each_start_is_a_line_with_its_step_code_and_threads(tmp_path):
    assert read_starts(tmp_path) == []
    record_start(tmp_path, 0, 1)
    record_start(tmp_path, 70, 2)
    first, second = read_starts(tmp_path)
    assert (first["step"], first["processes"], second["step"], second["processes"]) == (0, 1, 70, 2)
    assert first["commit"] == commit() and first["versions"]["torch"] == torch.__version__.partition("+")[0]
    assert first["threads"] == torch.get_num_threads() and first["processor"] and first["time"] <= second["time"]


@pytest.mark.parametrize("line", ['{"step": 4, "ti', "[4]", '{"commit": "a"}', '{"step": 4}'])
def test_a_line_without_what_a_start_has_is_named(line, tmp_path):
    record_start(tmp_path, 0, 1)
    with (tmp_path / "starts.jsonl").open("a") as file:
        file.write(line)
    with pytest.raises(ValueError, match=r"line 2 of .*starts.jsonl is no start of a training; remove the line"):
        read_starts(tmp_path)


@pytest.mark.parametrize(
    ("steps", "done", "kept"),
    [
        ([0, 40, 80], 100, [0, 1, 2]),
        ([0, 40, 80], 80, [0, 1]),  # the last has done nothing yet
        ([0, 0, 0], 10, [2]),
        ([0, 40, 80, 40], 100, [0, 3]),  # a damaged checkpoint took the run back
    ],
)
def test_a_start_whose_steps_were_repeated_has_no_part(steps, done, kept):
    starts = [{"step": step, "index": index} for index, step in enumerate(steps)]
    assert [start["index"] for start in starts_behind(starts, done)] == kept
