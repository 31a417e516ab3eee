"""What a data set was found to be is said by every script that reads one, before it starts, and kept with a run."""

import numpy as np
import PIL.Image
import pytest
import warm
from test_scripts import SMALL, command, training

LINE = (
    "data: 18 train, 2 held out, 2 classes (cat, dog), 3 x 16 x 16; left out: 1 hidden, 1 unreadable name (.txt); "
    "held out: every tenth image"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory):
    """A folder of images, and all three trainings of one step on it."""
    home = tmp_path_factory.mktemp("home")
    for number in range(20):
        file = home / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    (home / "photos" / "labels.txt").touch()
    (home / "photos" / ".DS_Store").touch()
    return home


def output(home, script, *options):
    done = warm.run(command(script, *options, "--data.name", "photos"), home)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


@pytest.mark.parametrize("stage", ["tokenizer", "ldm", "pixelcnn"])
def test_every_training_says_what_it_reads_and_keeps_it(home, stage):
    printed = output(home, *training(stage, "runs", 1), "--run.sample_every", 100)
    assert printed.count(LINE) == 1 and printed.index(LINE) < printed.index("run folder: ")
    assert (home / "runs" / stage / "data.txt").read_text() == f"{LINE}\n"


def test_a_dry_run_says_what_it_reads(home):
    assert output(
        home, "train_tokenizer", "--dry_run", *SMALL["tokenizer"], "--run.name", "dry", "--optim.batch_size", 8
    ).startswith(LINE)


def test_an_evaluation_says_what_it_reads(home):
    printed = output(home, "evaluate", "reconstruction", "runs/tokenizer", "--data.image_size", 16)
    assert printed.count(LINE) == 1 and printed.index(LINE) < printed.index("psnr")
