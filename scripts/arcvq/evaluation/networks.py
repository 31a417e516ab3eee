"""What measuring reconstructions and samples share: the networks that measure, and what a result says of them."""

from dataclasses import dataclass
from typing import Any

from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.compute.resumable import ResumableMap
from arcvq.evaluation.image_sources import ImageSource
from pipelines.metrics.digits import IMAGE_SIZE
from pipelines.metrics.digits import NAME as DIGITS
from pipelines.metrics.extractors import Extractor, ExtractorConfig, make_extractor
from pipelines.metrics.protocols import Protocol
from tokenizer.losses.lpips import LPIPS

CHUNK = 64  # images measured at once, where they are not sampled
PACKAGES = ("numpy", "pillow", "transformers")


@dataclass(frozen=True)
class Measuring:
    """The networks that measure, on the CPU: `extractor` and `perceptual`, either of which may be none."""

    protocol: Protocol
    extractor: Extractor | None
    perceptual: LPIPS | None

    def describe(self) -> dict[str, Any]:
        """The protocol, and the networks with the hashes of their weights."""
        facts = self.protocol.describe()
        facts["extractor"] = None if self.extractor is None else extractor_facts(self.extractor)
        if self.perceptual is not None:
            dtype = str(self.perceptual.shift.dtype).removeprefix("torch.")
            facts["lpips"] = {"name": self.perceptual.name, "sha256": self.perceptual.hashes, "dtype": dtype}
        return facts


@dataclass(frozen=True)
class Measured:
    """What was measured: the protocol with all that it was measured on, the numbers, and the chunks behind them."""

    protocol: dict[str, Any]
    numbers: dict[str, float | int]
    chunks: ResumableMap


def extractor_facts(extractor: Extractor) -> dict[str, Any]:
    """What features depend on beside the images."""
    return {
        "name": extractor.name,
        "class": f"{type(extractor).__module__}.{type(extractor).__qualname__}",
        "sha256": extractor.sha256,
        "input": extractor.input_text,
        "dtype": str(extractor.place.dtype).removeprefix("torch."),
    }


def make_measuring(config: Namespace, protocol: Protocol, extractor: str | None) -> Measuring:
    """The networks that the options ask for; the main process downloads what is not there.

    Raises:
        ValueError: an unknown extractor, or weights that are missing, truncated or of the wrong hash.
    """
    if config.resize is not None and extractor is None:
        raise ValueError(f"--resize {config.resize} is that of an extractor's images: name one with --extractor")
    double = config.dtype == "float64"
    with PartialState().main_process_first():
        made = extractor and make_extractor(
            extractor,
            ExtractorConfig(
                resize=config.resize,
                dinov2=config.dinov2,
                weights=config.weights,
                double=double,
                fid_input_229=protocol.fid_input_229,
                cache_dir=config.cache_dir,
            ),
        )
        perceptual = LPIPS(config.lpips, config.weights) if config.lpips else None
    return Measuring(protocol, made or None, perceptual.double() if perceptual and double else perceptual)


def default_extractor(config: Namespace, otherwise: str | None) -> str | None:
    """The extractor that was named, the digits' classifier for the digits as it reads them, else `otherwise`."""
    digits = config.data.name == "digits" and config.data.image_size in (None, IMAGE_SIZE)
    return config.extractor or (DIGITS if digits else otherwise)


def refuse_skipping(config: Namespace) -> None:
    """ValueError where images would be left out: a number is that of all images of a split."""
    if config.data.on_bad_image != "error":
        raise ValueError(
            f"data.on_bad_image {config.data.on_bad_image} would measure some images twice and others not; "
            "set it to error, and remove the images that are then named"
        )


def check_count(number: int | None, there: int, what: str) -> int:
    """The number of images to measure: `number`, or all `there` are. ValueError where it is not between 1 and those."""
    if number is not None and not 1 <= number <= there:
        raise ValueError(f"num_images is {number}, but there are {there} {what}; take 1 to {there}")
    return there if number is None else number


def check_same_images(images: ImageSource, others: ImageSource) -> None:
    """ValueError where two sources cannot be compared image by image."""
    ours, theirs = ((len(these), *these[0].shape) for these in (images, others))
    if ours != theirs:
        raise ValueError(
            f"{images.name} holds {ours} images (number, channels, height, width) and {others.name} {theirs}; make "
            "them equal: see --num_images, --data.channels and --data.image_size"
        )
