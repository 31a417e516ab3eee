import json
import subprocess
import sys

import pytest
import torch
from accelerate.state import AcceleratorState
from places import ROOT

from arcvq.benchmarks import command as benchmark
from arcvq.benchmarks.cases import CASES, QUANTIZERS
from arcvq.benchmarks.peers import PlainArcQuantizer, bare_products
from tokenizer.quantizers import make_quantizer

SCRIPTS = ROOT / "scripts"
CPU = torch.device("cpu")


def test_the_plain_form_computes_what_our_quantizer_does():
    plain, ours = PlainArcQuantizer(20, 6), make_quantizer("arc", 20, 6, {})
    ours.codebook.data.copy_(plain.codebook.weight.data)
    results = []
    for quantizer, table in ((plain, plain.codebook.weight), (ours, ours.codebook)):
        torch.manual_seed(1)
        latents = torch.randn(3, 6, 4, 5, requires_grad=True)
        output = quantizer(latents)
        if quantizer is ours:
            weights = ours.loss_weights()
            output = output.quantized, sum(weights[name] * loss for name, loss in output.losses.items())
        quantized, loss = output
        torch.autograd.backward([quantized, loss], [torch.ones_like(quantized), None])
        results.append((quantized, loss.float(), latents.grad, table.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", [name for name in QUANTIZERS if name not in ("network", "vector-quantize-pytorch")])
def test_every_quantizer_gives_back_the_shape_and_trains_the_latents(name):
    latents = torch.randn(2, 4, 3, 5, requires_grad=True)
    quantized, loss = QUANTIZERS[name](7, 4)(latents)
    assert quantized.shape == latents.shape and loss.ndim == 0 and loss > 0
    (quantized.square().sum() + loss).backward()
    assert latents.grad.norm() > 0


def test_the_bare_products_are_three():
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        bare_products(torch.randn(1, 4, 1, 30), 7)()
    calls = {event.key: event.count for event in profile.key_averages()}
    assert calls["aten::mm"] == 3


@pytest.mark.parametrize(
    ("group", "arguments"),
    [
        *(("step", {"name": name, "precision": "no"}) for name in ("arc", "network", "plain", "diffusers")),
        ("step", {"name": "arc", "precision": "bf16"}),
        *(("diffusion", {"name": name, "steps": 2}) for name in benchmark.DIFFUSION_CASES if "compiled" not in name),
        *(
            ("pixelcnn", {"name": name, "height": 2, "width": 3})
            for name in benchmark.PIXELCNN_CASES
            if "compiled" not in name
        ),
    ],
)
def test_every_case_runs_twice(group, arguments):
    AcceleratorState._reset_state(reset_partial_state=True)  # it is one per process, and has one precision
    eager = {"compiled": False} if group == "step" else {}
    work = CASES[group](**arguments, **eager, batch_size=2, device=CPU)
    work()
    work()


@pytest.mark.robustness
@pytest.mark.skipif(sys.platform != "linux", reason="the peak is reset through /proc")
def test_memory_is_what_is_added_at_the_peak():
    # In a fresh process: what other tests have freed may be taken again without being added.
    code = """
import torch
from arcvq.benchmarks.cases import memory
device = torch.device("cpu")
before = memory(device, reset=True)
torch.ones(50_000_000).sum()  # 200 MB, given back at once
print(memory(device, reset=False) - before, memory(device, reset=True) - before)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPTS, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    added, left = map(int, done.stdout.split())
    assert 190e6 < added < 260e6
    assert left < 60e6


@pytest.mark.slow
def test_the_script_writes_a_table_and_a_json(tmp_path):
    options = ["--grid", "64x16x4", "--cases", "arc,plain", "--rounds", "1", "--repeats", "3", "--threads", "1"]
    command = [sys.executable, str(SCRIPTS / "benchmark.py"), "quantizers", *options, "--output", "out/b.json"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    written = json.loads((tmp_path / "out/b.json").read_text())
    assert (
        written["protocol"]["rounds"] == 1
        and "benchmark.py quantizers --grid 64x16x4" in written["protocol"]["command"]
    )
    (table,) = written["results"].values()
    assert list(table) == ["arc", "plain"]
    for row in table.values():
        assert 0 < row["fastest_s"] <= row["median_s"] <= row["slowest_s"] and row["threads"] == 1
        assert [len(seconds) for seconds in row["seconds"]] == [3]
        assert row["items_per_s"] == pytest.approx(64 / row["median_s"])
    assert "plain" in done.stdout and " ms" in done.stdout


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["quantizers", "--grid", "64x16"], "three sizes of at least 1, such as 65536x512x64, got '64x16'"),
        (["quantizers", "--grid", "64x0x4"], "at least 1"),
        (["quantizers", "--cases", "arcc"], "unknown case 'arcc'; there are arc, "),
        (["sampling", "--pixelcnn_grids", "8x8"], "such as 32x32x16, got '8x8'"),
        (["step", "--rounds", "0"], "rounds must be at least 1, got 0"),
    ],
)
def test_bad_options_are_refused_before_anything_is_written(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        benchmark.main(options)
    assert not list(tmp_path.iterdir())


def test_a_case_that_cannot_fit_or_is_not_installed_is_left_out_and_says_why(monkeypatch):
    def case(name):
        return benchmark.quantizer_cases("10000000x1000000x4")[name]

    assert "would need about" in benchmark.left_out(case("plain"))
    assert benchmark.left_out(case("arc")) is None
    monkeypatch.setattr(benchmark.importlib.util, "find_spec", lambda name: None)
    assert "not installed: pip install" in benchmark.left_out(case("vector-quantize-pytorch"))


def test_a_full_forward_counts_once_for_every_position():
    case = benchmark.pixelcnn_cases("3x4x2")["full"]
    row = benchmark.summary([{"seconds": [2.0, 1.0, 4.0], "memory_mb": 1.0, "peak_mb": 2.0, "threads": 1}], case)
    assert row["median_s"] == 24.0 and row["items_per_s"] == pytest.approx(2 / 24) and row["counted_times"] == 12


def test_a_case_that_fails_is_told_and_the_others_go_on(monkeypatch):
    cases = benchmark.quantizer_cases("64x16x4")
    measured = {"seconds": [2.0, 1.0, 4.0], "memory_mb": None, "threads": 1}
    monkeypatch.setattr(benchmark, "run_case", lambda case, _: "failed: x" if case is cases["plain"] else measured)
    config = benchmark.make_parser().parse(["--rounds", "2"])
    table = benchmark.run_table("tokens", {name: cases[name] for name in ("arc", "plain")}, config)
    assert table["plain"] == "failed: x"
    assert (table["arc"]["median_s"], table["arc"]["items_per_s"], table["arc"]["memory_mb"]) == (2.0, 32.0, None)
    assert "failed: x" in benchmark.as_text("tokens", table)
