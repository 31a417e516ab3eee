"""Index back-propagation (IBQ, Shi et al. 2024): every code gets a gradient, through the softmax over all of them."""

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot, softmax

from tokenizer.functional.distributed import all_reduce_sum, global_count
from tokenizer.functional.nearest import largest_product
from tokenizer.functional.straight_through import straight_through
from tokenizer.functional.vectors import at_least_float32
from tokenizer.quantizers.base import QuantizerOutput, grid_of, maps_of, tokens_of
from tokenizer.quantizers.tables import TableInit, TableQuantizer


class IBQQuantizer(TableQuantizer):
    """The row of largest inner product; its index is differentiable, straight through the softmax of the products.

    With p = softmax(z e^T) and the one-hot index of its largest entry, the decoder takes q = (one-hot + p - sg p) e, so
    that tokens and all rows get a gradient. There is no other straight-through gradient. The table of N x K products is
    held, as the method's definition asks.

    Losses, means over tokens:
        index: |q - z|^2 of the row with the differentiable index (mean over dimensions, as the two others).
        codebook, commitment: |q' - sg z|^2 and |z - sg q'|^2 of the row as it is looked up.
        entropy: the mean entropy of the sharpened softmax of a token, less the entropy of its mean over the tokens of
            all processes: small where tokens are decided and codes are used alike.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the codebook loss.
        entropy_weight: of the entropy loss, which is not computed if it is 0.
        entropy_temperature: the products are divided by it in the entropy loss alone.
        init: how the table is drawn: see `initial_table`.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        beta: float = 0.25,
        entropy_weight: float = 0.05,
        entropy_temperature: float = 0.01,
        init: TableInit = "normal",
    ):
        super().__init__(codebook_size, codebook_dim)
        if not entropy_temperature > 0:
            raise ValueError(f"entropy_temperature must be above 0, got {entropy_temperature}")
        self.beta = beta
        self.entropy_weight = entropy_weight
        self.entropy_temperature = entropy_temperature
        self.learn_table(init)

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """The code of largest inner product: (N, D), (K, D) -> (N,) int64."""
        return largest_product(tokens, codebook)

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        tokens = tokens_of(encoder_output)
        codebook = at_least_float32(self.codebook, tokens)
        logits = tokens @ codebook.T  # (N, K)
        codes = self.assign(tokens.detach(), codebook.detach())  # (N,)
        p = softmax(logits, dim=1)
        rows = codebook[codes]
        # The value is the row, bit for bit; the gradient that of (one-hot + p - sg p) e.
        indexed = straight_through(rows, (one_hot(codes, self.codebook_size) + p - p.detach()) @ codebook)
        losses = {
            "index": (indexed - tokens).square().mean(),
            "codebook": (rows - tokens.detach()).square().mean(),
            "commitment": (tokens - rows.detach()).square().mean(),
        }
        if self.entropy_weight:
            losses["entropy"] = self._entropy_loss(logits)
        return QuantizerOutput(
            maps_of(indexed, encoder_output), grid_of(codes, encoder_output), losses, self.counts_of(codes)
        )

    def loss_weights(self) -> dict[str, float | Tensor]:
        """1, beta, 1, and entropy_weight."""
        entropy = {"entropy": self.entropy_weight} if self.entropy_weight else {}
        return {"index": 1.0, "codebook": self.beta, "commitment": 1.0} | entropy

    def _entropy_loss(self, logits: Tensor) -> Tensor:
        """(N, K) -> scalar."""
        log_p = log_softmax(logits / self.entropy_temperature, dim=1)
        p = log_p.exp()
        mean = p.mean(dim=0)
        if self.training:
            # The value is that of all processes. Each one's gradient is that of its own tokens, and their mean, which
            # DistributedDataParallel takes, that of the whole batch.
            mean = straight_through(all_reduce_sum(p.detach().sum(dim=0)) / global_count(p), mean)
        floor = torch.finfo(mean.dtype).tiny  # 0 log 0 is 0, and has a finite gradient
        return (mean * mean.clamp(min=floor).log()).sum() - (p * log_p).sum(dim=1).mean()
