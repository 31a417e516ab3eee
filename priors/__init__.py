"""Priors: latents or codes -> their distribution."""

from priors.pixelcnn import PixelCNN

__all__ = ["PixelCNN"]
