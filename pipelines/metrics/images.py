"""Images -> numbers: PSNR, SSIM, L1 and LPIPS of reconstructions; Frechet distance, Inception score, precision, recall.

Images are uint8 (B, C, H, W) at this edge: what would be written to disk is what is measured. Sums are float64, and
streams take any number of batches of any size. Only a Frechet distance between features of the published Inception is
called FID, any other number names its extractor. The functions of features are those of distributions.py and
neighbours.py, the codebook's those of codebook_geometry.py and tokenizer.usage; all are names of this module, too.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.metrics.distributions import (
    distribution_metrics,
)
from pipelines.metrics.extractors import Extractor
from tokenizer.functional.usage import code_counts, perplexity, usage
from tokenizer.losses.lpips import LPIPS

SSIM_WINDOW = 11
GAUSSIAN_SIGMA = 1.5  # pixels


def to_uint8(images: Tensor) -> Tensor:
    """Images, float (B, C, H, W) in [-1, 1], as uint8 (B, C, H, W): rounded, values outside the range clamped.

    Raises:
        ValueError: the images are not floating point or hold NaN or infinity.
    """
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, not floating point in [-1, 1]; pass images before conversion")
    if not torch.isfinite(images).all():
        raise ValueError(f"{(~torch.isfinite(images)).sum()} image values are NaN or infinite; the model diverged")
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Peak signal-to-noise ratio of each pair of images, float64 (B,) in dB; inf where the two are identical.

    The peak is 255 and the error is averaged over all pixels and channels of an image. `a` and `b`: uint8 (B, C, H, W).

    Raises:
        ValueError: the two are not uint8 batches of one shape; so do the other pair metrics.
    """
    a, b = _as_float64(a, b)
    return 10.0 * torch.log10(255.0**2 / (a - b).square().mean(dim=(1, 2, 3)))


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of each pair of images, float64 (B,) in [0, 1]. `a` and `b`: uint8 (B, C, H, W)."""
    a, b = _as_float64(a, b)
    return (a - b).abs().mean(dim=(1, 2, 3)) / 255.0


def ssim(a: Tensor, b: Tensor, window: Literal["uniform", "gaussian"] = "uniform") -> Tensor:
    """Structural similarity of each pair of images, float64 (B,) in [-1, 1]. `a` and `b`: uint8 (B, C, H, W).

    K1 = 0.01, K2 = 0.03, an 11-pixel window, the mean over channels and over the positions where it fits. As in
    scikit-image's `structural_similarity(data_range=255, win_size=11, channel_axis=...)`: `uniform` with the sample
    covariance, as the public ArcVQ-VAE code has it; `gaussian` with gaussian_weights, sigma 1.5 and
    use_sample_covariance=False, as Wang et al. 2004 define it.

    Raises:
        ValueError: an image is smaller than the window, or another window.
    """
    if window not in ("uniform", "gaussian"):
        raise ValueError(f"SSIM has no window {window!r}; take uniform or gaussian")
    if min(a.shape[-2:]) < SSIM_WINDOW:
        size = "x".join(map(str, a.shape[-2:]))
        raise ValueError(f"images of {size} are smaller than the {SSIM_WINDOW}-pixel window of SSIM; use larger ones")
    a, b = _as_float64(a, b)
    average = _uniform_average if window == "uniform" else _gaussian_average
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (average(values) for values in (a, b, a * a, b * b, a * b))
    # From a mean over the window to a sample covariance.
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1) if window == "uniform" else 1.0
    var_a, var_b = sample * (mean_aa - mean_a**2), sample * (mean_bb - mean_b**2)
    covariance = sample * (mean_ab - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def lpips(a: Tensor, b: Tensor, network: LPIPS) -> Tensor:
    """LPIPS of each pair of images, float64 (B,). `a` and `b`: uint8 (B, C, H, W), C 3, or 1 for grey."""
    weight = network.shift
    both = (images.to(weight) / 127.5 - 1 for images in _as_float64(a, b))
    with torch.no_grad():
        return network(*both).double()


def pair_metrics(
    originals: Tensor,
    reconstructions: Tensor,
    perceptual: LPIPS | None = None,
    ssim_window: Literal["uniform", "gaussian"] = "uniform",
) -> dict[str, Tensor]:
    """psnr, ssim, l1 and, under its network's name, LPIPS of each pair of uint8 images: float64 (B,) each."""
    values = {
        "psnr": psnr(originals, reconstructions),
        "ssim" if ssim_window == "uniform" else f"ssim-{ssim_window}": ssim(originals, reconstructions, ssim_window),
        "l1": l1(originals, reconstructions),
    }
    if perceptual is not None:
        values[perceptual.name] = lpips(originals, reconstructions, perceptual)
    return values


