"""Factorised, l2-normalised codes (ViT-VQGAN, Yu et al. 2021, arXiv 2110.04627; LlamaGen, Sun et al. 2024)."""

from torch import Tensor, nn

from tokenizer.functional.nearest import most_similar
from tokenizer.functional.vectors import unit_vectors
from tokenizer.quantizers.base import QuantizerOutput, unit_latents
from tokenizer.quantizers.tables import TableInit, TableQuantizer, codebook_weights, initial_table


class FCQuantizer(TableQuantizer):
    """Nearest row among unit vectors: look-up, decoder input and losses all use latents and rows at length 1.

        z' = z / ||z||, e' = e / ||e||; k = argmax_k z' . e'_k; quantized = z' + sg(e'_k - z')
        losses: ||sg(z') - e'_k||^2 + beta ||z' - sg(e'_k)||^2

    Factorisation means a small D: the projections to D channels and back are the convolutions that the networks have
    around every quantizer (in `vqgan` the 1 x 1 ones from and to z_channels, in `conv` the encoder's last and the
    decoder's first). ViT-VQGAN has D 32, LlamaGen 8. A zero latent stays zero and gets the first code.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        init: initialisation of the table, before its rows are normalised: see `initial_table`.
    """

    def __init__(self, codebook_size: int, codebook_dim: int, beta: float = 0.25, init: TableInit = "unit"):
        super().__init__(codebook_size, codebook_dim)
        self.beta = beta
        self.table = nn.Parameter(initial_table(init, codebook_size, codebook_dim))

    @property
    def codebook(self) -> Tensor:
        """The effective table (K, D): the learned rows at length 1."""
        return unit_vectors(self.table)

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Normalise the encoder output to length 1, in float32 at least; the method uses directions only."""
        return unit_latents(encoder_output)

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Find the closest direction, which has the largest cosine: (N, D), (K, D) -> (N,) int64."""
        return most_similar(tokens, codebook)

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        return super().quantize(self.latents(encoder_output))

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 for the codebook loss and beta for the commitment loss."""
        return codebook_weights(self.beta, legacy_beta=False)
