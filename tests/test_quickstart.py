"""The demo's command, cut to a few steps: every stage runs, the report holds it, and a second start trains nothing."""

import json
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def test_the_demo_goes_from_images_to_a_report_and_does_not_train_twice(tmp_path):
    command = [sys.executable, str(ROOT / "scripts" / "quickstart.py"), "--max_steps", "4", "--num_images", "20"]
    first, second = (
        subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=540) for _ in range(2)
    )
    for done in (first, second):
        assert done.returncode == 0, done.stderr[-4000:]
    assert first.stdout.count("nothing is left to train") == 0
    assert second.stdout.count("nothing is left to train") == 3
    folder = tmp_path / "runs" / "quickstart"
    results = json.loads((folder / "numbers.json").read_text())
    assert results["tokenizer"]["numbers"]["images"] == 360
    for prior in ("ldm", "pixelcnn"):
        assert results[prior]["numbers"]["samples"] == 20
        assert 0 <= results[prior]["numbers"]["class_accuracy[digits-classifier]"] <= 1
        assert f"{prior}: frechet_distance[digits-classifier]@20" in second.stdout
    page = (folder / "report.html").read_text()
    titles = re.findall(r"<h2[^>]*>(.*?)</h2>", page)
    assert titles == ["Overview", "Reconstruction", "Codebook", "Latent diffusion", "PixelCNN", "Curves", "Again"]
    assert page.count("<img") == 8
    assert not re.findall(r'\bsrc="(?!data:)', page)
    for name in results:
        assert results[name]["protocol"]["command"].replace("'", "&#x27;") in page
