"""The vanilla vector quantizer (VQ-VAE, van den Oord et al. 2017): l2 look-up, codebook and commitment loss."""

from torch import Tensor

from tokenizer.functional.nearest import closest
from tokenizer.quantizers.tables import TableInit, TableQuantizer, codebook_weights


class VQQuantizer(TableQuantizer):
    """Nearest row in l2.

        k = argmin_k ||z - e_k||; quantized = z + sg(e_k - z)
        losses: ||sg(z) - e_k||^2 + beta ||z - sg(e_k)||^2

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        legacy_beta: puts beta on the codebook loss instead, as taming-transformers' default did.
        init: initialisation of the table: see `initial_table`.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        beta: float = 0.25,
        legacy_beta: bool = False,
        init: TableInit = "uniform",
    ):
        super().__init__(codebook_size, codebook_dim)
        self.beta = beta
        self.legacy_beta = legacy_beta
        self.learn_table(init)

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Find the code of smallest Euclidean distance: (N, D), (K, D) -> (N,) int64."""
        return closest(tokens, codebook)

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 and beta, or beta and 1 with `legacy_beta`."""
        return codebook_weights(self.beta, self.legacy_beta)