class ReconstructionMetrics:
    """Sums over a split, batch by batch, of a tokenizer with `codebook_size` codes; any batch size gives one result.

    `counts`, int64 (K,), says how often each code has occurred. With a `codebook_size` of 0 there are no codes.
    """

    def __init__(
        self,
        codebook_size: int,
        perceptual: LPIPS | None = None,
        ssim_window: Literal["uniform", "gaussian"] = "uniform",
    ):
        self.codebook_size = codebook_size
        self.perceptual, self.ssim_window = perceptual, ssim_window
        self.images = 0
        self._sums: dict[str, float] = {}
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, originals: Tensor, reconstructions: Tensor, codes: Tensor | None) -> None:
        """Add a batch: images uint8 (B, C, H, W) on both sides, codes int64 (B, ...) in [0, K) if there are any.

        Raises:
            ValueError: the images do not match (see `psnr`, `ssim`) or the codes are of another number of images.
        """
        if codes is not None and len(codes) != len(originals):
            raise ValueError(f"codes of {len(codes)} images came with {len(originals)} originals; pass as many")
        values = pair_metrics(originals, reconstructions, self.perceptual, self.ssim_window)
        self.add(values, None if codes is None else code_counts(codes, self.codebook_size).cpu())

    def add(self, values: dict[str, Tensor], counts: Tensor | None) -> None:
        """Add what was measured elsewhere: `pair_metrics` of a batch, and the counts (K,) of its codes, if any."""
        if counts is not None:
            self.counts += counts
        for name, of_images in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + of_images.sum().item()
        self.images += len(next(iter(values.values())))

    def result(self) -> dict[str, float | int]:
        """The pair metrics' means over all images; usage, perplexity: of all codes together; images: their number.

        An image that is reconstructed exactly makes the mean PSNR inf: none is left out. ValueError without any image.
        """
        if self.images == 0:
            raise ValueError("no image was measured; call update with at least one batch first")
        means = {name: total / self.images for name, total in self._sums.items()}
        codes = {}
        if len(self.counts):
            codes = {"usage": usage(self.counts).item(), "perplexity": perplexity(self.counts).item()}
        return means | codes | {"images": self.images}


def extract_features(images: Dataset, extractor: Extractor, batch_size: int = 64) -> tuple[Tensor, Tensor | None]:
    """Features float32 (N, D) and logits float32 (N, classes) of a map-style data set of uint8 (C, H, W) tensors.

    Raises:
        ValueError: images of another kind or, for the extractor, too small.
    """
    found: list[tuple[Tensor, Tensor | None]] = []
    for batch in DataLoader(images, batch_size=batch_size, generator=torch.Generator()):
        if not isinstance(batch, Tensor):
            raise ValueError(f"the images are {type(batch).__name__}, not uint8 tensors (C, H, W); pass tensors alone")
        found.append(extractor.extract(batch))
    if not found:
        raise ValueError("there are no images to extract features of; pass at least one")
    features, logits = zip(*found, strict=True)
    return torch.cat(features), None if logits[0] is None else torch.cat(logits)


def generation_metrics(
    samples: Dataset, reference: Dataset, extractor: Extractor, batch_size: int = 64
) -> dict[str, float]:
    """How close the distribution of generated images is to that of reference images.

    Args:
        samples: the generated images, a map-style data set of uint8 (C, H, W) tensors.
        reference: the real images, likewise.
        extractor: whose features are compared, on the device where it is, `batch_size` images at once.

    Returns:
        With Inception: fid, inception_score, inception_score_std (10 splits), precision (share of samples within the
        manifold of the reference) and recall (the reverse), k = 3. With any other extractor metric[extractor's name],
        and frechet_distance in place of fid; without inception_score where it has no logits.

    Raises:
        ValueError: too few images, images of another kind, or features that are not finite.
    """
    features, logits = extract_features(samples, extractor, batch_size)
    found = distribution_metrics(features, logits, extract_features(reference, extractor, batch_size)[0])
    return {metric_name(name, extractor): value for name, value in found.items()}


def metric_name(metric: str, extractor: Extractor) -> str:
    """Name a number of `distribution_metrics` as measured with this extractor."""
    if extractor.is_fid:
        return "fid" if metric == "frechet_distance" else metric
    return f"{metric}[{extractor.name}]"


def _uniform_average(values: Tensor) -> Tensor:
    return F.avg_pool2d(values, SSIM_WINDOW, stride=1)


def _gaussian_average(values: Tensor) -> Tensor:
    positions = torch.arange(SSIM_WINDOW, dtype=values.dtype, device=values.device) - SSIM_WINDOW // 2
    weights = torch.exp(-0.5 * (positions / GAUSSIAN_SIGMA).square())
    weights = weights / weights.sum()
    flat = values.flatten(0, 1).unsqueeze(1)
    rows = F.conv2d(flat, weights.view(1, 1, 1, -1))
    averages = F.conv2d(rows, weights.view(1, 1, -1, 1))
    return averages.view(*values.shape[:2], *averages.shape[2:])


def _as_float64(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4 or a.shape != b.shape:
        found = " and ".join(f"{images.dtype} {tuple(images.shape)}" for images in (a, b))
        raise ValueError(f"images are {found}, not two uint8 batches of one shape (B, C, H, W); use to_uint8")
    return a.double(), b.double()
