"""The file of a queue: its order, and what is refused before anything starts."""

from itertools import pairwise

import pytest

from arcvq.cli.configs import CONFIGS
from arcvq.queue.queue_file import Job, find_queue, read_jobs


def jobs_of(tmp_path, text):
    (tmp_path / "queue.yaml").write_text(text)
    return read_jobs(tmp_path / "queue.yaml")


def test_jobs_are_in_the_files_order_with_the_words_of_a_shell(tmp_path):
    found = jobs_of(
        tmp_path,
        "z: {command: 'train-ldm --unet.channels 16', after: [a, b]}\n"
        "a: {command: 'arcvq sample \"runs/two words\"'}\n"
        "b:\n  command: evaluate reconstruction\n    runs/a\n",
    )
    assert found == [
        Job("z", ("train-ldm", "--unet.channels", "16"), ("a", "b")),
        Job("a", ("sample", "runs/two words")),
        Job("b", ("evaluate", "reconstruction", "runs/a")),
    ]
    assert found[1].command == "sample 'runs/two words'"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("a: {command: sample}\na: {command: evaluate}", ["line 2", "'a' is there twice"]),
        ("{}", ["no job"]),
        ("- {command: sample}", ["list"]),
        ("a b: {command: sample}", ["'a b'", "letters"]),
        ("../a: {command: sample}", ["'../a'", "letters"]),
        ("a: sample", ["job a", "'sample'", "command:"]),
        ("a: {command: sample, afer: [b]}", ["job a", "'afer'", "after"]),
        ("a: {command: [sample]}", ["job a", "['sample']"]),
        ("a: {after: []}", ["job a", "None"]),
        ("a: {command: arcvq}", ["job a", "verb", "'arcvq'"]),
        ("a: {command: 'sample \"'}", ["job a", "quotation"]),
        ("a: {command: sample, after: b}", ["job a", "'b'", "list"]),
        ("first: {command: sample}\nb: {command: sample, after: [frist]}", ["job b", "'frist'", "take first"]),
        ("a: {command: sample, after: [a]}", ["a before a"]),
    ],
)
def test_what_is_no_queue_is_refused_with_the_job_and_the_value(tmp_path, text, named):
    with pytest.raises(ValueError) as error:
        jobs_of(tmp_path, text)
    assert all(name in str(error.value) for name in named), error.value


def test_jobs_that_wait_for_each_other_are_named_and_no_others(tmp_path):
    with pytest.raises(ValueError) as error:
        jobs_of(
            tmp_path,
            "free: {command: sample}\n"
            "one: {command: sample, after: [free, three]}\n"
            "two: {command: sample, after: [one]}\n"
            "three: {command: sample, after: [two]}\n",
        )
    circle = str(error.value).partition(": ")[2].partition(";")[0].split(" before ")
    assert circle[0] == circle[-1]
    assert set(pairwise(circle)) == {("one", "two"), ("two", "three"), ("three", "one")}


def test_a_queue_is_found_by_its_name_and_a_config_of_a_verb_is_none(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("queue/paper_length.yaml", "queue/paper_length", "configs/queue/paper_length.yaml"):
        assert find_queue(name) == CONFIGS / "queue" / "paper_length.yaml"
    with pytest.raises(ValueError, match=r"did you mean queue/paper_length\.yaml"):
        find_queue("paper_length")
    with pytest.raises(ValueError, match="configs has queue/"):
        find_queue("mnist/arcvq.yaml")
