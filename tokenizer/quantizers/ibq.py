"""Index back-propagation (IBQ, Shi et al. 2024): every code gets a gradient, through a softmax over all codes."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.functional import log_softmax, one_hot, softmax
from torch.utils.checkpoint import checkpoint

from tokenizer.functional.distributed import all_reduce_sum, global_count
from tokenizer.functional.nearest import largest_product
from tokenizer.functional.straight_through import straight_through
from tokenizer.functional.tiles import concatenate
from tokenizer.functional.vectors import at_least_float32
from tokenizer.quantizers.base import QuantizerOutput, grid_of, maps_of, tokens_of
from tokenizer.quantizers.tables import TableInit, TableQuantizer

# Entries of the largest (N, K) table that is made as a whole; the method holds about seven of them.
_ENTRIES = 1 << 26


class IBQQuantizer(TableQuantizer):
    """Code of largest inner product, with an index that is differentiable straight through a softmax.

        p = softmax(z e^T); k = argmax p; quantized = q = (one_hot(k) + p - sg(p)) e
        losses: ||q - z||^2 + beta ||e_k - sg(z)||^2 + ||z - sg(e_k)||^2 + entropy_weight entropy

    Tokens and all rows get a gradient through p; there is no other straight-through gradient. A large N x K table of
    inner products is made in parts of the tokens, and again in the backward pass.

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
        codes = self.assign(tokens.detach(), codebook.detach())  # (N,)
        parts = list(zip(*(values.split(max(1, _ENTRIES // len(codebook))) for values in (tokens, codes)), strict=True))
        if len(parts) == 1:
            soft = [self._soft(tokens, codes, codebook)]
        else:
            options = {"use_reentrant": False, "preserve_rng_state": False}
            soft = [checkpoint(self._soft, *part, codebook, **options) for part in parts]
        rows = concatenate([part.rows for part in soft])
        # The value is the row, bit for bit; the gradient is that of (one-hot + p - sg p) e.
        indexed = straight_through(rows, concatenate([part.indexed for part in soft]))
        losses = {
            "index": (indexed - tokens).square().mean(),
            "codebook": (rows - tokens.detach()).square().mean(),
            "commitment": (tokens - rows.detach()).square().mean(),
        }
        if self.entropy_weight:
            losses["entropy"] = self._entropy_loss(soft)
        return QuantizerOutput(
            maps_of(indexed, encoder_output), grid_of(codes, encoder_output), losses, self.counts_of(codes)
        )

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 for index, beta for codebook, 1 for commitment, and entropy_weight."""
        entropy = {"entropy": self.entropy_weight} if self.entropy_weight else {}
        return {"index": 1.0, "codebook": self.beta, "commitment": 1.0} | entropy

    def _soft(self, tokens: Tensor, codes: Tensor, codebook: Tensor) -> "_Soft":
        """Compute the rows, and what goes through the softmax, of a part of the tokens: (n, D), (n,), (K, D)."""
        logits = tokens @ codebook.T  # (n, K)
        p = softmax(logits, dim=1)
        rows = codebook[codes]
        indexed = (one_hot(codes, self.codebook_size) + p - p.detach()) @ codebook
        if not self.entropy_weight:
            return _Soft(rows, indexed)
        log_p = log_softmax(logits / self.entropy_temperature, dim=1)
        p = log_p.exp()
        return _Soft(rows, indexed, p.mean(dim=0), p.detach().sum(dim=0), (p * log_p).sum(dim=1))

    def _entropy_loss(self, soft: Sequence["_Soft"]) -> Tensor:
        """Compute the entropy loss of the parts of a batch, a scalar."""
        entropies = concatenate([part.entropies for part in soft])  # (N,)
        mean = soft[0].mean
        if len(soft) > 1:
            mean = sum(part.mean * (len(part.entropies) / len(entropies)) for part in soft)
        if self.training:
            # The value is the mean over all processes, the gradient that of this process's tokens; averaged over the
            # processes, as by DistributedDataParallel, it is the gradient of the global batch.
            total = soft[0].total if len(soft) == 1 else torch.stack([part.total for part in soft]).sum(dim=0)
            mean = straight_through(all_reduce_sum(total) / global_count(entropies), mean)
        floor = torch.finfo(mean.dtype).tiny  # so that 0 log 0 is 0 with a finite gradient
        return (mean * mean.clamp(min=floor).log()).sum() - entropies.mean()


class _Soft(NamedTuple):
    """Hold what the softmax gives of n tokens.

    Attributes:
        rows: (n, D), the rows of their codes.
        indexed: (n, D), the rows of their differentiable indices.
        mean: (K,), of the sharpened softmax over the tokens.
        total: (K,), its sum, without a gradient.
        entropies: (n,), its negative entropy.
    """

    rows: Tensor
    indexed: Tensor
    mean: Tensor | None = None
    total: Tensor | None = None
    entropies: Tensor | None = None
