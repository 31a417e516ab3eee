"""The first word of the command line."""

import sys

import pytest

from arcvq import verbs


def test_an_unknown_verb_is_refused_with_the_one_that_was_meant(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["arcvq", "evalute"])
    with pytest.raises(SystemExit, match="2"):
        verbs.main()
    assert "evaluate" in capsys.readouterr().err


def test_an_underscore_is_a_hyphen(monkeypatch):
    called = []
    monkeypatch.setattr(verbs, "run_verb", called.append)
    monkeypatch.setattr(sys, "argv", ["arcvq", "train_tokenizer", "--optim.max_steps", "3"])
    verbs.main()
    assert called == ["train-tokenizer"] and sys.argv == ["arcvq train-tokenizer", "--optim.max_steps", "3"]
