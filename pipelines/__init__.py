"""Priors and tokenizers put together: class labels -> images; images -> numbers and pictures."""

import diffusers

from pipelines.arcvq_ldm import ArcVQLDMPipeline
from pipelines.arcvq_pixelcnn import ArcVQPixelCNNPipeline

# DiffusionPipeline.from_pretrained looks up there what a folder's model_index.json names.
diffusers.ArcVQLDMPipeline = ArcVQLDMPipeline
diffusers.ArcVQPixelCNNPipeline = ArcVQPixelCNNPipeline

__all__ = ["ArcVQLDMPipeline", "ArcVQPixelCNNPipeline"]
