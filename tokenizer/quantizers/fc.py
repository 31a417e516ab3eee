"""Factorised, l2-normalised codes (ViT-VQGAN, Yu et al. 2021, arXiv 2110.04627; LlamaGen, Sun et al. 2024)."""

from torch import Tensor, nn

from tokenizer.functional.nearest import most_similar
from tokenizer.functional.vectors import unit_vectors
from tokenizer.quantizers.base import QuantizerOutput, unit_latents
from tokenizer.quantizers.tables import TableInit, TableQuantizer, codebook_weights, initial_table


class FCQuantizer(TableQuantizer):
    """Nearest row, with latents and rows at length 1 for the look-up, the decoder and the losses alike.

    The factorisation is a small D: the projections down to it and up from it are the convolutions that the networks
    have around every quantizer (of `vqgan` the 1 x 1 ones from z_channels and back, of `conv` the encoder's last and
    the decoder's first). ViT-VQGAN has D 32, LlamaGen 8. A latent of zeros stays zero and takes the first code.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        init: how the table is drawn, before its rows are normalised: see `initial_table`.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, beta: float = 0.25, init: TableInit = "unit"):
        super().__init__(codebook_size, codebook_dim)
        self.beta = beta
        self.table = nn.Parameter(initial_table(init, codebook_size, codebook_dim))

    @property
    def codebook(self) -> Tensor:
        """The effective table, (K, D): the learned one's rows at length 1."""
        return unit_vectors(self.table)

    def latents(self, encoder_output: Tensor) -> Tensor:
        """What the encoder gives at length 1, in float32 at least: nothing else of it counts."""
        return unit_latents(encoder_output)

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """The code of smallest distance between directions, which is that of largest cosine: (N, D), (K, D) -> (N,)."""
        return most_similar(tokens, codebook)

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        return super().quantize(self.latents(encoder_output))

    def loss_weights(self) -> dict[str, float | Tensor]:
        """1 for the codebook loss and beta for the commitment loss."""
        return codebook_weights(self.beta, legacy_beta=False)
