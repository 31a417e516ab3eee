"""Index back-propagation (IBQ, Shi et al. 2024): every code gets a gradient, through a softmax over all codes."""

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
    """Code of largest inner product, with an index that is differentiable straight through a softmax.

        p = softmax(z e^T); k = argmax p; quantized = q = (one_hot(k) + p - sg(p)) e
        losses: ||q - z||^2 + beta ||e_k - sg(z)||^2 + ||z - sg(e_k)||^2 + entropy_weight entropy

    Tokens and all rows get a gradient through p; there is no other straight-through gradient. The method needs the N x
    K table of inner products in memory.

    Losses, means over tokens (the first three also over dimensions):
        index: |q - z|^2 of the row with the differentiable index.
        codebook, commitment: |e_k - sg z|^2 and |z - sg e_k|^2 of the row as it is looked up.
        entropy: mean entropy of each token's sharpened softmax, minus the entropy of its mean over the tokens of all
            processes: small if assignments are confident and codes are used equally.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the codebook loss.
        entropy_weight: weight of the entropy loss; at 0 it is not computed.
        entropy_temperature: divides the inner products in the entropy loss alone.
        init: initialisation of the table: see `initial_table`.
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
        """Find the code of largest inner product: (N, D), (K, D) -> (N,) int64."""
        return largest_product(tokens, codebook)

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        tokens = tokens_of(encoder_output)
        codebook = at_least_float32(self.codebook, tokens)
        logits = tokens @ codebook.T  # (N, K)
        codes = self.assign(tokens.detach(), codebook.detach())  # (N,)
        p = softmax(logits, dim=1)
        rows = codebook[codes]
        # The value is the row, bit for bit; the gradient is that of (one-hot + p - sg p) e.
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
        """Return 1 for index, beta for codebook, 1 for commitment, and entropy_weight."""
        entropy = {"entropy": self.entropy_weight} if self.entropy_weight else {}
        return {"index": 1.0, "codebook": self.beta, "commitment": 1.0} | entropy

    def _entropy_loss(self, logits: Tensor) -> Tensor:
        """Compute the entropy loss: (N, K) -> scalar."""
        log_p = log_softmax(logits / self.entropy_temperature, dim=1)
        p = log_p.exp()
        mean = p.mean(dim=0)
        if self.training:
            # The value is the mean over all processes, the gradient that of this process's tokens; averaged over the
            # processes, as by DistributedDataParallel, it is the gradient of the global batch.
            mean = straight_through(all_reduce_sum(p.detach().sum(dim=0)) / global_count(p), mean)
        floor = torch.finfo(mean.dtype).tiny  # so that 0 log 0 is 0 with a finite gradient
        return (mean * mean.clamp(min=floor).log()).sum() - (p * log_p).sum(dim=1).mean()
