"""The VAEVQ quantizer (arXiv 2511.06863): variational latents, quantised at their means, and a projected codebook."""

from typing import Literal

from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.diagonal_gaussian import DiagonalGaussian
from tokenizer.functional.root_trace import root_trace, takes_eigenvalues
from tokenizer.functional.straight_through import straight_through
from tokenizer.quantizers.base import QuantizerOutput, grid_of, maps_of, tokens_of
from tokenizer.quantizers.gaussian import GaussianLatents
from tokenizer.quantizers.projected import ProjectedQuantizer


class VAEVQQuantizer(GaussianLatents, ProjectedQuantizer):
    """The row nearest in l2 to the latent's mean; in training the images are also decoded from a sample.

        e = W t + b of rows t; k = argmin_k ||mean - e_k||; eps = (e_k - mean) / sigma
        quantized = e_k, with the gradient of mean + sigma sg(eps) + e_k; sampled = mean + sigma noise
        losses: mean of eps^2 / 2 (coherence) + kl_weight KL(N(mean, sigma^2) || N(0, I)) + consistency_weight
            consistency

    The encoder gives the mean and the log variance (clamped to [-30, 20]) of each latent. The table is drawn from N(0,
    1 / D): the paper's "Linear(table), table ~ N(0, D^-1/2)" is read with D^-1/2 as the standard deviation, and with a
    bias. The linear map learns, and in the public code the table too. `coherence` is a mean over all channels; `kl` is
    summed over an image and averaged over the images; `consistency` is the function of that name in this module.

    sigma is at least e^-15, where eps^2 is up to 1e13 times the squared distance: in float32 it and its gradients are
    finite for distances up to 1e12. A log variance outside the range gets no gradient.

    Args:
        codebook_size: K, the number of codes; at least 2 with the objective `paper`.
        codebook_dim: D, the size of a code.
        objective: `paper`, all three losses; `released`, `coherence` alone, as the public code trains; then nothing but
            the decoder keeps sigma from growing.
        kl_weight: weight of `kl`.
        consistency_weight: weight of `consistency`.
        train_table: whether the rows t learn too; None: only with the objective `released`, as in the public code.

    Raises:
        ValueError: a single code with the objective `paper`, because its rows have no covariance.
    """

    decodes = 2

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        objective: Literal["paper", "released"] = "paper",
        kl_weight: float = 1e-6,
        consistency_weight: float = 1e-6,
        train_table: bool | None = None,
    ):
        super().__init__(codebook_size, codebook_dim, codebook_dim, bias=True)
        self.table.requires_grad_(objective == "released" if train_table is None else train_table)
        if objective == "paper" and codebook_size < 2:
            raise ValueError(
                f"quantizer 'vaevq' takes the covariance of its codes, got {codebook_size} code; raise "
                "model.codebook_size to 2 or more, or set model.quantizer_options.objective released"
            )
        self.objective = objective
        self.kl_weight = kl_weight
        self.consistency_weight = consistency_weight

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        posterior = DiagonalGaussian(encoder_output)
        codebook = self.codebook
        tokens = tokens_of(posterior.mean)
        codes = self.assign(tokens.detach(), codebook.detach())  # (N,)
        rows = maps_of(embedding(codes, codebook), encoder_output)
        quantized, coherence = coherent(posterior, rows)
        losses = {"coherence": coherence}
        if self.objective == "paper":
            losses |= {"kl": posterior.kl().mean(), "consistency": consistency(codebook)}
        sampled = posterior.sample(self.noise(encoder_output)) if self.training else None
        codes = grid_of(codes, encoder_output)
        return QuantizerOutput(quantized, codes, losses, self.counts_of(codes), sampled)

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 for coherence and, with the objective `paper`, the other two weights."""
        others = {"kl": self.kl_weight, "consistency": self.consistency_weight}
        return {"coherence": 1.0} | (others if self.objective == "paper" else {})


def coherent(posterior: DiagonalGaussian, rows: Tensor) -> tuple[Tensor, Tensor]:
    """Quantise a posterior to rows (B, D, h, w): the rows with their gradient, and the coherence loss, a scalar.

    With eps = (rows - mean) / sigma, the rows get the gradient of mean + sigma sg(eps) + rows, and the loss is the mean
    of eps^2 / 2 over all values.
    """
    errors = (rows - posterior.mean) / posterior.std
    target = posterior.mean + posterior.std * errors.detach() + rows
    return straight_through(rows, target), errors.square().mean() / 2


def consistency(codebook: Tensor) -> Tensor:
    """Compute the squared Wasserstein-2 distance of N(0, I) and a normal fitted to K >= 2 rows: (K, D) -> scalar.

    |mean|^2 + tr S + D - 2 tr S^(1/2), with the covariance S normalised by K - 1; see `root_trace`. Directions in which
    the rows do not vary (as for K <= D) get a gradient of 0 instead of infinity.
    """
    mean = codebook.mean(dim=0)
    centred = codebook - mean
    if not takes_eigenvalues(codebook.device):  # rounded to float32, a covariance may have negative eigenvalues
        centred = centred.double()
    covariance = centred.T @ centred / (len(codebook) - 1)
    distance = mean.square().sum() + covariance.trace() + len(mean) - 2 * root_trace(covariance)
    return distance.to(codebook.dtype)
