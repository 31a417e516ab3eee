"""Images <-> latents <-> codes."""

from tokenizer.model import VQTokenizer

__all__ = ["VQTokenizer"]
