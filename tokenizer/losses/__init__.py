"""Losses on images: pixels, LPIPS, adversarial."""
