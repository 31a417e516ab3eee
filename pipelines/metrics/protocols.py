"""Named protocols: how images become bytes, how many are needed, and what they are compared with.

Two numbers are comparable if their protocols are equal; `describe` is stored with every number.

| name | measures | images | reference |
|---|---|---|---|
| rfid | reconstructions | the whole held-out split | the originals, converted to bytes the same way |
| official_jpeg | reconstructions | the whole held-out split | the same, as the public ArcVQ-VAE code does it |
| torch-fidelity | samples | 50,000 | a split of a data set |
| adm | samples, equally many of each class | 50,000 | a file of statistics, as ADM's evaluator reads them |
"""

import io
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from pipelines.metrics.images import to_uint8

JPEG_QUALITY = 75


@dataclass(frozen=True)
class Protocol:
    """A named way to measure.

    Args:
        name: stored with every number.
        measures: reconstructions of a tokenizer, or samples of a prior.
        reference: originals of the reconstructions, a split of a data set, or a file of statistics.
        asked: number of images; None: the whole held-out split. Fewer images are marked in the number's name.
        quantisation: how floats become uint8; truncate darkens nearly all values by half a level.
        storage: lossless, or JPEG of quality 75 on both sides.
        fid_input_229: Inception's input is resized to 229 pixels before 299.
    """

    name: str
    measures: Literal["reconstruction", "generation"]
    reference: Literal["originals", "data set", "statistics"]
    asked: int | None
    quantisation: Literal["round", "truncate"] = "round"
    storage: Literal["lossless", "jpeg"] = "lossless"
    fid_input_229: bool = False

    @property
    def alters_images(self) -> bool:
        """Tell whether the bytes differ from the floats by more than rounding."""
        return (self.quantisation, self.storage) != ("round", "lossless")

    def to_bytes(self, images: Tensor) -> Tensor:
        """Convert images, float (B, C, H, W) in [-1, 1], to the uint8 images that are measured; with JPEG, 3 channels.

        Raises:
            ValueError: an image holds NaN or infinity, or is not floating point.
        """
        rounded = to_uint8(images)
        pixels = rounded if self.quantisation == "round" else truncated(images)
        return jpeg(pixels.expand(-1, 3, -1, -1)) if self.storage == "jpeg" else pixels

    def describe(self) -> dict[str, Any]:
        """Return the protocol as stored in JSON."""
        facts = asdict(self)
        facts["storage"] = f"JPEG, quality {JPEG_QUALITY}" if self.storage == "jpeg" else self.storage
        return {"protocol": facts.pop("name")} | facts


PROTOCOLS = {
    protocol.name: protocol
    for protocol in (
        Protocol("rfid", "reconstruction", "originals", None),
        Protocol("official_jpeg", "reconstruction", "originals", None, "truncate", "jpeg", True),
        Protocol("torch-fidelity", "generation", "data set", 50_000),
        Protocol("adm", "generation", "statistics", 50_000),
    )
}


def truncated(images: Tensor) -> Tensor:
    """Convert images, float (B, C, H, W) in [-1, 1], to uint8 in the float32 steps of the public ArcVQ-VAE code.

    Float32 arithmetic returns 63 of the 256 levels slightly below their integer, and truncation lowers these by one:
    originals become darker.
    """
    return (((images.float() + 1.0) / 2.0).clamp(0, 1) * 255).to(torch.uint8)


def jpeg(images: Tensor) -> Tensor:
    """Store uint8 (B, 3, H, W) as JPEG of quality 75, chroma at half the resolution, and read it back."""
    decoded = []
    for image in images.permute(0, 2, 3, 1).cpu().numpy():
        file = io.BytesIO()
        Image.fromarray(np.ascontiguousarray(image)).save(file, format="JPEG", quality=JPEG_QUALITY)
        decoded.append(np.asarray(Image.open(file).convert("RGB")))
    return torch.from_numpy(np.stack(decoded)).permute(0, 3, 1, 2)


def number_name(metric: str, protocol: Protocol, images: int, asked: int, remarks: Sequence[str] = ()) -> str:
    """Name a number: the name includes a protocol that alters the images, and a count below the protocol's.

    psnr; psnr[official_jpeg]; fid@5000 for the FID of 5,000 images where 50,000 are asked for; rfid for the FID of
    reconstructions. `remarks` name further deviations from the protocol.
    """
    if protocol.measures == "reconstruction" and metric == "fid":
        metric = "rfid"
    for remark in [*([protocol.name] if protocol.alters_images else []), *remarks]:
        metric = f"{metric[:-1]},{remark}]" if metric.endswith("]") else f"{metric}[{remark}]"
    return metric if images >= asked else f"{metric}@{images}"
