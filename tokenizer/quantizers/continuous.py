"""Continuous references: take a quantizer's place without quantising, for comparison."""

from torch import Tensor

from tokenizer.quantizers.base import Quantizer


class ContinuousQuantizer(Quantizer):
    """Latents and named losses without codes: `quantize` returns neither codes nor counts, and K is ignored.

    A subclass sets `name` and defines `quantize`, `quantize_latents` and `loss_weights`.

    Attributes:
        name: the method's name in configs, for error messages.
    """

    depth = 0
    name: str

    @property
    def codebook(self) -> Tensor:
        """Raises ValueError: a continuous method has no codebook."""
        raise self._no_codes()

    def assign_latents(self, latents: Tensor) -> Tensor:
        """Raise ValueError: a continuous method has no codes."""
        raise self._no_codes()

    def embed(self, codes: Tensor) -> Tensor:
        """Raise ValueError: a continuous method has no codes."""
        raise self._no_codes()

    def _no_codes(self) -> ValueError:
        return ValueError(
            f"quantizer {self.name!r} is continuous: it has no codes; take encode(images).latents and decode(latents)"
        )
