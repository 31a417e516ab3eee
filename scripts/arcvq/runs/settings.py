"""Compare the settings stored in a run folder with the current ones; refuse to resume or overwrite another run."""

from pathlib import Path
from typing import Any, Literal

from arcvq.checkpoints.checkpoint import has_checkpoints
from arcvq.cli.safe_yaml import read_yaml
from tokenizer.loading.old_configs import with_network_options

# Names of a run's result in its folder.
ARTEFACTS = ("tokenizer", "pipeline")

# These settings may change when a run resumes, because they change neither the data nor the weights of a step.
# Exceptions: max_steps makes a run longer, and a falling schedule then continues as that of the longer run;
# data.on_bad_image may change because a run that a bad image has ended had not seen one before. Files of weights are
# identified by their hashes, wherever they lie.
MAY_CHANGE = frozenset((
    "run.output_dir", "run.name", "run.log_every", "run.sample_every", "run.checkpoint_every", "run.keep_checkpoints",
    "run.max_skipped_steps", "run.threads", "run.other_settings", "collapse.usage_below", "collapse.evaluations",
    "data.num_workers", "data.memory_limit_gib", "data.on_bad_image", "latents.verify", "optim.max_steps",
    "weights.alexnet", "weights.vgg16", "weights.squeezenet", "weights.lpips",
))  # fmt: skip

# Options that older versions did not have, and what was done without them.
_ADDED = {
    "run.cuda_graph": False,
    "stage": "whole",
    "adversarial.fresh_reconstructions": False,
    "adversarial.average_logits": False,
    "unet.zero_init": False,
    "adversarial.discriminator": "patch",
    "adversarial.max_channels": 512,
    "adversarial.discriminator_factor": 1.0,
    "optim.final_lr_share": 0.0,
}

# Only runs with an adversary have these inputs; config.yaml already compares the adversary's weight.
_OF_A_PART = ("step of adversarial.disc_start",)


def read_settings(file: Path) -> dict[str, Any]:
    """Read the settings that a run has stored in its folder; empty where there is no such file, or one of another kind.

    The network's options of older versions are moved to `model.network_options`.
    """
    try:
        settings = read_yaml(file)
        if isinstance(settings.get("model"), dict):
            settings["model"] = with_network_options(settings["model"])
        return settings
    except ValueError:
        return {}


def check_settings(file: Path, settings: dict[str, Any]) -> None:
    """Refuse a run folder that holds checkpoints or results of other settings than `settings`.

    Args:
        file: the file with the stored settings, in the run folder.
        settings: the current ones, nested.

    Raises:
        ValueError: the settings differ; the message names each difference.
    """
    if changed := _differences(file, settings):
        raise ValueError(
            f"{file.parent} {changed}; choose another --run.name, or say with --run.other_settings go_on or start_over "
            "what is to become of it"
        )


def resolve_settings_conflict(
    file: Path, settings: dict[str, Any], policy: Literal["refuse", "go_on", "start_over"], is_main: bool
) -> bool:
    """Apply run.other_settings to a run folder, and tell whether to rename the folder and start over.

    Raises:
        ValueError: the settings differ, and the policy is `refuse`.
    """
    if policy == "refuse":
        check_settings(file, settings)
    changed = _differences(file, settings)
    if changed and is_main:
        print(f"note: {file.parent} {changed}; run.other_settings is {policy}")
    return bool(changed) and policy == "start_over"


def _differences(file: Path, settings: dict[str, Any]) -> str | None:
    """Describe how the stored settings differ from `settings`; None if they do not, or if the folder holds no work."""
    folder = file.parent
    if not has_checkpoints(folder) and not any((folder / name).exists() for name in ARTEFACTS):
        return None
    before = read_settings(file)
    if not before:
        return f"holds a result, and no {file.name} that tells what it is of"
    changed = [
        f"{name} was {was!r} and is now {now!r}"
        for name, (was, now) in differing_settings(before, settings).items()
        if name not in MAY_CHANGE and (name not in _OF_A_PART or None not in (was, now))
    ]
    return f"holds a run with other settings ({'; '.join(changed)})" if changed else None


def differing_settings(before: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return the values before and now of the settings that differ, by dotted name; None where there is no value.

    An option that older versions did not have has the value that it stood for.
    """
    first, second = _ADDED | _flat(before), _ADDED | _flat(now)
    both = {name: (first.get(name), second.get(name)) for name in sorted(first.keys() | second.keys())}
    return {name: (was, is_now) for name, (was, is_now) in both.items() if was != is_now}


def _flat(settings: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested settings to dotted names."""
    flat = {}
    for name, value in settings.items():
        flat |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
