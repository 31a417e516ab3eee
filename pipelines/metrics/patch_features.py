"""Features of the patches of images, of the extractors that have a map of them: rows for a frozen codebook."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.metrics.extractors import AlexNetExtractor, DINOv2Extractor, Extractor

# The layer whose output has the patches, and how they are taken out of it: (B, patches, D).
_PATCHES: dict[type[Extractor], tuple[str, Callable[[Any], Tensor]]] = {
    AlexNetExtractor: ("layers", lambda maps: maps.flatten(2).mT),
    DINOv2Extractor: ("model", lambda output: output.last_hidden_state[:, 1:]),
}


def patch_features(extractor: Extractor, images: Tensor) -> Tensor:
    """uint8 (B, C, H, W) => float32 (B * patches, D) on the CPU; of an extractor without patches, one of each image.

    Raises:
        ValueError: see `Extractor.extract`.
    """
    if type(extractor) not in _PATCHES:
        return extractor.extract(images)[0]
    layer, patches = _PATCHES[type(extractor)]
    found: list[Tensor] = []
    hook = getattr(extractor, layer).register_forward_hook(
        lambda module, inputs, output: found.append(patches(output).flatten(0, 1).float().cpu())
    )
    try:
        extractor.extract(images)
    finally:
        hook.remove()
    return torch.cat(found)
