"""Find the result in a run folder, and describe what another folder holds instead."""

from pathlib import Path

from tokenizer.loading.json_config import read_json

# A run's result, by its name in the run folder, and the file in it that says of what class it is.
RESULTS = {"tokenizer": "config.json", "pipeline": "model_index.json"}

_FEW = 5  # folders that an error lists


def result_folder(folder: Path, result: str, wanted: str) -> Path:
    """Return `folder` if it holds the result itself, or the result's folder in it if it is a run folder.

    Args:
        folder: a local folder.
        result: `tokenizer` or `pipeline`.
        wanted: name of the class, for the error message.

    Raises:
        ValueError: the folder is neither.
    """
    for candidate in (folder, folder / result):
        if (candidate / RESULTS[result]).exists():
            return candidate
    raise ValueError(
        f"{folder} holds no {wanted}: there is no {RESULTS[result]} in it; it holds {what_it_holds(folder)}"
    )


def what_it_holds(folder: Path) -> str:
    """Describe for an error message what a folder holds instead of the wanted result, and how to load it."""
    results = _results(folder)
    above = folder.absolute().parent
    if whole := class_in(above / RESULTS["pipeline"]):
        itself = f"a {results[0][1]}, " if results else ""
        return f"{itself}a part of the {whole} in {above}; name that folder, or load the part with its own class"
    if results:
        holder, name = results[0]
        inside = "" if holder == folder else f" in {holder}"
        part = f"; its tokenizer is in {holder / 'vqvae'}" if (holder / "vqvae").is_dir() else ""
        return f"a {name}{inside}, which {name}.from_pretrained loads{part}"
    if any((folder / name).exists() for name in ("checkpoints", "config.yaml")):
        return "a run that has no such result yet; start its training again to complete it, or name another folder"
    if holders := [str(holder) for below in sorted(folder.glob("*/")) for holder, _ in _results(below)]:
        others = ", ..." if len(holders) > _FEW else ""
        return f"folders with {', '.join(holders[:_FEW])}{others}; name one of them"
    return "nothing that this project has written; name a run folder, or one that save_pretrained has written"


def class_in(index: Path) -> str | None:
    """Return the class named in a diffusers index file; None if the file is missing or no index."""
    try:
        name = read_json(index).get("_class_name")
    except ValueError:
        return None
    return name if isinstance(name, str) and name.isidentifier() else None


def _results(folder: Path) -> list[tuple[Path, str]]:
    """List the results in a folder, its own or a run's, with their classes."""
    folders = (folder, *(folder / name for name in RESULTS))
    candidates = [(holder, index) for holder in folders for index in RESULTS.values()]
    return [(holder, name) for holder, index in candidates if (name := class_in(holder / index))]
