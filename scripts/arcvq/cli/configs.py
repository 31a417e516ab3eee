"""The configs that come with the project: configs/ of a checkout, or the copy that is installed with the package."""

from pathlib import Path

import arcvq


def _find() -> Path:
    package = Path(arcvq.__file__).resolve().parent
    checkout = package.parent.parent / "configs"
    return checkout if (checkout.parent / "pyproject.toml").is_file() else package / "configs"


CONFIGS = _find()
