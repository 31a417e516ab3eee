"""The summary of trainings against hand-made logs."""

import json
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parent.parent / "scripts"))

from summarise import adversarial_entry, main


def records(errors, start):
    """A log every 20 steps; the adversarial loss is there from the first step above `start` on."""
    return [
        {"step": 20 * number, "reconstruction": error, **({"generator": 0.1} if 20 * number > start else {})}
        for number, error in enumerate(errors, start=1)
    ]


def test_the_jump_is_that_of_the_worst_hundred_steps_after_the_entry():
    # 0.5 for 100 steps, 0.2 for 100; with the adversary 0.2, then 0.3 for 100 steps, then 0.1.
    entry = adversarial_entry(records([0.5] * 5 + [0.2] * 5 + [0.2] + [0.3] * 5 + [0.1] * 5, start=200))
    assert entry == {"step": 200, "before": pytest.approx(0.2), "largest_after": pytest.approx(0.3),
                     "jump": pytest.approx(0.5)}  # fmt: skip


def test_without_a_before_or_an_after_there_is_no_entry():
    assert adversarial_entry(records([0.5] * 5, start=0)) is None
    assert adversarial_entry(records([0.5] * 5, start=1000)) is None


def test_a_run_is_summarised_with_its_curves(tmp_path, capsys):
    run = tmp_path / "run"
    (run / "evaluation").mkdir(parents=True)
    lines = [*records([0.5, float("nan")], start=20), {"step": 40, "test_psnr": 20.0}]
    (run / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (run / "samples").mkdir()
    for step, content in (("000020", b"the first"), ("000040", b"the last")):
        (run / "samples" / f"step-{step}.png").write_bytes(content)
    (run / "evaluation" / "reconstruction-rfid.json").write_text('{"psnr": 20.5}')
    main([str(run), "--output", str(tmp_path / "docs" / "out.json")])
    result = json.loads((tmp_path / "docs" / "out.json").read_text())
    summary = result["runs"]["run"]
    assert (summary["steps"], summary["not_finite"], summary["last"]["test_psnr"]) == (40, 1, 20.0)
    assert summary["evaluations"] == {"reconstruction-rfid": {"psnr": 20.5}}
    assert (tmp_path / "docs" / "out-run-curves.png").stat().st_size > 1000
    assert (tmp_path / "docs" / "out-run.png").read_bytes() == b"the last"
    assert "summary: " in capsys.readouterr().out and result["commit"]
    with pytest.raises(ValueError, match=r"no metrics\.jsonl"):
        main([str(tmp_path), "--output", str(tmp_path / "x.json")])
