"""The file of `sample.py --labels`: an id or a name per line, or one error that names the line."""

from pathlib import Path

import pytest
import torch

from arcvq.sampling import command as sample
from arcvq.sampling import labels
from pipelines.class_conditional import ClassConditionalPipeline


class Classes(ClassConditionalPipeline):
    """A pipeline of nothing but classes."""

    class_names = {0: "cat, house cat", 1: "dog", 2: "7"}  # noqa: RUF012
    _execution_device = torch.device("cpu")

    def __init__(self):
        pass


def wanted(tmp_path, content, *options):
    (tmp_path / "labels.txt").write_bytes(content)
    config = sample.make_parser().parse([f"--labels={tmp_path / 'labels.txt'}", *options])
    return labels.wanted_labels(Classes(), config)


def test_ids_and_names_are_labels_in_order_and_blank_lines_are_not(tmp_path):
    found = wanted(tmp_path, b"1\n\n dog\r\nhouse cat\n7\n0\n\n2")
    assert found.tolist() == [1, 1, 0, 2, 0, 2] and found.dtype == torch.int64
    assert wanted(tmp_path, b"1\n2\nno class", "--num_images=2").tolist() == [1, 2]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "has 0 labels"),
        (b"\n \n\t\n", "has 0 labels"),
        (b"0\n\n3\n", "line 3 of .*: class label 3 is out of range: the classes are 0 to 2"),
        (b"-1", "line 1 of .*: class label -1 is out of range"),
        (b"0\nbird", "line 2 of .*: unknown class 'bird'"),
        (b"--1", "line 1 of .*: unknown class '--1'"),
        (b"1.0", "line 1 of .*: unknown class '1.0'"),
        (b"9223372036854775808", "line 1 of .*: unknown class '9223372036854775808'"),
        (b"123456789012345678", "line 1 of .*: class label 123456789012345678 is out of range"),
        (b"1" * 999, "line 1 of .*: unknown class '1+[.]*1*'"),
        (b"1" * 5000, "line 1 of .* is no id or name"),
        (b"0\n1\x000\n", "line 2 of .* is no id or name"),
        (b"\xff\xfe0\x00", "is no text file"),
        (b"\x89PNG\r\n\x1a\n", "is no text file"),
    ],
)
def test_any_other_file_is_one_error(tmp_path, content, expected):
    with pytest.raises(ValueError, match=expected) as error:
        wanted(tmp_path, content)
    assert "\n" not in str(error.value) and "labels.txt" in str(error.value)


def test_a_file_of_many_bytes_is_not_read(tmp_path, monkeypatch):
    (tmp_path / "labels.txt").touch()
    with (tmp_path / "labels.txt").open("r+b") as file:
        file.truncate(2**40)
    monkeypatch.setattr(Path, "read_text", lambda *_, **__: pytest.fail("it was read"))
    with pytest.raises(ValueError, match=r"has 1,099,511,627,776 bytes, more than 67,108,864"):
        labels.label_lines(tmp_path / "labels.txt")
