"""Codes and latents -> their distribution."""

from priors.pixelcnn import PixelCNN

__all__ = ["PixelCNN"]
