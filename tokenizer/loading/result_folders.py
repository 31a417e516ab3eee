"""Find the result in a run folder, and say what another folder holds instead."""

from pathlib import Path

from tokenizer.loading.json_config import read_json

# A run's result, by its name in the run folder, and the file in it that says of what class it is.
RESULTS = {"tokenizer": "config.json", "pipeline": "model_index.json"}

_FEW = 5  # folders that an error lists


def result_folder(folder: Path, result: str, wanted: str) -> Path:
    """`folder` itself where it holds a result, or the result in it where it is a run folder.

    Args:
        folder: a local one.
        result: `tokenizer` or `pipeline`.
        wanted: the class, for the error.

    Raises:
        ValueError: it is neither.
    """
    for place in (folder, folder / result):
        if (place / RESULTS[result]).exists():
            return place
    raise ValueError(
        f"{folder} holds no {wanted}: there is no {RESULTS[result]} in it; it holds {what_it_holds(folder)}"
    )


def what_it_holds(folder: Path) -> str:
    """Say for an error what a folder holds in place of what was looked for, and how that is loaded."""
    found = _results(folder)
    above = folder.absolute().parent
    if whole := class_in(above / RESULTS["pipeline"]):
        itself = f"a {found[0][1]}, " if found else ""
        return f"{itself}a part of the {whole} in {above}; name that folder, or load the part with its own class"
    if found:
        place, name = found[0]
        inside = "" if place == folder else f" in {place}"
        part = f"; its tokenizer is in {place / 'vqvae'}" if (place / "vqvae").is_dir() else ""
        return f"a {name}{inside}, which {name}.from_pretrained loads{part}"
    if any((folder / name).exists() for name in ("checkpoints", "config.yaml")):
        return "a run that has no such result yet; start its training again to complete it, or name another folder"
    if places := [str(place) for below in sorted(folder.glob("*/")) for place, _ in _results(below)]:
        others = ", ..." if len(places) > _FEW else ""
        return f"folders with {', '.join(places[:_FEW])}{others}; name one of them"
    return "nothing that this project has written; name a run folder, or one that save_pretrained has written"


def class_in(index: Path) -> str | None:
    """The class that a diffusers index file names; None where there is no such file, or it is something else."""
    try:
        name = read_json(index).get("_class_name")
    except ValueError:
        return None
    return name if isinstance(name, str) and name.isidentifier() else None


def _results(folder: Path) -> list[tuple[Path, str]]:
    """The results in a folder, itself or as a run's, with their classes."""
    places = [(place, index) for place in (folder, *(folder / name for name in RESULTS)) for index in RESULTS.values()]
    return [(place, name) for place, index in places if (name := class_in(place / index))]
