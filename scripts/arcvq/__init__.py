"""Image tokenizers, priors over their latents and codes, pipelines, and the commands that train and measure them.

The four classes are imported when they are first asked for: each brings torch and diffusers along.
"""

import importlib
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pipelines import ArcVQLDMPipeline, ArcVQPixelCNNPipeline
    from priors import PixelCNN
    from tokenizer import VQTokenizer

if sys.platform == "darwin":
    # Read once, by torch's import: what Metal has no operator for is computed on the CPU, with a warning.
    os.environ.setdefault("PYTORCH_ENABLE_MPS_FALLBACK", "1")

_HOMES = {
    "VQTokenizer": "tokenizer",
    "PixelCNN": "priors",
    "ArcVQLDMPipeline": "pipelines",
    "ArcVQPixelCNNPipeline": "pipelines",
}

__all__ = ["ArcVQLDMPipeline", "ArcVQPixelCNNPipeline", "PixelCNN", "VQTokenizer"]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module 'arcvq' has no attribute {name!r}; it has {', '.join(_HOMES)}")
    return getattr(importlib.import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return [*globals(), *_HOMES]
