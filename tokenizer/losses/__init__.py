"""Losses on images: reconstruction, LPIPS, adversarial."""
