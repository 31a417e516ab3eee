"""Extract features and logits of images, in which generation metrics compare them.

An extractor determines the names of its metrics: only a Frechet distance between features of the published Inception
network, with its published preprocessing, is FID. `register_extractor` adds an extractor under a name of its own.
"""

import hashlib
import io
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import safetensors
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x
from torchvision.models import alexnet
from transformers import Dinov2Model

from tokenizer.functional.float64 import as_float64
from tokenizer.losses.lpips import ALEXNET, WeightFiles, pretrained_features
from tokenizer.losses.pretrained import PretrainedFile

INCEPTION = PretrainedFile(
    "Inception",
    "weights.inception",
    URL_INCEPTION_V3,
    ("6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",),
)
IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class ExtractorConfig:
    """Options of the extractors.

    Args:
        resize: side in pixels to which images are resized first (bicubic, antialiased, rounded to uint8); None: no
            resizing.
        dinov2: DINOv2's id on the Hub, or a folder with its config.json and model.safetensors.
        weights: paths of weight files.
        double: compute in float64, so that results do not depend on the batch size or the number of processes.
        fid_input_229: resize Inception's input to 229 pixels before 299, as the public ArcVQ-VAE code does.
        cache_dir: folder for files that an extractor creates, such as the digits' classifier.
    """

    resize: int | None = None
    dinov2: str = "facebook/dinov2-large"
    weights: WeightFiles = field(default_factory=WeightFiles)
    double: bool = True
    fid_input_229: bool = False
    cache_dir: str | Path = "runs/cache"


class Extractor(nn.Module):
    """Base of the extractors: a subclass defines `forward`.

    Args:
        name: name of its metrics.
        sha256: hash of its weights (hex): metrics with equal hashes are comparable.
        smallest: side in pixels of the smallest image that it accepts.
        is_fid: whether its Frechet distance is FID.
        input_text: preprocessing of the images, described for the protocol.
        resize: see `ExtractorConfig`.
    """

    def __init__(
        self, name: str, sha256: str, *, smallest: int, input_text: str, is_fid: bool = False, resize: int | None = None
    ):
        super().__init__()
        if resize is not None and resize < smallest:
            raise ValueError(f"{name} takes images of {smallest} pixels and more, not resize {resize}; raise it")
        self.name = name if resize is None else f"{name}-{resize}px"
        self.sha256, self.smallest, self.resize = sha256, smallest, resize
        self.is_fid = is_fid and resize is None
        # Tracks the module's device and dtype, even if a subclass has no weights.
        self.register_buffer("place", torch.zeros(()), persistent=False)
        self.input_text = (f"bicubic antialiased to {resize}, uint8; " if resize else "") + input_text

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor | None]:
        """Compute features (B, D) and logits (B, classes), or None, of pixels (B, 3, H, W).

        Pixels are 0 to 255, in the dtype of the weights.
        """
        raise TypeError(f"{type(self).__name__} defines no forward; write one")

    def check_size(self, height: int, width: int) -> None:
        """Raise ValueError for images that are too small, before any image is made or read."""
        if self.resize is None and min(height, width) < self.smallest:
            raise ValueError(
                f"images of {height}x{width} are too small for {self.name}, which takes {self.smallest} pixels on; "
                "name a larger size with --resize, which is recorded with the numbers"
            )

    @torch.no_grad()
    def extract(self, images: Tensor) -> tuple[Tensor, Tensor | None]:
        """Extract features (B, D) and logits (B, classes), or None, both float32 on the CPU.

        Args:
            images: uint8 (B, C, H, W), C 3 or 1 (grey), on any device.

        Raises:
            ValueError: images of another kind, or too small ones.
        """
        if images.dtype != torch.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3):
            kind = f"{images.dtype} {tuple(images.shape)}"
            raise ValueError(f"images are {kind}, not uint8 (B, 3 or 1, H, W); convert them with to_uint8")
        self.check_size(*images.shape[-2:])
        if self.resize is not None:
            images = resized(images, self.resize)
        parts: list[tuple[Tensor, Tensor | None]] = []
        with torch.autocast(self.place.device.type, enabled=False):
            # Few images at a time: Inception's float64 layers take 80 MB per image and thread.
            for part in images.to(self.place.device).split(8 if self.place.device.type == "cpu" else len(images)):
                parts.append(self(part.expand(-1, 3, -1, -1).to(self.place.dtype)))
        # Rounding to float32 removes differences in the last digits of the float64 sums.
        features, logits = ([outputs[index] for outputs in parts] for index in range(2))
        return torch.cat(features).float().cpu(), None if logits[0] is None else torch.cat(logits).float().cpu()


def resized(images: Tensor, size: int) -> Tensor:
    """Resize uint8 (B, C, H, W) to uint8 (B, C, size, size), bicubic, antialiased."""
    values = F.interpolate(as_float64(images), (size, size), mode="bicubic", antialias=True)
    return values.round().clamp(0, 255).to(torch.uint8)


