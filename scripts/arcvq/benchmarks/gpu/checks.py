"""Checks of whole commands: the tests marked for a GPU, the quickstart, equal bits of deterministic runs."""

import hashlib
import importlib.util
import re
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from arcvq.benchmarks.gpu.bench import Bench, Figures, LeftOut, last_line
from arcvq.benchmarks.gpu.digits import BATCH

_CHECKOUT = Path(__file__).resolve().parents[4]
_QUANTIZERS = ("arc", "rq")


def tests(bench: Bench) -> Figures:
    """Run the tests marked for a GPU."""
    yield "tests/gpu", lambda: run_tests(bench)


def quickstart(bench: Bench) -> Figures:
    """Train a tokenizer and both priors on the digits, sample and measure."""
    yield "quickstart", lambda: run_quickstart(bench)


def deterministic(bench: Bench) -> Figures:
    """Train arc and rq twice, and compare the weights."""
    yield "hashes", lambda: compare_hashes(bench)


def run_tests(bench: Bench) -> dict[str, Any]:
    """Run tests/gpu of a checkout; return how many passed, and what each failure says."""
    if not bench.is_cuda:
        raise LeftOut("these tests need a GPU")
    if not (_CHECKOUT / "tests" / "gpu").is_dir():
        raise LeftOut("the tests are in a checkout of the sources, and not in the installed package")
    if importlib.util.find_spec("pytest") is None:
        raise LeftOut("pytest is not installed: pip install -e '.[dev]'")
    options = ["-m", "gpu", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider"]
    command = [sys.executable, "-m", "pytest", *options, "tests/gpu"]
    done = subprocess.run(command, cwd=_CHECKOUT, capture_output=True, text=True, timeout=bench.seconds_left)
    found = re.search(r"(\d+) passed", done.stdout)
    failures = [line for line in done.stdout.splitlines() if line.startswith(("FAILED", "ERROR"))]
    passed = int(found[1]) if found else 0
    return {"status": done.returncode, "passed": passed, "failures": failures, "last_line": last_line(done.stdout)}


def run_quickstart(bench: Bench) -> dict[str, Any]:
    """Run the quickstart; return the lines with its numbers."""
    done = bench.run(["-m", "arcvq", "quickstart", *bench.sizes.quickstart])
    named = ("tokenizer: ", "ldm: ", "pixelcnn: ", "report: ")
    lines = [line for line in done.stdout.splitlines() if line.startswith(named)]
    return {"lines": lines[-len(named) :]}


def compare_hashes(bench: Bench) -> dict[str, Any]:
    """Train each of two quantizers in two processes; all four beside each other. Compare the SHA-256 of the weights."""
    runs = {(name, again): f"{name}-{again}" for name in _QUANTIZERS for again in (1, 2)}
    started = {key: _start(bench, key[0], run) for key, run in runs.items()}
    try:
        for (name, _), process in started.items():
            _, err = process.communicate(timeout=max(1.0, bench.seconds_left))
            if process.returncode:
                raise RuntimeError(f"{name}: {last_line(err)}")
    finally:
        for process in started.values():
            process.kill()
    hashes = {run: _hash(bench.folder / "runs" / run) for run in runs.values()}
    equal = {name: hashes[f"{name}-1"] == hashes[f"{name}-2"] for name in _QUANTIZERS}
    return {"equal": equal, "sha256": hashes}


def _start(bench: Bench, quantizer: str, run: str) -> subprocess.Popen:
    steps = bench.sizes.deterministic_steps
    options = ["--run.deterministic=true", f"--model.quantizer={quantizer}", f"--optim.max_steps={steps}"]
    options += [f"--optim.batch_size={BATCH}", f"--run.name={run}", *bench.sizes.model]
    return bench.start(["-m", "arcvq", "train-tokenizer", *options])


def _hash(run: Path) -> str:
    files: Sequence[Path] = sorted((run / "tokenizer").glob("*.safetensors"))
    return hashlib.sha256(b"".join(file.read_bytes() for file in files)).hexdigest()
