"""Compare two sets of images that should be the same => numbers, and a JSON file with --output.

python scripts/evaluate.py compare samples-float32/images samples-bfloat16/images
python scripts/evaluate.py compare runs/ldm/samples-0/samples.npz other/samples.npz --output difference.json

Differences are in levels of 8 bits, 0 to 255.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from tqdm.auto import tqdm

from arcvq.cli.help import HelpPage
from arcvq.cli.parser import ScriptParser
from arcvq.cli.provenance import provenance
from arcvq.evaluation.image_sources import ImageSource, open_image_source

HELP = HelpPage(
    examples=(
        "arcvq evaluate compare samples-float32/images samples-bfloat16/images",
        "arcvq evaluate compare runs/ldm/samples-0/samples.npz other/samples.npz --output difference.json",
    ),
    writes="OUTPUT, if given: a JSON file with the numbers that it prints",
    following="arcvq evaluate generation FOLDER measures one of the sets",
)


def main(args: Sequence[str] | None = None) -> None:
    """Compare image by image, print and write."""
    parser = ScriptParser("Compare two sets of images, image by image.", page=HELP)
    for name in ("first", "second"):
        parser.add_argument(name, type=str, help="folder of images, or npz")
    parser.add_argument("--output", type=str | None, default=None, help="JSON file of the numbers; None: none")
    config = parser.parse(args)
    first, second = (open_images(folder) for folder in (config.first, config.second))
    sizes = [(len(source), *source.image_size) for source in (first, second)]
    if sizes[0] != sizes[1]:
        raise ValueError(
            f"{first.name} holds (number, height, width) {sizes[0]} and {second.name} {sizes[1]}: name sets of one kind"
        )
    numbers = differences(first, second)
    for name, value in numbers.items():
        print(f"  {name:28}{value:.6g}")
    if config.output is not None:
        file = Path(config.output)
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(
            json.dumps({"protocol": provenance("evaluate compare", args), "numbers": numbers}, indent=2) + "\n"
        )


def open_images(folder: str) -> ImageSource:
    """Open a folder of images or an npz. Raises ValueError if it has no images."""
    if not Path(folder).exists():
        raise ValueError(f"{folder!r} is not there; name a folder of images, or an npz")
    source = open_image_source(folder)
    if source is None:
        raise ValueError(
            f"{folder!r} holds a model and no images; arcvq sample writes its images into a folder of their own"
        )
    return source


def differences(first: ImageSource, second: ImageSource) -> dict[str, float]:
    """Compute named numbers from two sources with the same number and shape of images."""
    pixels, total, near, same, farthest, largest = 0, 0, 0, 0, 0.0, 0
    for image, other in tqdm(zip(first, second, strict=True), total=len(first), desc="comparing", unit="image"):
        # ADM's layout has three channels for grey images too.
        apart = (image.int().expand(3, -1, -1) - other.int().expand(3, -1, -1)).abs()
        pixels += apart.numel()
        total += apart.sum().item()
        near += (apart <= 1).sum().item()
        same += int(not apart.any())
        farthest = max(farthest, apart.double().mean().item())
        largest = max(largest, apart.max().item())
    return {
        "images": len(first),
        "equal_images": same,
        "mean_levels": total / pixels,
        "farthest_image_mean_levels": farthest,
        "largest_levels": largest,
        "pixels_within_one_level": near / pixels,
    }
