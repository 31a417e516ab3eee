"""Measure images: PSNR, SSIM, L1 and LPIPS of reconstructions; the metrics of `distributions` on data sets of images.

Images are uint8 (B, C, H, W): the values that would be written to disk are measured. Sums are float64, and streams
accept any number of batches of any size. Only a Frechet distance between features of the published Inception is called
FID; all other metrics carry their extractor's name.
"""

from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from pipelines.metrics.distributions import distribution_metrics
from pipelines.metrics.extractors import Extractor
from tokenizer.functional.float64 import as_float64
from tokenizer.functional.usage import code_counts, perplexity, usage
from tokenizer.losses.lpips import LPIPS

SSIM_WINDOW = 11
GAUSSIAN_SIGMA = 1.5  # pixels


def to_uint8(images: Tensor) -> Tensor:
    """Convert images, float (B, C, H, W) in [-1, 1], to uint8: rounded, values outside the range clamped.

    Raises:
        ValueError: the images are not floating point or hold NaN or infinity.
    """
    if not images.is_floating_point():
        raise ValueError(f"images are {images.dtype}, not floating point in [-1, 1]; pass images before conversion")
    check_finite((~torch.isfinite(images)).sum())
    return as_levels(images)


def as_levels(images: Tensor) -> Tensor:
    """Convert as `to_uint8` does, without its checks, for which the host waits for the device."""
    return ((images.float() + 1.0) * 127.5).round().clamp(0, 255).to(torch.uint8)


def check_finite(broken: Tensor) -> None:
    """Raise ValueError if the number of image values that are NaN or infinite, a scalar, is not 0."""
    if number := int(broken):
        raise ValueError(f"{number} image values are NaN or infinite; the model diverged")


def psnr(a: Tensor, b: Tensor) -> Tensor:
    """Compute the peak signal-to-noise ratio of each pair of uint8 images (B, C, H, W): float64 (B,) in dB.

    The peak is 255, and the squared error is averaged over all pixels and channels of an image; identical images give
    inf.

    Raises:
        ValueError: the two are not uint8 batches of one shape; the other pair metrics raise the same.
    """
    a, b = _as_float64(a, b)
    return 10.0 * torch.log10(255.0**2 / (a - b).square().mean(dim=(1, 2, 3)))


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Compute the mean absolute error of each pair of uint8 images (B, C, H, W): float64 (B,) in [0, 1]."""
    a, b = _as_float64(a, b)
    return (a - b).abs().mean(dim=(1, 2, 3)) / 255.0


def ssim(a: Tensor, b: Tensor, window: Literal["uniform", "gaussian"] = "uniform") -> Tensor:
    """Compute the structural similarity of each pair of uint8 images (B, C, H, W): float64 (B,) in [-1, 1].

    K1 = 0.01, K2 = 0.03, an 11-pixel window, averaged over channels and over positions where the window fits. As
    scikit-image's `structural_similarity(data_range=255, win_size=11, channel_axis=...)`: `uniform` with the sample
    covariance, as in the public ArcVQ-VAE code; `gaussian` with gaussian_weights, sigma 1.5 and
    use_sample_covariance=False, as Wang et al. 2004 define it.

    Raises:
        ValueError: an image smaller than the window, or an unknown window.
    """
    if window not in ("uniform", "gaussian"):
        raise ValueError(f"SSIM has no window {window!r}; take uniform or gaussian")
    if min(a.shape[-2:]) < SSIM_WINDOW:
        size = "x".join(map(str, a.shape[-2:]))
        raise ValueError(f"images of {size} are smaller than the {SSIM_WINDOW}-pixel window of SSIM; use larger ones")
    a, b = _as_float64(a, b)
    average = _uniform_average if window == "uniform" else _gaussian_average
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (average(values) for values in (a, b, a * a, b * b, a * b))
    # Factor from the mean over the window to the sample covariance.
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1) if window == "uniform" else 1.0
    var_a, var_b = sample * (mean_aa - mean_a**2), sample * (mean_bb - mean_b**2)
    covariance = sample * (mean_ab - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


def lpips(a: Tensor, b: Tensor, network: LPIPS) -> Tensor:
    """Compute LPIPS of each pair of uint8 images (B, C, H, W), C 3 or 1 (grey): float64 (B,)."""
    weight = network.shift
    _check_pairs(a, b)
    both = (images.to(weight.device).to(weight.dtype) / 127.5 - 1 for images in (a, b))
    with torch.no_grad():
        return as_float64(network(*both))


def pair_metrics(
    originals: Tensor,
    reconstructions: Tensor,
    perceptual: LPIPS | None = None,
    ssim_window: Literal["uniform", "gaussian"] = "uniform",
) -> dict[str, Tensor]:
    """Compute psnr, ssim, l1 and, under its network's name, LPIPS of each pair of uint8 images: float64 (B,) each.

    They are on the device of the images, or on the CPU if that device has no float64; LPIPS on its network's.
    """
    values = {
        "psnr": psnr(originals, reconstructions),
        "ssim" if ssim_window == "uniform" else f"ssim-{ssim_window}": ssim(originals, reconstructions, ssim_window),
        "l1": l1(originals, reconstructions),
    }
    if perceptual is not None:
        values[perceptual.name] = lpips(originals, reconstructions, perceptual)
    return values


class ReconstructionMetrics:
    """Accumulate metrics of a tokenizer with `codebook_size` codes over a split; independent of the batch size.

    Sums stay on the device of the images, and the host waits for it in `result` alone. `counts`, int64 (K,), counts how
    often each code occurs, on the device of the codes. A `codebook_size` of 0 means no codes.
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
        self._sums: dict[str, Tensor] = {}
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, originals: Tensor, reconstructions: Tensor, codes: Tensor | None) -> None:
        """Add a batch: images uint8 (B, C, H, W) on both sides, codes int64 (B, ...) in [0, K) if any.

        Raises:
            ValueError: the images do not match (see `psnr`, `ssim`) or the codes are of another number of images.
        """
        if codes is not None and len(codes) != len(originals):
            raise ValueError(f"codes of {len(codes)} images came with {len(originals)} originals; pass as many")
        values = pair_metrics(originals, reconstructions, self.perceptual, self.ssim_window)
        self.add(values, None if codes is None else code_counts(codes, self.codebook_size))

    def add(self, values: dict[str, Tensor], counts: Tensor | None) -> None:
        """Add metrics computed elsewhere: `pair_metrics` of a batch, and the counts (K,) of its codes, if any."""
        if counts is not None:
            self.counts = self.counts.to(counts.device) + counts
        for name, per_image in values.items():
            self._sums[name] = self._sums.get(name, 0.0) + per_image.sum()
        self.images += len(next(iter(values.values())))

    def result(self) -> dict[str, float | int]:
        """Return the pair metrics' means over all images, usage and perplexity of all codes, and the number of images.

        An exactly reconstructed image makes the mean PSNR inf: no image is left out. Raises ValueError without any
        image.
        """
        if self.images == 0:
            raise ValueError("no image was measured; call update with at least one batch first")
        sums = torch.stack(list(self._sums.values())).cpu().tolist()
        means = {name: total / self.images for name, total in zip(self._sums, sums, strict=True)}
        codes = {}
        if len(self.counts):
            counts = self.counts.cpu()
            codes = {"usage": usage(counts).item(), "perplexity": perplexity(counts).item()}
        return means | codes | {"images": self.images}


