"""The networks that measure images, their description in a result, and checks that all evaluations share."""

from dataclasses import dataclass
from typing import Any

import torch
from accelerate import PartialState
from jsonargparse import Namespace

from arcvq.compute.devices import device_for
from arcvq.evaluation.image_sources import ImageSource
from pipelines.metrics.digits import IMAGE_SIZE
from pipelines.metrics.digits import NAME as DIGITS
from pipelines.metrics.extractors import Extractor, ExtractorConfig, make_extractor
from pipelines.metrics.protocols import Protocol
from tokenizer.functional.float64 import has_float64
from tokenizer.losses.lpips import LPIPS

CHUNK = 64  # images measured at once, unless they are sampled
PACKAGES = ("numpy", "pillow", "transformers")


@dataclass(frozen=True)
class MetricNetworks:
    """The networks that measure, on this process's device; on the CPU where that has not their dtype.

    Attributes:
        protocol: the protocol that they follow.
        extractor: of features; None if no metric needs them.
        perceptual: LPIPS; None if it is not measured.
    """

    protocol: Protocol
    extractor: Extractor | None
    perceptual: LPIPS | None

    def describe(self) -> dict[str, Any]:
        """Describe the protocol, and the networks with the hashes of their weights, as JSON."""
        facts = self.protocol.describe()
        facts["extractor"] = None if self.extractor is None else extractor_facts(self.extractor)
        if self.perceptual is not None:
            dtype = str(self.perceptual.shift.dtype).removeprefix("torch.")
            facts["lpips"] = {"name": self.perceptual.name, "sha256": self.perceptual.hashes, "dtype": dtype}
        device = PartialState().device
        if not has_float64(device):
            facts["on_cpu"] = f"{device.type} has no float64: distances and scores, and networks of --dtype float64"
        return facts


def extractor_facts(extractor: Extractor) -> dict[str, Any]:
    """Describe an extractor: all that features depend on except the images."""
    return {
        "name": extractor.name,
        "class": f"{type(extractor).__module__}.{type(extractor).__qualname__}",
        "sha256": extractor.sha256,
        "input": extractor.input_text,
        "dtype": str(extractor.place.dtype).removeprefix("torch."),
    }


def make_metric_networks(config: Namespace, protocol: Protocol, extractor: str | None) -> MetricNetworks:
    """Make the networks that the options ask for; the main process downloads missing weights.

    Raises:
        ValueError: an unknown extractor, or weights that are missing, truncated or of the wrong hash.
    """
    if config.resize is not None and extractor is None:
        raise ValueError(f"--resize {config.resize} is that of an extractor's images: name one with --extractor")
    double = config.dtype == "float64"
    with PartialState().main_process_first():
        features = extractor and make_extractor(
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
    perceptual = perceptual.double() if perceptual and double else perceptual
    device = device_for(torch.float64 if double else torch.float32, PartialState().device)
    return MetricNetworks(protocol, features and features.to(device), perceptual and perceptual.to(device))


def default_extractor(config: Namespace, otherwise: str | None) -> str | None:
    """Return the given extractor; else the digits' classifier for digits of its size, or `otherwise`."""
    digits = config.data.name == "digits" and config.data.image_size in (None, IMAGE_SIZE)
    return config.extractor or (DIGITS if digits else otherwise)


def refuse_skipping(config: Namespace) -> None:
    """Raise ValueError if images could be skipped, because a metric is that of all images of a split."""
    if config.data.on_bad_image != "error":
        raise ValueError(
            f"data.on_bad_image {config.data.on_bad_image} would measure some images twice and others not; "
            "set it to error, and remove the images that are then named"
        )


def check_count(number: int | None, available: int, what: str) -> int:
    """Return the number of images to measure: `number`, or all if it is None.

    Raises:
        ValueError: it is not between 1 and the `available` images; `what` names these.
    """
    if number is not None and not 1 <= number <= available:
        raise ValueError(f"num_images is {number}, but there are {available} {what}; take 1 to {available}")
    return available if number is None else number


def check_same_images(images: ImageSource, others: ImageSource) -> None:
    """Raise ValueError if two sources differ in number or shape of their images."""
    kind, other_kind = ((len(source), *source[0].shape) for source in (images, others))
    if kind != other_kind:
        raise ValueError(
            f"{images.name} holds {kind} images (number, channels, height, width) and {others.name} {other_kind}; make "
            "them equal: see --num_images, --data.channels and --data.image_size"
        )
