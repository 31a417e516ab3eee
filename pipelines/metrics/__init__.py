"""Measure images: PSNR, SSIM, L1, LPIPS of pairs; Frechet distance, Inception score, precision, recall of sets."""

from pipelines.metrics.codebook import codebook_geometry
from pipelines.metrics.distributions import (
    FeatureMoments,
    distribution_metrics,
    frechet_distance,
    inception_score,
    moments_of,
)
from pipelines.metrics.images import (
    ReconstructionMetrics,
    extract_features,
    generation_metrics,
    l1,
    lpips,
    pair_metrics,
    psnr,
    ssim,
    to_uint8,
)
from pipelines.metrics.neighbours import precision_recall
from tokenizer.functional.usage import code_counts, perplexity, usage

__all__ = [
    "FeatureMoments",
    "ReconstructionMetrics",
    "code_counts",
    "codebook_geometry",
    "distribution_metrics",
    "extract_features",
    "frechet_distance",
    "generation_metrics",
    "inception_score",
    "l1",
    "lpips",
    "moments_of",
    "pair_metrics",
    "perplexity",
    "precision_recall",
    "psnr",
    "ssim",
    "to_uint8",
    "usage",
]
