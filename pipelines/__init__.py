"""Priors and tokenizers put together: class labels -> images; images -> numbers and pictures."""

from pipelines.arcvq_ldm import ArcVQLDMPipeline
from pipelines.arcvq_pixelcnn import ArcVQPixelCNNPipeline

__all__ = ["ArcVQLDMPipeline", "ArcVQPixelCNNPipeline"]
