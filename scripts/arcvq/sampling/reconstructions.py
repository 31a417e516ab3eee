"""Reconstruct images with a trained tokenizer, through its codes: images => images."""

import torch
from torch import Tensor
from torch.utils.data import Dataset

from arcvq.compute.precision import full_float32
from pipelines.metrics import ReconstructionMetrics
from pipelines.metrics.images import as_levels, check_finite
from tokenizer import VQTokenizer
from tokenizer.data import evaluation_batches

# The number of images that `reconstruct` returns.
SHOWN = 64
# Pixels per channel of a batch: 16 images of 256 px fit into the memory that a training leaves.
PIXELS_AT_ONCE = 2**20


@full_float32()
@torch.no_grad()
def reconstruct(tokenizer: VQTokenizer, images: Dataset) -> tuple[Tensor, Tensor, ReconstructionMetrics]:
    """Reconstruct all images, and return the first 64 of them with the metrics over all.

    All is computed on the tokenizer's device, and nothing is read from it before the last batch.

    Returns:
        originals and reconstructions, uint8 (n, C, H, W) on the CPU, and the metrics.

    Raises:
        ValueError: an image or a reconstruction holds NaN or infinity.
    """
    tokenizer.eval()
    metrics = ReconstructionMetrics(number_of_codes(tokenizer))
    shown: list[tuple[Tensor, Tensor]] = []
    batch_size = max(1, min(SHOWN, PIXELS_AT_ONCE // tokenizer.config.image_size**2))
    broken = torch.zeros((), dtype=torch.int64, device=tokenizer.device)
    for batch in evaluation_batches(images, batch_size=batch_size, device=tokenizer.device):
        floats = batch["images"]
        decoded, codes = round_trip(tokenizer, floats)
        pair = as_levels(floats), as_levels(decoded)
        for side in (floats, decoded):
            broken += (~torch.isfinite(side)).sum()
        metrics.update(*pair, None if codes is None else tokenizer.bottleneck.rows_of(codes))
        if len(shown) * batch_size < SHOWN:
            shown.append(pair)
    check_finite(broken)
    originals, reconstructions = (torch.cat(side)[:SHOWN].cpu() for side in zip(*shown, strict=True))
    return originals, reconstructions, metrics


def number_of_codes(tokenizer: VQTokenizer) -> int:
    """Return the number of rows of the codebook, or 0 if the quantizer is continuous."""
    return tokenizer.bottleneck.codebook_rows if tokenizer.has_codes else 0


@torch.no_grad()
def round_trip(tokenizer: VQTokenizer, images: Tensor) -> tuple[Tensor, Tensor | None]:
    """Encode images to codes, or to latents if the tokenizer has no codes, and decode them.

    Args:
        tokenizer: in eval mode.
        images: (B, C, H, W) in [-1, 1].

    Returns:
        reconstructions, (B, C, H, W), and the codes; None without codes.
    """
    if not tokenizer.has_codes:
        return tokenizer.decode(tokenizer.encode(images).latents).sample, None
    codes = tokenizer.encode_codes(images)
    return tokenizer.decode_codes(codes), codes
