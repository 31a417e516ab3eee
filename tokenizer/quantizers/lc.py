"""VQGAN-LC (Zhu et al. 2024, arXiv 2406.11837): a large frozen table of image features and a learned projector."""

import torch
from torch import Tensor, nn

from tokenizer.quantizers.projected import ProjectedQuantizer


class LCQuantizer(ProjectedQuantizer):
    """Nearest row in l2 of projected, frozen features.

        e = W f + b of frozen features f; k = argmin_k ||z - e_k||; quantized = z + sg(e_k - z)
        losses: beta ||sg(z) - e_k||^2 + ||z - sg(e_k)||^2

    The paper's features are 100,000 centroids of patch features of CLIP's ViT-L/14; `load_features` accepts any. Until
    then they are drawn from N(0, 1 / feature_dim), so that their length is about 1. They are saved with the weights.
    The projector's weights start as N(0, 1 / D).

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        feature_dim: F, the size of a feature.
        beta: weight of the codebook loss, which trains the projector, relative to the commitment loss.
        bias: whether the projector adds a learned offset.
        loss_weight: weight of both losses; the public code trains with 0.1.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        feature_dim: int = 768,
        beta: float = 0.33,
        bias: bool = True,
        loss_weight: float = 1.0,
    ):
        if feature_dim < 1:
            raise ValueError(f"lc.feature_dim must be at least 1, got {feature_dim}")
        super().__init__(codebook_size, codebook_dim, feature_dim, bias)
        nn.init.normal_(self.projector.weight, std=codebook_dim**-0.5)
        self.beta = beta
        self.loss_weight = loss_weight

    @torch.no_grad()
    def load_features(self, table: Tensor) -> None:
        """Copy features (K, F), any floating dtype, into the frozen table.

        Raises:
            ValueError: a table of another shape.
        """
        if table.shape != self.table.shape:
            raise ValueError(
                f"the features are {tuple(table.shape)}, the quantizer's table is {tuple(self.table.shape)}; set "
                "model.codebook_size and model.quantizer_options.feature_dim to those of the features"
            )
        self.table.copy_(table)

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return loss_weight for the commitment loss, and beta times as much for the codebook loss."""
        return {"codebook": self.loss_weight * self.beta, "commitment": self.loss_weight}
