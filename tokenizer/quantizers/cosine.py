"""The vanilla quantizer with cosine instead of Euclidean look-up (an ablation in ArcVQ-VAE's table 11)."""

from torch import Tensor

from tokenizer.functional.nearest import most_similar
from tokenizer.quantizers.vq import VQQuantizer


class CosineQuantizer(VQQuantizer):
    """Code of largest cosine; the decoder gets the raw rows. Same arguments as `VQQuantizer`.

    k = argmax_k cos(z, e_k); quantized = z + sg(e_k - z)
    losses: ||sg(z) - e_k||^2 + beta ||z - sg(e_k)||^2
    """

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Find the code of largest cosine similarity: (N, D), (K, D) -> (N,) int64."""
        return most_similar(tokens, codebook)