def extract_features(images: Dataset, extractor: Extractor, batch_size: int = 64) -> tuple[Tensor, Tensor | None]:
    """Extract features float32 (N, D) and logits float32 (N, classes) of a map-style data set of uint8 (C, H, W).

    Raises:
        ValueError: images of another kind or too small for the extractor.
    """
    batches: list[tuple[Tensor, Tensor | None]] = []
    for batch in DataLoader(images, batch_size=batch_size, generator=torch.Generator()):
        if not isinstance(batch, Tensor):
            raise ValueError(f"the images are {type(batch).__name__}, not uint8 tensors (C, H, W); pass tensors alone")
        batches.append(extractor.extract(batch))
    if not batches:
        raise ValueError("there are no images to extract features of; pass at least one")
    features, logits = zip(*batches, strict=True)
    return torch.cat(features), None if logits[0] is None else torch.cat(logits)


def generation_metrics(
    samples: Dataset, reference: Dataset, extractor: Extractor, batch_size: int = 64
) -> dict[str, float]:
    """Measure how close the distribution of generated images is to that of reference images.

    Args:
        samples: the generated images, a map-style data set of uint8 (C, H, W) tensors.
        reference: the real images, likewise.
        extractor: extractor of the compared features, on its own device.
        batch_size: images extracted at once.

    Returns:
        With Inception: fid, inception_score, inception_score_std (10 splits), precision (share of samples within the
            manifold of the reference) and recall (the reverse), k = 3. With another extractor: metric[extractor's
            name], with frechet_distance instead of fid, and inception_score only if it has logits.

    Raises:
        ValueError: too few images, images of another kind, or features that are not finite.
    """
    features, logits = extract_features(samples, extractor, batch_size)
    values = distribution_metrics(features, logits, extract_features(reference, extractor, batch_size)[0])
    return {metric_name(name, extractor): value for name, value in values.items()}


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
    _check_pairs(a, b)
    return as_float64(a), as_float64(b)


def _check_pairs(a: Tensor, b: Tensor) -> None:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4 or a.shape != b.shape:
        kinds = " and ".join(f"{images.dtype} {tuple(images.shape)}" for images in (a, b))
        raise ValueError(f"images are {kinds}, not two uint8 batches of one shape (B, C, H, W); use to_uint8")
