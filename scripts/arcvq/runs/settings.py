"""What a run folder says of the run in it, so that no other run goes on from it or writes over it unasked."""

from pathlib import Path
from typing import Any, Literal

from arcvq.checkpoints.checkpoint import has_checkpoints
from arcvq.cli.safe_yaml import read_yaml
from tokenizer.loading.old_configs import with_network_options

# What a run's result is called in its folder.
ARTEFACTS = ("tokenizer", "pipeline")

# May differ between the start of a run and its resumption: they change neither the data nor the weights of a step, but
# for max_steps, which is how a run is made longer; a schedule that falls then goes on as that of the longer run. A
# folder may be renamed, and files of weights are known by their hashes, wherever they are. A run that a bad image has
# ended had met none before.
_MAY_CHANGE = (
    "run.output_dir", "run.name", "run.log_every", "run.sample_every", "run.checkpoint_every", "run.keep_checkpoints",
    "run.max_skipped_steps", "run.other_settings", "collapse.usage_below", "collapse.evaluations",
    "data.num_workers", "data.memory_limit_gib", "data.on_bad_image", "latents.verify", "optim.max_steps",
    "weights.alexnet", "weights.vgg16", "weights.squeezenet", "weights.lpips",
)  # fmt: skip

# There only with an adversary, of whose weight config.yaml tells.
_OF_A_PART = ("step of adversarial.disc_start",)


def read_settings(file: Path) -> dict[str, Any]:
    """Read the settings that a run has stored in its folder; empty where there is no such file, or one of another kind.

    The network's options are moved to `model.network_options`, which older versions did not have.
    """
    try:
        settings = read_yaml(file)
        if isinstance(settings.get("model"), dict):
            settings["model"] = with_network_options(settings["model"])
        return settings
    except ValueError:
        return {}


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Raises ValueError where the folder of `file` holds work, and `file` does not say that of a run of `settings`."""
    if changed := _differences(file, settings):
        raise ValueError(
            f"{file.parent} {changed}; choose another --run.name, or say with --run.other_settings go_on or start_over "
            "what is to become of it"
        )


def resolve_settings_conflict(
    file: Path, settings: dict[str, Any], policy: Literal["refuse", "go_on", "start_over"], is_main: bool
) -> bool:
    """Whether the folder of `file` is to be renamed and begun anew, by a policy that is not `refuse`, which raises."""
    if policy == "refuse":
        check_settings(file, settings)
    changed = _differences(file, settings)
    if changed and is_main:
        print(f"note: {file.parent} {changed}; run.other_settings is {policy}")
    return bool(changed) and policy == "start_over"


def _differences(file: Path, settings: dict[str, Any]) -> str | None:
    """How the work in the folder of `file` differs from a run of `settings`; None where nothing does."""
    folder = file.parent
    if not has_checkpoints(folder) and not any((folder / name).exists() for name in ARTEFACTS):
        return None
    before, now = _flat(read_settings(file)), _flat(settings)
    if not before:
        return f"holds a result, and no {file.name} that tells what it is of"
    changed = [
        f"{name} was {before.get(name)!r} and is now {now.get(name)!r}"
        for name in sorted(before.keys() | now.keys())
        if name not in _MAY_CHANGE and before.get(name) != now.get(name)
        if name not in _OF_A_PART or (name in before and name in now)
    ]
    return f"holds a run with other settings ({'; '.join(changed)})" if changed else None


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested settings by dotted name."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
