"""The configs that come with the project: configs/ of a checkout, or the copy that is installed with the package."""

import difflib
from pathlib import Path

import arcvq


def _find() -> Path:
    package = Path(arcvq.__file__).resolve().parent
    checkout = package.parent.parent / "configs"
    return checkout if (checkout.parent / "pyproject.toml").is_file() else package / "configs"


CONFIGS = _find()


def find_config(name: str) -> Path:
    """Find a config: a path that exists is that path, else the name is looked up below CONFIGS.

    Args:
        name: a path, or a name as mnist/arcvq.yaml, configs/mnist/arcvq.yaml or mnist/arcvq.

    Raises:
        ValueError: neither a file nor a config of this name exists; the error lists the names that are close.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    names = config_names()
    wanted = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if wanted in names:
        return CONFIGS / wanted
    stem = wanted.rpartition("/")[2]
    close = [known for known in names if known.endswith(f"/{stem}")]
    close = close or difflib.get_close_matches(wanted, names, n=3)
    meant = f"did you mean {' or '.join(close)}?" if close else f"{CONFIGS} has {', '.join(sorted(_folders(names)))}"
    raise ValueError(f"{name} is not there, or no file, and no config of this name is installed; {meant}")


def config_names() -> list[str]:
    """List the configs of verbs by name, as mnist/arcvq.yaml; those of accelerate's launcher are others."""
    names = (file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("*/*.yaml"))
    return sorted(name for name in names if not name.startswith("accelerate/"))


def _folders(names: list[str]) -> set[str]:
    return {name.partition("/")[0] + "/" for name in names}
