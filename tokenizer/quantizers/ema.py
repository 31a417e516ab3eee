"""VQ-EMA: each row is a moving average of the tokens assigned to it (VQ-VAE, van den Oord et al. 2017, app. A.1)."""

import torch
from torch import Tensor

from tokenizer.functional.distributed import all_reduce_sum
from tokenizer.functional.nearest import closest
from tokenizer.functional.row_sums import sum_rows
from tokenizer.functional.vectors import at_least_float32
from tokenizer.quantizers.anchors import random_tokens
from tokenizer.quantizers.base import QuantizerOutput, tokens_of
from tokenizer.quantizers.tables import TableInit, TableQuantizer, initial_table

# Laplace smoothing of the cluster sizes, which avoids 0 / 0 for an empty cluster.
_EPSILON = 1e-5


class EMAQuantizer(TableQuantizer):
    """Nearest row in l2; the rows are moving averages of their tokens and get no gradient.

        k = argmin_k ||z - e_k||; quantized = z + sg(e_k - z)
        losses: beta ||z - sg(e_k)||^2

    With n_k tokens z of the global batch in cluster k, each update computes

        N_k <- g N_k + (1 - g) n_k,  m_k <- g m_k + (1 - g) sum z,  e_k = m_k / N~_k,
        N~_k = n (N_k + eps) / (n + K eps),  n = sum N,  eps = 1e-5.

    The averages start as if each code had been its own cluster of one token: N_k = 1, m_k = e_k. So an unused code
    stays where it is; only after hundreds of updates, when its N_k falls below eps, is it drawn to the origin.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss, the only loss.
        decay: g.
        revive_below: replace codes with N_k below this by random tokens of the batch, with N_k = max(1, revive_below);
            0 disables it. N_k counts tokens per update over all processes, so a code stays if it gets that many on
            average.
        init: initialisation of the table: see `initial_table`.

    Attributes:
        cluster_sizes: N_k, (K,).
        cluster_sums: m_k, (K, D).
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        beta: float = 0.25,
        decay: float = 0.99,
        revive_below: float = 0.0,
        init: TableInit = "uniform",
    ):
        super().__init__(codebook_size, codebook_dim)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        if not 0 <= revive_below < float("inf"):
            raise ValueError(f"revive_below must be at least 0 and finite, got {revive_below}")
        self.beta = beta
        self.decay = decay
        self.revive_below = revive_below
        self.register_buffer("codebook", initial_table(init, codebook_size, codebook_dim))
        self.register_buffer("cluster_sizes", torch.ones(codebook_size))
        self.register_buffer("cluster_sums", self.codebook.clone())

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Find the code of smallest Euclidean distance: (N, D), (K, D) -> (N,) int64."""
        return closest(tokens, codebook)

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        output = super().quantize(encoder_output)
        del output.losses["codebook"]
        return output

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return beta for `commitment`."""
        return {"commitment": self.beta}

    def check_batch(self, tokens: int, processes: int) -> None:
        """Raise ValueError if a batch has too few tokens to use every code `revive_below` times."""
        hits = tokens * processes * self.depth
        if hits < self.revive_below * self.codebook_size:
            raise ValueError(
                f"a batch of {hits} codes cannot hit each of {self.codebook_size} codes revive_below "
                f"{self.revive_below} times, so that codes in use are replaced in every update; raise "
                "optim.batch_size, or lower model.quantizer_options.revive_below"
            )

    def assigned(self, encoder_output: Tensor, codes: Tensor) -> Tensor:
        """Return the vectors that `codes` were assigned to, (codes.numel(), D), in their order."""
        return tokens_of(encoder_output)

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Update averages and table with the global batch, revive codes, and count the update."""
        vectors = self.assigned(at_least_float32(encoder_output.detach(), self.codebook), codes)
        added = sum_rows(vectors, codes.flatten(), self.codebook_size)
        sizes, sums, share = self.cluster_sizes, self.cluster_sums, 1 - self.decay
        sizes.lerp_(all_reduce_sum(self.counts_of(codes)).to(sizes.dtype), share)
        sums.lerp_(all_reduce_sum(added).to(sums.dtype), share)
        if self.revive_below:
            # All codes draw a token, so that no synchronisation is needed to count the dead ones.
            dead, size = sizes < self.revive_below, max(1.0, self.revive_below)
            tokens = random_tokens(vectors, dead.cumsum(0) - 1, self.update_noise(1))
            sizes.masked_fill_(dead, size)
            sums.copy_(torch.where(dead[:, None], size * tokens, sums))
        total = sizes.sum()
        smoothed = total * (sizes + _EPSILON) / (total + self.codebook_size * _EPSILON)
        self.codebook.copy_(sums / smoothed[:, None])
        super().after_update(encoder_output, codes)
