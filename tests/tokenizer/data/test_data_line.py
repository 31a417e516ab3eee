"""What a data set was found to be is said by every script that reads one, before it starts, and kept with a run."""

import shutil

import numpy as np
import PIL.Image
import pytest
from small_runs import SMALL, command, training

from arcvq.faults import forked_process

LINE = (
    "data: 18 train, 2 held out, 2 classes (cat, dog), 3 x 16 x 16; left out: 1 hidden, 1 unreadable name (.txt); "
    "held out: every tenth image"
)


@pytest.fixture(scope="module")
def home(tmp_path_factory, classifier_cache):
    """A folder of images, and all three trainings of one step on it."""
    home = tmp_path_factory.mktemp("home")
    shutil.copytree(classifier_cache, home / "runs" / "cache")
    for number in range(20):
        file = home / "photos" / ("cat", "dog")[number % 2] / f"{number}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        PIL.Image.fromarray(np.random.default_rng(number).integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(file)
    (home / "photos" / "labels.txt").touch()
    (home / "photos" / ".DS_Store").touch()
    return home


def output(home, script, *options):
    done = forked_process.run(command(script, *options, "--data.name", "photos"), home)
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


def test_a_run_that_goes_on_with_other_held_out_images_says_so(home):
    train = ["train_tokenizer", *SMALL["tokenizer"], "--optim.batch_size", "8", "--run.name", "again"]
    for split, number in (("train", 9), ("test", 2)):
        for index in range(number):
            file = home / "other" / split / f"{index}.png"
            file.parent.mkdir(parents=True, exist_ok=True)
            PIL.Image.new("RGB", (16, 16), (index * 20, 0, 0)).save(file)
    for steps, said in ((1, False), (2, True)):
        options = ["--optim.max_steps", steps, "--optim.warmup_steps", 0, "--data.name", "other"]
        done = forked_process.run(command(*train, *options), home)
        assert done.returncode == 0, done.stderr[-3000:]
        assert ("note: runs/again has had other data: 9 train, 2 held out" in done.stdout) == said
        PIL.Image.new("RGB", (16, 16)).save(home / "other" / "test" / "new.png")


def test_an_evaluation_writes_nothing_into_the_data_set(home):
    folder = home / "photos" / "cat"
    before = sorted(home.glob("photos/**/*"))
    options = ["--extractor", "digits-classifier", "--resize", "32", "--reference", "train"]
    assert "class_accuracy" not in output(home, "evaluate", "generation", str(folder), *options)
    assert sorted(home.glob("photos/**/*")) == before
    assert (home / "runs" / "evaluation" / "photos-cat" / "generation.png").is_file()
