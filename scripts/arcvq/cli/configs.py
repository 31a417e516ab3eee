"""The configs that come with the project: configs/ of a checkout, or the copy that is installed with the package."""

import difflib
from pathlib import Path

import arcvq


def _find() -> Path:
    package = Path(arcvq.__file__).resolve().parent
    checkout = package.parent.parent / "configs"
    return checkout if (checkout.parent / "pyproject.toml").is_file() else package / "configs"


CONFIGS = _find()

# Folders of accelerate's launcher and of `arcvq queue`.
_OTHERS = ("accelerate", "queue")


def find_config(name: str, names: list[str] | None = None) -> Path:
    """Find a config: a path that exists is that path, else the name is looked up below CONFIGS.

    Args:
        name: a path, or a name as mnist/arcvq.yaml, configs/mnist/arcvq.yaml or mnist/arcvq.
        names: the configs that it may be; None: those of verbs.

    Raises:
        ValueError: neither a file nor a config of this name exists; the error lists the names that are close.
    """
    path = Path(name).expanduser()
    if path.exists():
        return path
    names = config_names() if names is None else names
    wanted = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml") + ".yaml"
    if wanted in names:
        return CONFIGS / wanted
    stem = wanted.rpartition("/")[2]
    close = [known for known in names if known.endswith(f"/{stem}")]
    close = close or difflib.get_close_matches(wanted, names, n=3)
    meant = f"did you mean {' or '.join(close)}?" if close else f"{CONFIGS} has {', '.join(sorted(_folders(names)))}"
    raise ValueError(f"{name} is not there, or no file, and no config of this name is installed; {meant}")


def config_names(folder: str | None = None) -> list[str]:
    """List configs by name, as mnist/arcvq.yaml.

    Args:
        folder: the folder of those that are no options of a verb, `accelerate` or `queue`; None: all others.
    """
    names = (file.relative_to(CONFIGS).as_posix() for file in CONFIGS.glob("*/*.yaml"))
    if folder is not None:
        return sorted(name for name in names if name.startswith(f"{folder}/"))
    return sorted(name for name in names if name.partition("/")[0] not in _OTHERS)


def _folders(names: list[str]) -> set[str]:
    return {name.partition("/")[0] + "/" for name in names}
