"""Images -> numbers: PSNR, SSIM and L1 of reconstructions; Frechet distance, Inception score, precision and recall.

Images are uint8 (B, C, H, W) at this edge: what would be written to disk is what is measured. Reconstruction metrics
are pure functions of two batches and a stream over a split; generation metrics run torch-fidelity with every argument
given. Only a Frechet distance between Inception features is called FID, any other number names its feature extractor.
"""

import contextlib
import hashlib
import http.client
import math
from dataclasses import dataclass
from pathlib import Path

import torch
import torch.nn.functional as F
import torch_fidelity
from torch import Tensor
from torch.utils.data import Dataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3

from tokenizer.usage import code_counts, perplexity, usage

SSIM_WINDOW = 11
NEIGHBOURS = 3  # k of precision and recall
INCEPTION_SCORE_SPLITS = 10
TORCH_FIDELITY_KEYS = (
    *(torch_fidelity.KEY_METRIC_FID, torch_fidelity.KEY_METRIC_ISC_MEAN, torch_fidelity.KEY_METRIC_ISC_STD),
    *(torch_fidelity.KEY_METRIC_PRECISION, torch_fidelity.KEY_METRIC_RECALL),
)
INCEPTION = "inception-v3-compat"  # torch-fidelity's name
# Of the file at URL_INCEPTION_V3. All 64 digits: the eight in its name could be forged, and the file is a pickle.
INCEPTION_SHA256 = "6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2"


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
        ValueError: the two are not uint8 batches of one shape; so do `l1` and `ssim`.
    """
    a, b = _as_float64(a, b)
    return 10.0 * torch.log10(255.0**2 / (a - b).square().mean(dim=(1, 2, 3)))


def l1(a: Tensor, b: Tensor) -> Tensor:
    """Mean absolute error of each pair of images, float64 (B,) in [0, 1]. `a` and `b`: uint8 (B, C, H, W)."""
    a, b = _as_float64(a, b)
    return (a - b).abs().mean(dim=(1, 2, 3)) / 255.0


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of each pair of images, float64 (B,) in [-1, 1]. `a` and `b`: uint8 (B, C, H, W).

    As scikit-image's `structural_similarity(data_range=255, win_size=11, channel_axis=...)`: a uniform window, sample
    covariance, K1 = 0.01, K2 = 0.03, the mean over channels and over the positions where the window fits.

    Raises:
        ValueError: an image is smaller than the window.
    """
    if min(a.shape[-2:]) < SSIM_WINDOW:
        size = "x".join(map(str, a.shape[-2:]))
        raise ValueError(f"images of {size} are smaller than the {SSIM_WINDOW}-pixel window of SSIM; use larger ones")
    a, b = _as_float64(a, b)
    mean_a, mean_b, mean_aa, mean_bb, mean_ab = (
        F.avg_pool2d(values, SSIM_WINDOW, stride=1) for values in (a, b, a * a, b * b, a * b)
    )
    sample = SSIM_WINDOW**2 / (SSIM_WINDOW**2 - 1)  # from a mean over the window to a sample covariance
    var_a, var_b = sample * (mean_aa - mean_a**2), sample * (mean_bb - mean_b**2)
    covariance = sample * (mean_ab - mean_a * mean_b)
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    luminance = (2 * mean_a * mean_b + c1) / (mean_a**2 + mean_b**2 + c1)
    structure = (2 * covariance + c2) / (var_a + var_b + c2)
    return (luminance * structure).mean(dim=(1, 2, 3))


PAIR_METRICS = {"psnr": psnr, "ssim": ssim, "l1": l1}


class ReconstructionMetrics:
    """Sums over a split, batch by batch, of a tokenizer with `codebook_size` codes; any batch size gives one result.

    `counts`, int64 (K,), says how often each code has occurred.
    """

    def __init__(self, codebook_size: int):
        self.codebook_size = codebook_size
        self.images = 0
        self._sums = dict.fromkeys(PAIR_METRICS, 0.0)
        self.counts = torch.zeros(codebook_size, dtype=torch.int64)

    def update(self, originals: Tensor, reconstructions: Tensor, codes: Tensor) -> None:
        """Add a batch: images uint8 (B, C, H, W) on both sides, codes int64 (B, ...) in [0, K).

        Raises:
            ValueError: the images do not match (see `psnr`, `ssim`) or the codes are of another number of images.
        """
        if len(codes) != len(originals):
            raise ValueError(f"codes of {len(codes)} images came with {len(originals)} originals; pass as many")
        values = {name: metric(originals, reconstructions) for name, metric in PAIR_METRICS.items()}
        self.counts += code_counts(codes, self.codebook_size).cpu()
        for name in values:
            self._sums[name] += values[name].sum().item()
        self.images += len(originals)

    def result(self) -> dict[str, float | int]:
        """psnr, ssim, l1: means over all images; usage, perplexity: of all codes together; images: their number.

        An image that is reconstructed exactly makes the mean PSNR inf: none is left out. ValueError without any image.
        """
        if self.images == 0:
            raise ValueError("no image was measured; call update with at least one batch first")
        means = {name: total / self.images for name, total in self._sums.items()}
        codes = {"usage": usage(self.counts).item(), "perplexity": perplexity(self.counts).item()}
        return means | codes | {"images": self.images}


@dataclass(frozen=True)
class Extractor:
    """A network whose features generation metrics compare, and how torch-fidelity finds it.

    Args:
        name: what the results call it.
        torch_fidelity_name: what it is registered as in torch-fidelity.
        features_layer: the layer of Frechet distance, precision and recall.
        logits_layer: the layer of the Inception score.
        weights: the file with the weights; None if the registered class holds them itself.
        weights_hash: start of the SHA-256 of the weights; numbers are comparable where it is equal.
    """

    name: str
    torch_fidelity_name: str
    features_layer: str
    logits_layer: str
    weights: Path | None
    weights_hash: str


