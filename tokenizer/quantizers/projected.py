"""Quantizers whose codebook is a frozen table behind a learned linear layer."""

import torch
from torch import Tensor, nn

from tokenizer.functional.nearest import closest
from tokenizer.quantizers.tables import TableQuantizer


class ProjectedQuantizer(TableQuantizer):
    """Nearest row in l2 of the codebook Linear(table): the table (K, F) is frozen, the layer learns.

    The gradient of any code moves the layer and with it all codes, so that no code is left unused for lack of gradient.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        table_dim: F, the size of a row of the table, drawn from N(0, 1 / F), so that its length is about 1.
        bias: whether the layer adds a learned offset.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, table_dim: int, bias: bool):
        super().__init__(codebook_size, codebook_dim)
        self.table = nn.Parameter(torch.randn(codebook_size, table_dim) * table_dim**-0.5, requires_grad=False)
        self.projector = nn.Linear(table_dim, codebook_dim, bias)

    @property
    def codebook(self) -> Tensor:
        """The effective table (K, D), with a gradient to the layer; all look-ups use it."""
        with torch.autocast(self.table.device.type, enabled=False):
            return self.projector(self.table)

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Find the code of smallest Euclidean distance: (N, D), (K, D) -> (N,) int64."""
        return closest(tokens, codebook)
