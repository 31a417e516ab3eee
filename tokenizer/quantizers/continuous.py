"""Continuous references: what stands where a quantizer does and quantises nothing, for comparison."""

from torch import Tensor

from tokenizer.quantizers.base import Quantizer


class ContinuousQuantizer(Quantizer):
    """Latents and named losses, no codes: `quantize` gives neither codes nor counts, and K has no meaning.

    A subclass sets `name` and defines `quantize`, `quantize_latents` and `loss_weights`.

    Attributes:
        name: as configs call it, for messages.
    """

    depth = 0
    name: str

    @property
    def codebook(self) -> Tensor:
        """Raises ValueError: there is none."""
        raise self._no_codes()

    def assign_latents(self, latents: Tensor) -> Tensor:
        """Raises ValueError: there are no codes."""
        raise self._no_codes()

    def embed(self, codes: Tensor) -> Tensor:
        """Raises ValueError: there are no codes."""
        raise self._no_codes()

    def _no_codes(self) -> ValueError:
        return ValueError(
            f"quantizer {self.name!r} is continuous: it has no codes; take encode(images).latents and decode(latents)"
        )
