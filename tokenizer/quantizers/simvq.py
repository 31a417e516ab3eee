"""SimVQ (Zhu et al. 2024, arXiv 2411.02038): a frozen random table whose basis a linear layer learns."""

from torch import Tensor

from tokenizer.quantizers.projected import ProjectedQuantizer
from tokenizer.quantizers.tables import codebook_weights


class SimVQQuantizer(ProjectedQuantizer):
    """Nearest row in l2 of Linear(table), with a table drawn from N(0, 1 / D) and frozen.

        e = W t + b of frozen rows t; k = argmin_k ||z - e_k||; quantized = z + sg(e_k - z)
        losses: ||sg(z) - e_k||^2 + beta ||z - sg(e_k)||^2

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code and of a row of the table.
        beta: weight of the commitment loss.
        bias: whether the linear layer adds a learned offset.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, beta: float = 0.25, bias: bool = True):
        super().__init__(codebook_size, codebook_dim, codebook_dim, bias)
        self.beta = beta

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 for the codebook loss, which trains the layer, and beta for the commitment loss."""
        return codebook_weights(self.beta, legacy_beta=False)
