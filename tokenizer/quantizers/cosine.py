"""The vanilla vector quantizer with the cosine in place of the distance (the row between in ArcVQ-VAE's table 11)."""

from torch import Tensor

from tokenizer.functional.nearest import most_similar
from tokenizer.quantizers.vq import VQQuantizer


class CosineQuantizer(VQQuantizer):
    """The row of largest cosine; the raw rows go to the decoder. Its arguments are those of `VQQuantizer`."""

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """The code of largest cosine similarity: (N, D), (K, D) -> (N,) int64."""
        return most_similar(tokens, codebook)
