"""The measurement of a full-size step, on models that are none."""

import json

import pytest

from arcvq.benchmarks import memory as measure_memory

SMALL = {
    "tokenizer": [
        *("--model.hidden_channels", "32", "--model.num_residual_layers", "1"),
        *("--model.network_options.channel_multipliers", "[1,2]"),
        *("--data.image_size", "32", "--adversarial.channels", "8", "--loss.perceptual_net", "squeeze"),
    ],
    "unet": ["--unet.channels", "32", "--unet.channel_multipliers", "[1,2]", "--unet.attention_sizes", "[16]"],
}


@pytest.mark.parametrize("case", ["tokenizer", pytest.param("unet", marks=pytest.mark.slow)])
def test_the_steps_that_are_measured_are_those_that_are_estimated(case):
    measured = measure_memory.make_steps(case, SMALL[case], 2)
    estimated = measure_memory.estimate(case, SMALL[case], 2)
    assert len(measured["seconds"]) == 2 and measured["peak_bytes"] > estimated["parts"]["optimiser"]
    assert estimated["bytes"] == sum(estimated["parts"].values())
    assert estimated["parts"]["optimiser"] > 2 * estimated["parts"]["weights"] * 0.9


def test_the_numbers_stand_side_by_side(tmp_path, monkeypatch, capsys):
    asked = []

    def in_process(case, worker, config):
        asked.append((case, worker))
        return {"bytes": 900} if worker == "estimate" else {"peak_bytes": 1000, "seconds": [3.0, 2.0]}

    monkeypatch.setattr(measure_memory, "in_process", in_process)
    measure_memory.main(["--output", str(tmp_path / "made" / "full.json")])
    assert asked == [(case, worker) for case in ("tokenizer", "unet") for worker in ("estimate", "steps")]
    written = json.loads((tmp_path / "made" / "full.json").read_text())
    assert written["results"]["unet"] == {
        "peak_bytes": 1000,
        "seconds": [3.0, 2.0],
        "estimate": {"bytes": 900},
        "estimate_over_peak": 0.9,
    }
    assert written["protocol"]["lpips_weights"] == "random" and "commit" in written["protocol"]
    assert "tokenizer: step 2.0 s, peak 1000 B, estimate 900 B, -10.0%" in capsys.readouterr().out


def test_what_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    monkeypatch.setattr(measure_memory, "in_process", lambda case, worker, config: {"bytes": 1 << 60})
    with pytest.raises(ValueError, match=r"tokenizer takes about 1048576|tokenizer takes about 1\.0.*TiB"):
        measure_memory.main(["tokenizer", "--output", str(tmp_path / "none.json")])
    with pytest.raises(ValueError, match="steps must be at least 2, got 1"):
        measure_memory.main(["--steps", "1"])
    assert list(tmp_path.iterdir()) == []
