"""The vanilla vector quantizer (VQ-VAE, van den Oord et al. 2017): l2 look-up, codebook and commitment loss."""

from torch import Tensor

from tokenizer.functional.nearest import closest
from tokenizer.quantizers.tables import TableInit, TableQuantizer, codebook_weights


class VQQuantizer(TableQuantizer):
    """Nearest row in l2.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        legacy_beta: puts beta on the codebook term instead, as taming-transformers' default did.
        init: how the table is drawn: see `initial_table`.
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
        """The code of smallest euclidean distance: (N, D), (K, D) -> (N,) int64."""
        return closest(tokens, codebook)

    def loss_weights(self) -> dict[str, float | Tensor]:
        """1 and beta, in the order of `legacy_beta`."""
        return codebook_weights(self.beta, self.legacy_beta)
