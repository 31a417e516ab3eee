import json
import shutil
from pathlib import Path

import pytest
from quantizer_cases import small_tokenizer

from arcvq.evaluation import schedulers as compare_schedulers
from pipelines import ArcVQLDMPipeline
from pipelines.figures.schedulers import plot_schedulers
from priors.diffusion import make_scheduler
from priors.unet import make_unet


@pytest.fixture(scope="module")
def home(tmp_path_factory, classifier_cache):
    cwd = tmp_path_factory.mktemp("home")
    shutil.copytree(classifier_cache, cwd / "runs" / "cache")
    tokenizer = small_tokenizer("arc", image_size=32)
    unet = make_unet(tokenizer.latent_shape, 10, 16, (1,), num_blocks=1, head_channels=8)
    ArcVQLDMPipeline(tokenizer, unet, make_scheduler(), latent_scale=1.0).save_pretrained(cwd / "pipeline")
    return cwd


OPTIONS = ["pipeline", "--num_images=12", "--dtype=float32", "--guidance_scales=1,2", "--steps=2,3", "--ddim_steps=4"]


@pytest.mark.slow
def test_every_point_is_measured_once_and_drawn(home, monkeypatch, capsys):
    monkeypatch.chdir(home)
    drawn = []
    draw = lambda points, *args: drawn.append(points) or plot_schedulers(points, *args)  # noqa: E731
    monkeypatch.setattr(compare_schedulers, "plot_schedulers", draw)
    compare_schedulers.main(OPTIONS)
    result = json.loads(Path("pipeline/schedulers/schedulers.json").read_text())
    points = result["points"]
    asked = [(p["guidance_scale"], p["scheduler"], p["num_inference_steps"]) for p in points]
    ddim, others = [2, 3, 4], ("dpmsolver++", "unipc")
    assert asked == [
        (scale, scheduler, steps)
        for scale in (1.0, 2.0)
        for scheduler, many in (("ddim", ddim), *((other, ddim[:2]) for other in others))
        for steps in many
    ]
    distances = [point["frechet_distance[digits-classifier]@12"] for point in points]
    assert len(set(distances)) > 6 and [point.distance for point in drawn[0]] == distances
    assert Path("pipeline/schedulers/schedulers.png").stat().st_size > 10_000
    assert result["protocol"]["samples"] == 12 and "sampling" not in result["protocol"]
    # Each point says how it was made.
    one = json.loads(Path("pipeline/schedulers/unipc-2.0-3/generation.json").read_text())["protocol"]
    assert one["scheduler"]["class"] == "UniPCMultistepScheduler"
    assert one["sampling"]["guidance_scale"] == 2.0 and one["sampling"]["num_inference_steps"] == 3

    # Again: only the point that is missing is measured, and all numbers are the same.
    measured = []
    evaluate = compare_schedulers.evaluate_generation
    monkeypatch.setattr(
        compare_schedulers, "evaluate_generation", lambda *args: measured.append(args[2].name) or evaluate(*args)
    )
    Path("pipeline/schedulers/ddim-1.0-3/generation.json").unlink()
    compare_schedulers.main(OPTIONS)
    assert measured == ["ddim-1.0-3"]
    again = json.loads(Path("pipeline/schedulers/schedulers.json").read_text())["points"]
    assert again == points
    # With another seed all of them are.
    compare_schedulers.main([*OPTIONS, "--seed=5", "--guidance_scales=1", "--schedulers=unipc", "--ddim_steps="])
    assert measured[1:] == ["unipc-1.0-2", "unipc-1.0-3"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--schedulers=ddim,euler"], "unknown scheduler 'euler'; there are ddim, dpmsolver"),
        (["--steps=2,x"], "from 1 on, got '2,x'"),
        (["--steps=0"], "steps takes numbers with commas, guidance from 0 and steps from 1 on, got '0'"),
        (["--steps=10,2000"], "between 1 and 1000, got 2000"),
        (["--guidance_scales=nan"], "guidance_scales takes numbers"),
        (["--guidance_scales="], "guidance_scales and steps take one number or more"),
        (["--sampling.guidance_scale=2"], "--sampling.guidance_scale 2.0 changes nothing"),
    ],
)
def test_what_cannot_be_compared_is_refused(home, monkeypatch, options, message):
    monkeypatch.chdir(home)
    with pytest.raises(ValueError, match=message):
        compare_schedulers.main([*OPTIONS, "--output=refused", *options])
    assert not Path("refused").exists()


def test_a_figure_of_nothing_is_refused(tmp_path):
    with pytest.raises(ValueError, match="no points"):
        plot_schedulers([], "distance", tmp_path / "plot.png")
