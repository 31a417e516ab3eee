"""The demo's command, cut to a few steps: every stage runs, the report holds it, and a second start trains nothing."""

import json
import re
import sys

import pytest
from places import ROOT

from arcvq.faults import forked_process

pytestmark = pytest.mark.slow
COMMAND = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--max_steps", "4", "--num_images", "20"]


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    """A folder in which the demo has run, and what it printed."""
    cwd = tmp_path_factory.mktemp("demo")
    done = forked_process.run(COMMAND, cwd, timeout=540)
    assert done.returncode == 0, done.stderr[-4000:]
    return cwd, done.stdout


def test_the_demo_goes_from_images_to_a_report(demo):
    cwd, printed = demo
    assert printed.count("nothing is left to train") == 0
    folder = cwd / "runs" / "quickstart"
    results = json.loads((folder / "numbers.json").read_text())
    assert results["tokenizer"]["numbers"]["images"] == 360
    for prior in ("ldm", "pixelcnn"):
        assert results[prior]["numbers"]["samples"] == 20
        assert 0 <= results[prior]["numbers"]["class_accuracy[digits-classifier]"] <= 1
        assert f"{prior}: frechet_distance[digits-classifier]@20" in printed
    page = (folder / "report.html").read_text()
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles == ["Overview", "Reconstruction", "Codebook", "Latent diffusion", "PixelCNN", "Curves", "Again"]
    assert page.count("<img") == 8
    assert not re.findall(r'\bsrc="(?!data:)', page)
    for name in results:
        assert results[name]["protocol"]["command"].replace("'", "&#x27;") in page


def test_a_second_start_trains_nothing(demo):
    cwd, _ = demo
    before = (cwd / "runs/quickstart/numbers.json").read_text()
    again = forked_process.run(COMMAND, cwd, timeout=540)
    assert again.returncode == 0 and again.stdout.count("nothing is left to train") == 3
    results, expected = json.loads((cwd / "runs/quickstart/numbers.json").read_text()), json.loads(before)
    assert {name: of["numbers"] for name, of in results.items()} == {
        name: of["numbers"] for name, of in expected.items()
    }
