"""Every file in configs/ is what its first line says: it is parsed, set up and dry-run, with nothing allocated."""

import re
import shlex

import pytest
import yaml
from accelerate.commands.config.config_args import load_config_from_file
from places import ROOT

from arcvq.planning.train_or_plan import train_or_plan
from arcvq.training import ldm as train_ldm
from arcvq.training import pixelcnn as train_pixelcnn
from arcvq.training import tokenizer as train_tokenizer

SCRIPTS = {
    "scripts/train_tokenizer.py": train_tokenizer,
    "scripts/train_ldm.py": train_ldm,
    "scripts/train_pixelcnn.py": train_pixelcnn,
}
LAUNCH = ROOT / "configs" / "accelerate"
FILES = sorted(path for path in (ROOT / "configs").rglob("*") if path.is_file())
QUEUES = ROOT / "configs" / "queue"
TRAININGS = [file for file in FILES if file.parent not in (LAUNCH, QUEUES)]
# One of each kind, and those that are trained without naming one; a dry run of all takes a minute.
QUICK = ("digits/*", "mnist/arcvq.yaml", "cifar10/vq.yaml", "cifar10/pixelcnn.yaml", "cifar10/ldm.yaml")


def name_of(file):
    return str(file.relative_to(ROOT))


def command_of(file):
    """The words of the command on the first line."""
    first = file.read_text().splitlines()[0]
    assert first.startswith("# accelerate launch ")
    return shlex.split(first.removeprefix("# "))[2:]


def test_there_are_files_and_nothing_else():
    assert len(TRAININGS) >= 58 and len(FILES) - len(TRAININGS) == 5
    assert all(file.suffix == ".yaml" for file in FILES)


def started(file):
    """The launcher's words of a config's command, its script, and the script's options."""
    words = command_of(file)
    place = next(index for index, word in enumerate(words) if word in SCRIPTS)
    launch, script, options = words[:place], SCRIPTS[words[place]], words[place + 1 :]
    if file.parent.name == "digits":  # what the script takes without a config
        assert options == []
    else:
        assert options[:2] == ["--config", name_of(file)]
        options[1] = str(file)
    return launch, script, options


@pytest.mark.parametrize("file", TRAININGS, ids=name_of)
def test_a_training_takes_its_config(file):
    _, script, options = started(file)
    script.check(script.make_parser().parse(options))


@pytest.mark.parametrize(
    "file",
    [file if any(map(file.match, QUICK)) else pytest.param(file, marks=pytest.mark.slow) for file in TRAININGS],
    ids=name_of,
)
def test_a_training_is_dry_run_by_its_own_command(file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # where there is neither data nor a tokenizer
    launch, script, options = started(file)
    processes = int(launch[launch.index("--num_processes") + 1]) if "--num_processes" in launch else 1
    report = train_or_plan(script)([*options, "--dry_run", str(processes)])
    assert f"{processes}, each" in report.others["processes"]
    assert sum(report.parameters.values()) > 1_000 and report.memory.total > 2**29
    # What a comment says of the steps is so.
    if said := re.search(r"max_steps: (\d+)  # (\d+) epochs of ([\d,]+) steps", file.read_text()):
        steps, epochs, per_epoch = said.groups()
        assert report.others["steps"] == f"{int(steps):,} steps = {epochs} epochs of {per_epoch} steps each"
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("file", sorted(LAUNCH.iterdir()), ids=name_of)
def test_an_accelerate_config_is_one(file):
    words = command_of(file)
    assert words[:2] == ["--config_file", name_of(file)]
    config = load_config_from_file(str(file))  # refuses keys that accelerate does not know
    settings = yaml.safe_load(file.read_text())
    assert config.num_processes == settings["num_processes"] and config.mixed_precision == "bf16"
    assert config.num_processes % config.num_machines == 0
