"""The vanilla vector quantizer (VQ-VAE, van den Oord et al. 2017): l2 look-up, codebook and commitment loss."""

import torch
from torch import Tensor, nn

from tokenizer.nearest import closest
from tokenizer.quantizers.base import Quantizer


class VQQuantizer(Quantizer):
    """Nearest row in l2; the table is drawn from U(-1/K, 1/K).

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        legacy_beta: puts beta on the codebook term instead, as taming-transformers' default did.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, beta: float = 0.25, legacy_beta: bool = False):
        super().__init__(codebook_size, codebook_dim)
        self.beta = beta
        self.legacy_beta = legacy_beta
        self.codebook = nn.Parameter(
            torch.empty(codebook_size, codebook_dim).uniform_(-1 / codebook_size, 1 / codebook_size)
        )

    def assign(self, tokens: Tensor) -> Tensor:
        """The code of smallest euclidean distance: (N, D) -> (N,) int64."""
        return closest(tokens, self.codebook)

    def loss_weights(self) -> dict[str, float | Tensor]:
        """1 and beta, in the order of `legacy_beta`."""
        codebook, commitment = (self.beta, 1.0) if self.legacy_beta else (1.0, self.beta)
        return {"codebook": codebook, "commitment": commitment}
