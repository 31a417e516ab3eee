"""Extract features of image patches, for extractors with a feature map: rows for a frozen codebook."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from pipelines.metrics.extractors import AlexNetExtractor, DINOv2Extractor, Extractor

# Layer whose output has the patches, and a function that extracts them: (B, patches, D).
_PATCHES: dict[type[Extractor], tuple[str, Callable[[Any], Tensor]]] = {
    AlexNetExtractor: ("layers", lambda maps: maps.flatten(2).mT),
    DINOv2Extractor: ("model", lambda output: output.last_hidden_state[:, 1:]),
}


def patch_features(extractor: Extractor, images: Tensor) -> Tensor:
    """Extract patch features of uint8 (B, C, H, W): float32 (B * patches, D) on the CPU.

    An extractor without patches gives one feature per image.

    Raises:
        ValueError: as `Extractor.extract`.
    """
    if type(extractor) not in _PATCHES:
        return extractor.extract(images)[0]
    layer, patches = _PATCHES[type(extractor)]
    features: list[Tensor] = []
    hook = getattr(extractor, layer).register_forward_hook(
        lambda module, inputs, output: features.append(patches(output).flatten(0, 1).float().cpu())
    )
    try:
        extractor.extract(images)
    finally:
        hook.remove()
    return torch.cat(features)
