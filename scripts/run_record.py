"""What a run folder says of the run in it, so that no other run goes on from it or writes over it."""

from pathlib import Path
from typing import Any

from checkpoints import checkpoints
from yaml_files import read_yaml

# What a run's result is called in its folder.
ARTEFACTS = ("tokenizer", "pipeline")

# May differ between the start of a run and its resumption: they change neither the data nor the weights of a step, but
# for max_steps, which is how a run is made longer; a schedule that falls then goes on as that of the longer run. Files
# of weights are known by their hashes, wherever they are.
_MAY_CHANGE = (
    "run.output_dir", "run.log_every", "run.sample_every", "run.checkpoint_every", "run.keep_checkpoints",
    "data.num_workers", "data.memory_limit_gib", "optim.max_steps",
    "weights.alexnet", "weights.vgg16", "weights.squeezenet", "weights.lpips",
)  # fmt: skip


def read_settings(file: Path) -> dict[str, Any]:
    """The settings that a run has stored in its folder; empty where there is no such file, or one of something else."""
    try:
        return read_yaml(file)
    except ValueError:
        return {}


def refuse_other_run(file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where the folder of `file` holds work, and `file` does not say that of a run of `settings`."""
    folder = file.parent
    if not checkpoints(folder) and not any((folder / name).exists() for name in ARTEFACTS):
        return
    before, now = _flat(read_settings(file)), _flat(settings)
    if not before:
        raise ValueError(
            f"{folder} holds a result, and no {file.name} that tells what it is of; choose another --run.name"
        )
    changed = [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in _MAY_CHANGE and before.get(name) != now.get(name)
    ]
    if changed:
        raise ValueError(
            f"{folder} holds a run with other settings ({'; '.join(changed)}); choose another --run.name, "
            "or delete the folder"
        )


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