class InceptionExtractor(Extractor):
    """The Inception network of FID: 2048 features, 1008 logits.

    It is the TensorFlow graph of 2015-12-05 in torch-fidelity's port. The port's own wrapper
    unpickles the file and always returns float32; here the file is read as tensors alone, and the network computes in
    its own dtype.
    """

    def __init__(self, config: ExtractorConfig):
        tensors, digest, published = config.weights.read(INCEPTION)
        published_text = "299, bilinear as TensorFlow 1, (x - 128) / 128"
        official_text = "229, PIL bilinear, uint8; 299, bilinear, 2 x / 255 - 1"
        name = "inception-v3-compat" if published else f"inception-{digest[:8]}"
        super().__init__(
            f"{name}-229" if config.fid_input_229 else name,
            digest,
            smallest=1,
            input_text=official_text if config.fid_input_229 else published_text,
            is_fid=published and not config.fid_input_229,
            resize=config.resize,
        )
        network = _inception(tensors)
        *trunk, self.head = network.children()
        self.trunk = nn.Sequential(*trunk)
        self.fid_input_229 = config.fid_input_229

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor]:
        if self.fid_input_229:
            inputs = 2 * F.interpolate(_pil_bilinear(pixels, 229), (299, 299), mode="bilinear") / 255 - 1
        else:
            inputs = (
                interpolate_bilinear_2d_like_tensorflow1x(pixels, size=(299, 299), align_corners=False) - 128
            ) / 128
        features = self.trunk(inputs).flatten(1)
        return features, features @ self.head.weight.T  # without the bias, as the Inception score is defined


class AlexNetExtractor(Extractor):
    """torchvision's ImageNet AlexNet: the 256 channels after its last convolution, averaged over positions."""

    def __init__(self, config: ExtractorConfig):
        tensors, digest, published = config.weights.read(ALEXNET)
        name = "alexnet" if published else f"alexnet-{digest[:8]}"
        super().__init__(name, digest, smallest=31, input_text="ImageNet's mean and deviation", resize=config.resize)
        self.layers = pretrained_features(alexnet, tensors, ALEXNET, 11)

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        return self.layers(_imagenet_normalised(pixels)).mean(dim=(2, 3)), None


class DINOv2Extractor(Extractor):
    """DINOv2 (arXiv 2304.07193) at 224 pixels: its class token, as in Stein et al. 2023 (arXiv 2306.04675)."""

    SIZE = 224

    def __init__(self, config: ExtractorConfig):
        try:
            model = Dinov2Model.from_pretrained(config.dinov2, use_safetensors=True, dtype=torch.float32)
        except (OSError, ValueError, RuntimeError, safetensors.SafetensorError) as error:
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"no DINOv2 weights in {config.dinov2!r} ({reason}); name its id on the Hub, or a folder with "
                "config.json and model.safetensors, with --dinov2"
            ) from error
        digest = hashlib.sha256()
        for name, value in sorted(model.state_dict().items()):
            digest.update(name.encode() + value.contiguous().cpu().numpy().tobytes())
        name = f"{Path(config.dinov2).name}-{digest.hexdigest()[:8]}"  # any weights may lie in a folder of this name
        text = f"bicubic antialiased to {self.SIZE}, ImageNet's mean and deviation"
        super().__init__(name, digest.hexdigest(), smallest=1, input_text=text, resize=config.resize)
        self.model = model

    def forward(self, pixels: Tensor) -> tuple[Tensor, None]:
        pixels = F.interpolate(pixels, (self.SIZE, self.SIZE), mode="bicubic", antialias=True).clamp(0, 255)
        return self.model(_imagenet_normalised(pixels)).pooler_output, None


EXTRACTORS: dict[str, Callable[[ExtractorConfig], Extractor]] = {}


def register_extractor(name: str, build: Callable[[ExtractorConfig], Extractor]) -> None:
    """Make `make_extractor(name, config)` return `build(config)`; raise ValueError if the name is taken."""
    if name in EXTRACTORS:
        raise ValueError(f"an extractor {name!r} is registered already; take another name")
    EXTRACTORS[name] = build


def make_extractor(name: str, config: ExtractorConfig | None = None) -> Extractor:
    """Build the extractor registered under `name`, frozen, on the CPU.

    Raises:
        ValueError: an unknown name, or weights that are missing, truncated or of the wrong hash.
    """
    if name not in EXTRACTORS:
        raise ValueError(f"there is no extractor {name!r}; take one of {', '.join(EXTRACTORS)}")
    config = config or ExtractorConfig()
    dtype = torch.float64 if config.double else torch.float32
    return EXTRACTORS[name](config).to(dtype).requires_grad_(False).eval()


for _name, _class in (("inception", InceptionExtractor), ("alexnet", AlexNetExtractor), ("dinov2", DINOv2Extractor)):
    register_extractor(_name, _class)


def _inception(tensors: dict[str, Tensor]) -> FeatureExtractorInceptionV3:
    """Build torch-fidelity's network from tensors; it unpickles its file, so they are written to a file first."""
    file = io.BytesIO()
    torch.save(tensors, file)
    file.seek(0)
    try:
        with torch.random.fork_rng(devices=[]):  # the discarded initial weights consume random numbers
            return FeatureExtractorInceptionV3("inception", ["2048"], feature_extractor_weights_path=file)
    except RuntimeError as error:
        reason = " ".join(str(error).split())[:200]
        raise ValueError(f"Inception weights are of another network: {reason}; take those of torch-fidelity") from error


def _pil_bilinear(pixels: Tensor, size: int) -> Tensor:
    """Resize pixels from 0 to 255 with PIL itself, whose rounding no other implementation reproduces."""
    images = pixels.to("cpu", torch.uint8).permute(0, 2, 3, 1).numpy()
    resized = [np.asarray(Image.fromarray(image).resize((size, size), Image.Resampling.BILINEAR)) for image in images]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).to(pixels)


def _imagenet_normalised(pixels: Tensor) -> Tensor:
    mean, std = (pixels.new_tensor(values).view(1, 3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    return (pixels / 255 - mean) / std
