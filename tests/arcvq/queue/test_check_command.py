"""The commands of jobs, parsed by their verbs."""

from pathlib import Path

import pytest

from arcvq.cli.configs import CONFIGS
from arcvq.queue.check_command import Work, check_command, check_folders
from arcvq.queue.queue_file import Job, read_jobs


def check(command):
    return check_command(Job("mine", tuple(command.split())))


def test_a_training_has_a_run_folder_and_steps(capsys):
    command = "train_tokenizer --config mnist/vq.yaml --run.output_dir there --optim.max_steps 7"
    assert check(command) == Work(Path("there/mnist-vq"), 7)
    assert check("evaluate reconstruction runs/none --seed 3") == check("evaluate schedulers runs/none") == Work()
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("command", "named"),
    [
        ("train-tokeniser", ["'train-tokeniser'", "train-tokenizer"]),
        ("queue queue.yaml", ["unknown verb 'queue'"]),
        ("accelerate launch -m arcvq train-ldm", ["'accelerate'", "without a launcher"]),
        ("OMP_NUM_THREADS=1 arcvq train-ldm", ["'OMP_NUM_THREADS=1'", "variables"]),
        ("train-tokenizer --model.quantizer arx", ["'arx'", "arc,"]),
        ("train-tokenizer --model.quantizer_options.margn 1", ["margn", "margin"]),
        ("train-tokenizer --model.network con", ["'con'", "conv"]),
        ("train-ldm --optim.learning_rate 1", ["--optim.learning_rate", " lr,"]),
        ("train-ldm --optim.max_steps many", ["--optim.max_steps", "'many'"]),
        ("train-ldm --optim.max_steps 0", ["optim.max_steps", "got 0"]),
        ("train-ldm --config mnist/lmd.yaml", ["mnist/lmd.yaml", "mnist/ldm.yaml"]),
        ("train-ldm --help", ["--help", "only prints"]),
        ("train-ldm --print_config", ["--print_config", "only prints"]),
        ("train-ldm --dry_run", ["--dry_run", "only prints"]),
        ("evaluate reconstrution", ["'reconstrution'", "reconstruction"]),
        ("evaluate compare a b", ["needs no queue"]),
        ("codebook reduce runs/a", ["needs no queue"]),
    ],
)
def test_what_the_verb_refuses_is_refused_with_the_job_in_one_line(command, named, capsys):
    with pytest.raises(ValueError) as error:
        check(command)
    said = str(error.value)
    assert said.startswith("job mine: ") and "\n" not in said and all(name in said for name in named), said
    assert capsys.readouterr() == ("", "")


def test_two_trainings_in_one_folder_are_refused():
    check_folders([("a", "runs/a"), ("b", "runs/b"), ("c", None), ("d", None)])
    with pytest.raises(ValueError, match=r"job b: .*runs/x/\.\./a, as job a "):
        check_folders([("a", "runs/a"), ("b", "runs/x/../a")])


def test_the_queue_of_the_papers_length_trains_as_long_and_each_prior_after_its_tokenizer():
    jobs = read_jobs(CONFIGS / "queue" / "paper_length.yaml")
    work = {job.name: check_command(job) for job in jobs}
    check_folders([(name, str(done.run)) for name, done in work.items()])
    assert all(done.run == Path("runs", name) for name, done in work.items())
    steps = {"cifar10": 24_000, "mnist": 29_000}
    for job in jobs:
        if job.words[0] == "train-tokenizer":
            assert work[job.name].steps == steps[job.name.partition("-")[0]] and not job.after
        else:
            tokenizer = job.words[job.words.index("--tokenizer") + 1]
            assert [f"runs/{name}" for name in job.after] == [tokenizer]
