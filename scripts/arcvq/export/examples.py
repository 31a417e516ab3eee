"""Examples of what an exported model does, by which a reader and a test see that its weights still do it."""

from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Subset

from arcvq.compute.precision import full_float32
from arcvq.sampling.batches import sample_batches
from arcvq.sampling.labels import class_labels
from arcvq.sampling.reconstructions import round_trip
from arcvq.sampling.writers import png
from pipelines.class_conditional import ClassConditionalPipeline
from pipelines.figures.grids import image_grid
from pipelines.metrics import psnr, to_uint8
from tokenizer import VQTokenizer
from tokenizer.data import ImageDataset, StreamedImages, evaluation_batches
from tokenizer.data.subsets import evenly_spaced_images, evenly_spaced_indices

# Number of examples; of large images fewer, whose files would be large.
FEWEST, MOST = 8, 12
_LARGE = 64  # pixels of a side
# Denoising steps of the stored samples: few, so that repeating them takes seconds.
STEPS = 20


@full_float32()
@torch.no_grad()
def write_reconstructions(
    tokenizer: VQTokenizer, images: ImageDataset | StreamedImages, folder: Path
) -> list[dict[str, Any]]:
    """Write held-out images as PNG files, and a picture of them above their reconstructions.

    Args:
        tokenizer: in eval mode.
        images: of the tokenizer's size and channels.
        folder: gets `examples/NN.png` and `examples.png`.

    Returns:
        of each image: file, codes (h, w) or (h, w, depth), None for a continuous tokenizer, and PSNR in dB of the
        reconstruction as uint8.
    """
    number = MOST if images.image_size <= _LARGE else FEWEST
    chosen = Subset(images, evenly_spaced_images(images, number))
    (batch,) = evaluation_batches(chosen, batch_size=number)
    decoded, codes = round_trip(tokenizer, batch["images"].to(tokenizer.device))
    originals, reconstructions = to_uint8(batch["images"]), to_uint8(decoded).cpu()
    scores = psnr(originals, reconstructions).tolist()
    picture = image_grid(torch.cat([originals, reconstructions]), columns=len(originals))
    factor = max(1, round(_LARGE / images.image_size))
    enlarged = picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    enlarged.save(folder / "examples.png", format="PNG")
    files = _write(originals, folder)
    listed = [None] * len(files) if codes is None else codes.tolist()
    return [
        {"image": file, "psnr": round(score, 4), "codes": of_image}
        for file, score, of_image in zip(files, scores, listed, strict=True)
    ]


@full_float32()
def write_samples(pipeline: ClassConditionalPipeline, folder: Path) -> dict[str, Any]:
    """Write samples of several classes as PNG files.

    Args:
        pipeline: in eval mode.
        folder: gets `examples/NN.png`.

    Returns:
        `call`, the arguments of the pipeline's call that made all of them in one batch, and `images`: file, class
        label, class name and seed of each.
    """
    chosen = evenly_spaced_indices(len(pipeline.class_names), MOST).tolist()
    labels = class_labels(max(FEWEST, len(chosen)), chosen, "balanced", 0).tolist()
    call = {"num_inference_steps": STEPS} if "scheduler" in pipeline.components else {}
    (images,) = sample_batches(pipeline, labels, range(len(labels)), len(labels), show_progress=False, **call)
    files = _write(images, folder)
    return {
        "call": call,
        "images": [
            {"image": file, "class_label": label, "class_name": pipeline.class_names[label], "seed": seed}
            for seed, (file, label) in enumerate(zip(files, labels, strict=True))
        ],
    }


def _write(images: Tensor, folder: Path) -> list[str]:
    """Write images uint8 (n, C, H, W) as PNG files, and return their names in the folder."""
    (folder / "examples").mkdir()
    files = [f"examples/{index:02d}.png" for index in range(len(images))]
    for file, image in zip(files, images, strict=True):
        (folder / file).write_bytes(png(image))
    return files
