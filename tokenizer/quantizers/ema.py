"""VQ-EMA: each row is a moving average of the tokens assigned to it (VQ-VAE, van den Oord et al. 2017, app. A.1)."""

import torch
from torch import Tensor

from tokenizer.functional.nearest import closest
from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.vectors import at_least_float32
from tokenizer.quantizers.base import QuantizerOutput, tokens_of
from tokenizer.quantizers.clusters import (
    average_sizes,
    average_sums,
    check_averages,
    check_hits,
    cluster_means,
    revive,
)
from tokenizer.quantizers.tables import TableInit, TableQuantizer, initial_table


class EMAQuantizer(TableQuantizer):
    """Nearest row in l2; the rows are moving averages of their tokens and get no gradient.

        k = argmin_k ||z - e_k||; quantized = z + sg(e_k - z)
        losses: beta ||z - sg(e_k)||^2

    The module `clusters` has the averages. They start as if each code had been its own cluster of one token: N_k = 1,
    m_k = e_k. So an unused code stays where it is; only after hundreds of updates, when its N_k falls below 1e-5, is it
    drawn to the origin.

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
        check_averages("decay", decay, revive_below)
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
        check_hits(tokens * processes * self.depth, self.codebook_size, self.revive_below)

    def assigned(self, encoder_output: Tensor, codes: Tensor) -> Tensor:
        """Return the vectors that `codes` were assigned to, (codes.numel(), D), in their order."""
        return tokens_of(encoder_output)

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Update averages and table with the global batch, revive codes, and count the update."""
        vectors = self.assigned(at_least_float32(encoder_output.detach(), self.codebook), codes)
        self.update_table(vectors, codes.flatten(), self.update_noise(1) if self.revive_below else None)
        super().after_update(encoder_output, codes)

    def update_table(self, vectors: Tensor, codes: Tensor, noise: ImageNoise | None) -> None:
        """Update averages and table with this process's vectors (N, D) of the codes (N,); with noise revive codes."""
        average_sizes(self.cluster_sizes, self.counts_of(codes), self.decay)
        average_sums(self.cluster_sums, vectors, codes, self.decay)
        if noise is not None:
            revive(self.cluster_sums, self.cluster_sizes, vectors, self.revive_below, noise, are_sums=True)
        self.codebook.copy_(cluster_means(self.cluster_sizes, self.cluster_sums))
