"""Combine priors and tokenizers: class labels -> images; measure and draw images."""

import diffusers

from pipelines.arcvq_ldm import ArcVQLDMPipeline
from pipelines.arcvq_pixelcnn import ArcVQPixelCNNPipeline

# DiffusionPipeline.from_pretrained looks up the class named in model_index.json in the diffusers module.
diffusers.ArcVQLDMPipeline = ArcVQLDMPipeline
diffusers.ArcVQPixelCNNPipeline = ArcVQPixelCNNPipeline

__all__ = ["ArcVQLDMPipeline", "ArcVQPixelCNNPipeline"]
