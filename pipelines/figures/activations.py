"""Activation maps of latent tokens, drawn over their images: figure 5 of the paper (arXiv 2605.13517)."""

import textwrap
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from torch import Tensor

from pipelines.figures.tokenizers import NotDrawable


def plot_activations(
    originals: Tensor, tokenizers: Sequence[tuple[str, Tensor, Tensor]], path: str | Path
) -> dict[str, Any]:
    """Draw figure 5: a row per image: the original, then each tokenizer's activation map and reconstruction.

    The paper does not define its activation. Here it is that of `activation_maps`, drawn half transparent over the
    image, each latent token over the pixels of its grid cell.

    Args:
        originals: uint8 (n, C, H, W), C 1 or 3.
        tokenizers: for each, its name, latents before quantisation (n, D, h, w), and reconstructions like the
            originals.
        path: path of the PNG.

    Returns:
        The activation maps by tokenizer, as stored in JSON.

    Raises:
        ValueError: other than one latent map and one reconstruction per original.
    """
    for name, latents, reconstructions in tokenizers:
        if reconstructions.shape != originals.shape or len(latents) != len(originals):
            shapes = f"latents {tuple(latents.shape)} and reconstructions {tuple(reconstructions.shape)}"
            raise ValueError(f"{name} has {shapes} for originals {tuple(originals.shape)}; pass one of each per image")
    columns = 1 + 2 * len(tokenizers)
    figure = Figure(figsize=(1.55 * columns + 0.9, 1.55 * len(originals) + 0.7), dpi=160, layout="constrained")
    panels = figure.subplots(len(originals), columns, squeeze=False)
    maps = {name: activation_maps(latents) for name, latents, _ in tokenizers}
    height, width = originals.shape[2:]
    for row, original in zip(panels, originals, strict=True):
        _show(row[0], original)
        for panel in row:
            panel.set_axis_off()
    for i, (name, _, reconstructions) in enumerate(tokenizers):
        map_panels, image_panels = panels[:, 1 + 2 * i], panels[:, 2 + 2 * i]
        for j, activations in enumerate(maps[name]):
            _show(map_panels[j], originals[j])
            extent = (-0.5, width - 0.5, height - 0.5, -0.5)
            colours = map_panels[j].imshow(
                activations.numpy(), vmin=0, vmax=1, cmap="inferno", alpha=0.6, interpolation="nearest", extent=extent
            )
            _show(image_panels[j], reconstructions[j])
        map_panels[0].set_title(f"{textwrap.fill(name, 18)}\nactivation", fontsize=9)
        image_panels[0].set_title(f"{textwrap.fill(name, 18)}\nreconstruction", fontsize=9)
    panels[0, 0].set_title("original", fontsize=9)
    bar = figure.colorbar(colours, ax=panels, aspect=12 * len(originals), shrink=0.9)
    bar.solids.set_alpha(1)
    bar.set_label("norm of the latent token / largest in the image", fontsize=9 if len(originals) > 1 else 6)
    figure.savefig(path, format="png")
    return {name: {"activations": maps[name].tolist()} for name in maps}


def activation_maps(latents: Tensor) -> Tensor:
    """Compute each token's norm divided by the largest in its image: latents (n, D, h, w) -> float64 (n, h, w).

    Raises:
        NotDrawable: latents of length 1, from a method that normalises them.
    """
    norms = torch.linalg.vector_norm(latents.double(), dim=1)
    if (norms - 1).abs().max() < 1e-5:
        raise NotDrawable("all latents have length 1: their method normalises them, and there is no activation to see")
    return norms / norms.amax(dim=(1, 2), keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)


def _show(panel: Axes, image: Tensor) -> None:
    panel.imshow(image.expand(3, -1, -1).permute(1, 2, 0).numpy(), interpolation="nearest")
