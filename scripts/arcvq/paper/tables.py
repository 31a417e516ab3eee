"""The tables of ArcVQ-VAE (arXiv 2605.13517): the tokenizer of each row, and the numbers as printed.

A tokenizer is a file configs/<data set>/<name>.yaml, or a variant of one. Numbers stand in the order of the table's
metrics; None where the paper has none.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field

Numbers = Sequence[float | None]

# Name of each metric in a table, and whether larger or smaller is better.
METRICS = {
    "l1": ("L1", "smaller"),
    "psnr": ("PSNR", "larger"),
    "ssim": ("SSIM", "larger"),
    "lpips": ("LPIPS", "smaller"),
    "rfid": ("rFID", "smaller"),
    "usage": ("usage", "larger"),
    "fid": ("FID", "smaller"),
    "inception_score": ("IS", "larger"),
    "precision": ("precision", "larger"),
    "recall": ("recall", "larger"),
}


@dataclass(frozen=True)
class Row:
    """A row of a table.

    Attributes:
        config: name of the tokenizer, a config of the data set or one of `variants`; its runs and results bear it.
        paper: the paper's numbers by data set; no entry for a data set that the paper does not have in this row.
        prior: ldm or pixelcnn, trained on the tokenizer; None measures the tokenizer itself.
        codes: size to which k-means reduces the codebook before the measurement; None keeps it.
    """

    config: str
    paper: dict[str, Numbers] = field(default_factory=dict)
    prior: str | None = None
    codes: int | None = None


@dataclass(frozen=True)
class Table:
    """A table: its title, its metrics (keys of METRICS), and its rows by name."""

    title: str
    metrics: tuple[str, ...]
    rows: dict[str, Row]


_RECONSTRUCTION = ("psnr", "ssim", "lpips", "rfid")
_VQVAE = {"mnist": (26.48, 0.9777, 0.0282, 3.43), "cifar10": (23.32, 0.8595, 0.2504, 39.67)}
# Tables 9, 11 and 12 print other numbers of ArcVQ-VAE than tables 1, 4 and 6. The paper's public code keeps the weights
# with the best reconstruction of the test split; this project keeps the last (configs/*/arcvq_paper.yaml).
_ARCVQ = {"mnist": (28.13, 0.9843, 0.0213, 1.59), "cifar10": (24.71, 0.8976, 0.1928, 27.17)}


def _without_lpips(numbers: dict[str, Numbers]) -> dict[str, Numbers]:
    return {data: (psnr, ssim, rfid) for data, (psnr, ssim, _, rfid) in numbers.items()}


def _both(mnist: Numbers, cifar10: Numbers) -> dict[str, Numbers]:
    return {"mnist": mnist, "cifar10": cifar10}


_TABLE_1_ARCVQ = _both((28.01, 0.984, 1.68), (24.78, 0.8989, 26.91))

TABLES = {
    "table_1": Table(
        "reconstruction; VAEVQ is added to the paper's rows",
        ("l1", *_RECONSTRUCTION),
        {
            "VQ-VAE": Row("vq", _both((0.0207, 26.48, 0.9777, 0.0282, 3.43), (0.0527, 23.32, 0.8595, 0.2504, 39.67))),
            "HVQ-VAE": Row("hvq", _both((0.0202, 26.9, 0.979, 0.027, 3.17), (0.0533, 23.22, 0.8553, 0.2553, 41.08))),
            "SQ-VAE": Row("sq", _both((0.0197, 27.49, 0.9819, 0.0256, 3.05), (0.0482, 24.07, 0.8779, 0.2333, 37.92))),
            "CVQ-VAE": Row("cvq", _both((0.018, 27.87, 0.9833, 0.0222, 1.8), (0.0448, 24.72, 0.8978, 0.1883, 24.73))),
            "VAEVQ": Row("vaevq"),
            "ArcVQ-VAE": Row(
                "arcvq", _both((0.0178, 28.01, 0.984, 0.0217, 1.68), (0.0445, 24.78, 0.8989, 0.1857, 26.91))
            ),
        },
    ),
    "table_2": Table(
        "reconstruction on ImageNet at 256 px, of the rows that this project has; ViT-VQGAN's smaller sizes are added",
        ("usage", "rfid"),
        {
            "VQGAN, f16": Row("vqgan_f16", {"imagenet": (0.44, 7.94)}),
            "VQGAN-FC, f16": Row("vqgan_fc_f16", {"imagenet": (0.112, 4.29)}),
            "VQGAN-EMA, f16": Row("vqgan_ema_f16", {"imagenet": (0.832, 3.41)}),
            "ViT-VQGAN": Row("vit_vqgan_large", {"imagenet": (0.96, 1.28)}),
            "ViT-VQGAN, base": Row("vit_vqgan_base"),
            "ViT-VQGAN, small": Row("vit_vqgan_small"),
            "RQ-VAE": Row("rqvae", {"imagenet": (None, 1.83)}),
            "MoVQ": Row("movq_f16", {"imagenet": (0.63, 1.12)}),
            "CVQ-VAE, 16 x 16": Row("cvqvae_f16", {"imagenet": (1.0, 1.57)}),
            "CVQ-VAE, 32 x 32": Row("cvqvae_f8", {"imagenet": (1.0, 1.2)}),
            "DF-VQGAN": Row("dfvqgan_f8", {"imagenet": (None, 1.38)}),
            "VQGAN-LC, 32 x 32": Row("vqgan_lc_f8", {"imagenet": (0.99, 1.29)}),
            "ArcVQ-VAE, 16 x 16": Row("arcvq_f16", {"imagenet": (0.99, 1.63)}),
            "ArcVQ-VAE, 32 x 32": Row("arcvq_f8", {"imagenet": (0.88, 0.95)}),
        },
    ),
    "table_3": Table(
        "samples of the latent diffusion prior on ImageNet at 256 px, of the rows whose prior this project has",
        ("fid", "inception_score", "precision", "recall"),
        {
            "VQGAN-FC + LDM": Row("vqgan_fc_f16", {"imagenet": (9.78, None, None, None)}, prior="ldm"),
            "VQGAN-EMA + LDM": Row("vqgan_ema_f16", {"imagenet": (9.13, None, None, None)}, prior="ldm"),
            "VQGAN-LC + LDM": Row("vqgan_lc_f16", {"imagenet": (8.36, 191.5, 0.71, 0.49)}, prior="ldm"),
            "CVQ-VAE + LDM": Row("cvqvae_f8", {"imagenet": (6.87, None, None, None)}, prior="ldm"),
            "ArcVQ-VAE + LDM": Row("arcvq_f8", {"imagenet": (6.79, 172.3, 0.75, 0.52)}, prior="ldm"),
        },
    ),
    "table_4": Table(
        "sensitivity to top-k, margin and scale of the arc loss",
        ("psnr", "ssim", "rfid"),
        {
            "top-k 3, margin 0.1, scale 10": Row("arcvq", _TABLE_1_ARCVQ),
            "top-k 1": Row("arcvq_top1", _both((28.07, 0.9841, 1.7), (24.7, 0.899, 27.08))),
            "top-k 8": Row("arcvq_top8", _both((28.19, 0.9844, 1.72), (24.69, 0.8966, 27.02))),
            "margin 0.5": Row("arcvq_margin0.5", _both((28.05, 0.984, 1.77), (24.75, 0.898, 27.93))),
            "margin 1.0": Row("arcvq_margin1.0", _both((28.03, 0.9844, 1.72), (24.68, 0.8965, 28.52))),
            "scale 5": Row("arcvq_scale5", _both((28.03, 0.9839, 1.65), (24.65, 0.898, 26.83))),
            "scale 20": Row("arcvq_scale20", _both((27.92, 0.9835, 1.87), (23.95, 0.897, 28.9))),
        },
    ),
    "table_5": Table(
        "codebook dimension on FFHQ at 256 px",
        ("usage", "psnr", "ssim", "rfid"),
        {
            "D 4": Row("arcvq_d4", {"ffhq": (0.98, 25.69, 0.8021, 2.71)}),
            "D 8": Row("arcvq_d8", {"ffhq": (0.87, 26.71, 0.8124, 2.24)}),
            "D 16": Row("arcvq_d16", {"ffhq": (0.78, 26.28, 0.8128, 2.14)}),
        },
    ),
    "table_6": Table(
        "components of the prior",
        ("psnr", "ssim", "rfid"),
        {
            "VQ-VAE": Row("vq", _without_lpips(_VQVAE)),
            "+ ball": Row("arcvq_ball", _both((27.39, 0.9814, 2.71), (23.97, 0.8774, 35.18))),
            "+ ball + arc loss": Row("arcvq", _TABLE_1_ARCVQ),
        },
    ),
    "table_9": Table(
        "against continuous latents",
        _RECONSTRUCTION,
        {
            "VAE": Row("vae", _both((18.2, 0.8505, 0.0918, 15.34), (17.45, 0.5609, 0.512, 97.76))),
            "hyperspherical VAE": Row(
                "hyperspherical_vae", _both((18.71, 0.872, 0.0913, 12.87), (17.48, 0.683, 0.5459, 89.51))
            ),
            "VQ-VAE": Row("vq", _VQVAE),
            "ArcVQ-VAE": Row("arcvq", _ARCVQ),
        },
    ),
    "table_10": Table(
        "the codebook of VQGAN-LC, reduced by k-means after training; f8 is this project's reading",
        ("usage", "rfid"),
        {
            "100,000": Row("vqgan_lc_f8", {"imagenet": (0.995, 1.13)}),
            **{
                f"{codes:,}": Row("vqgan_lc_f8", {"imagenet": paper}, codes=codes)
                for codes, paper in {
                    50_000: (0.995, 1.13),
                    16_384: (0.997, 1.13),
                    8_192: (0.999, 1.14),
                    4_096: (1.0, 1.26),
                    1_024: (1.0, 2.4),
                    32: (1.0, 79.2),
                }.items()
            },
        },
    ),
    "reduction": Table(
        "a codebook of 512 reduced by k-means after training; table 10 in small, no table of the paper",
        _RECONSTRUCTION,
        {
            "linear codebook": Row("lc"),
            **{f"linear codebook, {codes}": Row("lc", codes=codes) for codes in (256, 128, 32)},
            "ArcVQ-VAE": Row("arcvq"),
            **{f"ArcVQ-VAE, {codes}": Row("arcvq", codes=codes) for codes in (256, 128, 32)},
        },
    ),
    "table_11": Table(
        "cosine matching alone; the paper has CIFAR-10",
        _RECONSTRUCTION,
        {
            "VQ-VAE": Row("vq", {"cifar10": _VQVAE["cifar10"]}),
            "VQ-VAE, cosine": Row("cosine", {"cifar10": (23.37, 0.8607, 0.2466, 39.04)}),
            "ArcVQ-VAE": Row("arcvq", {"cifar10": _ARCVQ["cifar10"]}),
        },
    ),
    "table_12": Table(
        "the bound on the norms: of radius 1, against exp(alpha t)",
        _RECONSTRUCTION,
        {
            "VQ-VAE": Row("vq", _VQVAE),
            "ArcVQ-VAE, fixed": Row("arcvq_fixed", _both((27.47, 0.9786, 0.0257, 1.97), (24.01, 0.8797, 0.2112, 30.7))),
            "ArcVQ-VAE": Row("arcvq", _ARCVQ),
        },
    ),
    "table_13": Table(
        "samples of a prior on the tokenizer's codes or latents; the paper has the PixelCNN on two of them",
        ("fid",),
        {
            "PixelCNN, VQ-VAE": Row("vq", {"cifar10": (57.36,)}, prior="pixelcnn"),
            "PixelCNN, CVQ-VAE": Row("cvq", prior="pixelcnn"),
            "PixelCNN, VAEVQ": Row("vaevq", prior="pixelcnn"),
            "PixelCNN, ArcVQ-VAE": Row("arcvq", {"cifar10": (43.13,)}, prior="pixelcnn"),
            "LDM, VQ-VAE": Row("vq", prior="ldm"),
            "LDM, CVQ-VAE": Row("cvq", prior="ldm"),
            "LDM, VAEVQ": Row("vaevq", prior="ldm"),
            "LDM, ArcVQ-VAE": Row("arcvq", prior="ldm"),
        },
    ),
    "parts": Table(
        "what of ArcVQ-VAE carries what: look-up, initialisation, ball, arc loss; no table of the paper",
        ("psnr", "usage", "lpips", "rfid"),
        {
            "l2, uniform": Row("vq"),
            "l2, unit": Row("vq_unit"),
            "cosine, uniform": Row("cosine"),
            "cosine, unit": Row("cosine_unit"),
            "cosine, unit, ball": Row("arcvq_ball"),
            "cosine, unit, arc loss": Row("arcvq_loss"),
            "cosine, unit, ball, arc loss": Row("arcvq"),
            "cosine, uniform, ball, arc loss": Row("arcvq_uniform"),
        },
    ),
    "plus": Table(
        "what is added to ArcVQ-VAE at the same network and K, one part at a time; no table of the paper",
        _RECONSTRUCTION,
        {
            "ArcVQ-VAE": Row("arcvq_constant"),
            "+ falling rate": Row("arcvq_cooldown"),
            "+ averaged weights": Row("arcvq_averaged"),
            "+ k-means of the first batch": Row("arcvq_kmeans"),
            "+ moving-average table": Row("arcvq_moving_average"),
            "+ rotation trick": Row("arcvq_rotation"),
            "+ variational latents": Row("arc_vae_constant"),
            "+ revival of unused codes": Row("arcvq_revival"),
            "CVQ-VAE": Row("cvq_constant"),
        },
    ),
    "weight": Table(
        "reconstruction 4 times as heavy, as where table 1 has its first rows from; no table of the paper",
        ("psnr", "ssim", "rfid", "usage"),
        {
            "VQ-VAE": Row("vq"),
            "VQ-VAE, 4 times": Row("vq_weight4", _both((26.48, 0.9777, 3.43, None), (23.32, 0.8595, 39.67, None))),
            "CVQ-VAE": Row("cvq"),
            "CVQ-VAE, 4 times": Row("cvq_weight4", _both((27.87, 0.9833, 1.8, None), (24.72, 0.8978, 24.73, None))),
            "ArcVQ-VAE": Row("arcvq", _both((28.01, 0.984, 1.68, None), (24.78, 0.8989, 26.91, None))),
            "ArcVQ-VAE, 4 times": Row("arcvq_weight4"),
        },
    ),
    "downstream": Table(
        "what the arc loss, and with it the usage, buys a prior; no table of the paper",
        ("fid",),
        {
            "PixelCNN, ball": Row("arcvq_ball", prior="pixelcnn"),
            "PixelCNN, ball + arc loss": Row("arcvq", prior="pixelcnn"),
            "LDM, ball": Row("arcvq_ball", prior="ldm"),
            "LDM, ball + arc loss": Row("arcvq", prior="ldm"),
        },
    ),
    "field": Table(
        "every tokenizer of this project",
        _RECONSTRUCTION,
        {
            "VQ-VAE": Row("vq"),
            "VQ-VAE, EMA": Row("ema"),
            "VQ-VAE, cosine": Row("cosine"),
            "VQ-VAE, rotation trick": Row("rotation"),
            "factorised codes": Row("fc"),
            "CVQ-VAE": Row("cvq"),
            "SQ-VAE": Row("sq"),
            "HVQ-VAE": Row("hvq"),
            "RQ-VAE": Row("rq"),
            "linear codebook": Row("lc"),
            "SimVQ": Row("simvq"),
            "IBQ": Row("ibq"),
            "FSQ": Row("fsq"),
            "product quantization": Row("pq"),
            "LFQ": Row("lfq"),
            "BSQ": Row("bsq"),
            "VAEVQ": Row("vaevq"),
            "ArcVQ-VAE": Row("arcvq"),
            "ArcVQ-VAE, variational latents": Row("arc_vae"),
        },
    ),
}