def inception_extractor(weights: str | Path | None = None) -> Extractor:
    """The Inception network of FID and Inception score, the TensorFlow graph of 2015-12-05 as torch-fidelity ports it.

    Args:
        weights: its file of weights; None: the one in torch's hub folder, downloaded if it is not there.

    Raises:
        ValueError: there is no such file, it cannot be downloaded, or it is not the published one. torch-fidelity loads
            it as a pickle that may run code, so a file of any other content is refused here.
    """
    path = Path(torch.hub.get_dir(), "checkpoints", Path(URL_INCEPTION_V3).name) if weights is None else Path(weights)
    remedy = f"download {URL_INCEPTION_V3} and name the file with --inception_weights PATH"
    try:
        if weights is None and not path.is_file():
            path.parent.mkdir(parents=True, exist_ok=True)
            torch.hub.download_url_to_file(URL_INCEPTION_V3, str(path), INCEPTION_SHA256, progress=False)
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
    except (OSError, RuntimeError, http.client.HTTPException) as error:
        raise ValueError(f"no Inception weights {path.name} in {path.parent} ({error}); {remedy}") from error
    if digest != INCEPTION_SHA256:
        raise ValueError(f"Inception weights {path} are truncated or another file (SHA-256 {digest[:8]}); {remedy}")
    return Extractor(INCEPTION, INCEPTION, "2048", "logits_unbiased", path, digest[:8])


def generation_metrics(
    samples: Dataset, reference: Dataset, extractor: Extractor, batch_size: int = 64, device: str | torch.device = "cpu"
) -> dict[str, float | int | str]:
    """How close the distribution of generated images is to that of reference images, by torch-fidelity.

    Args:
        samples: the generated images, a map-style data set of uint8 (3, H, W) tensors.
        reference: the real images, likewise.
        extractor: whose features are compared, `batch_size` images at once on `device`, cpu or cuda.

    Returns:
        With Inception: fid, inception_score, inception_score_std (10 splits), precision (share of samples within the
        manifold of the reference) and recall (the reverse), k = 3. With any other extractor frechet_distance in place
        of fid, and all five as metric[extractor's name]. Also samples and reference_images (their numbers), extractor
        and extractor_hash.

    Raises:
        ValueError: too few images, images of another kind, an unusable device, or a metric that is not finite.
    """
    device = torch.device(device)
    if device.type not in ("cpu", "cuda"):
        raise ValueError(f"generation metrics run on cpu or cuda, not on {device}; pass one of the two")
    _check_images("samples", samples, at_least=max(INCEPTION_SCORE_SPLITS, NEIGHBOURS + 1))
    _check_images("reference", reference, at_least=NEIGHBOURS + 1)
    cuda = device.type == "cuda"
    # torch-fidelity draws from the global generator: initial weights, and a seed for every pass over a data set.
    with torch.random.fork_rng(devices=[]), torch.cuda.device(device) if cuda else contextlib.nullcontext():
        measured = torch_fidelity.calculate_metrics(
            input1=samples,  # torch-fidelity: precision is of input1, recall of input2
            input2=reference,
            isc=True,
            fid=True,
            prc=True,
            # One extractor for all three: left out, precision and recall would come from VGG16.
            feature_extractor=extractor.torch_fidelity_name,
            feature_extractor_weights_path=None if extractor.weights is None else str(extractor.weights),
            feature_layer_isc=extractor.logits_layer,
            feature_layer_fid=extractor.features_layer,
            feature_layer_prc=extractor.features_layer,
            isc_splits=INCEPTION_SCORE_SPLITS,
            samples_shuffle=True,  # samples come sorted by class, and a split of one class has score 1
            rng_seed=2020,
            prc_neighborhood=NEIGHBOURS,
            prc_batch_size=2500,  # rows of the distance matrix at once: 0.5 GB for 50,000 images
            save_cpu_ram=True,  # no whole distance matrix, and no worker processes
            cache=False,  # it is keyed by name alone and would return the features of earlier contents
            batch_size=batch_size,
            cuda=cuda,
            verbose=False,
        )
    inception = extractor.torch_fidelity_name == INCEPTION
    frechet = "fid" if inception else "frechet_distance"
    names = (frechet, "inception_score", "inception_score_std", "precision", "recall")
    result = {}
    for name, key in zip(names, TORCH_FIDELITY_KEYS, strict=True):
        if not math.isfinite(measured[key]):
            raise ValueError(f"{name} is {measured[key]}: features of {extractor.name} overflow; check its weights")
        result[name if inception else f"{name}[{extractor.name}]"] = measured[key]
    sizes = {"samples": len(samples), "reference_images": len(reference)}
    return result | sizes | {"extractor": extractor.name, "extractor_hash": extractor.weights_hash}


def _as_float64(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.ndim != 4 or a.shape != b.shape:
        found = " and ".join(f"{images.dtype} {tuple(images.shape)}" for images in (a, b))
        raise ValueError(f"images are {found}, not two uint8 batches of one shape (B, C, H, W); use to_uint8")
    return a.double(), b.double()


def _check_images(role: str, images: Dataset, at_least: int) -> None:
    if len(images) < at_least:
        raise ValueError(f"{len(images)} {role} images are too few for these metrics; pass at least {at_least}")
    first = images[0]
    if not isinstance(first, Tensor) or first.dtype != torch.uint8 or first.ndim != 3 or first.shape[0] != 3:
        found = f"{first.dtype} {tuple(first.shape)}" if isinstance(first, Tensor) else type(first).__name__
        raise ValueError(f"{role} images are {found}, not uint8 (3, H, W); use to_uint8 and repeat grey to 3 channels")
