"""The tokenizers of the tables that differ from a config in some options of their training."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Variant:
    """A config with other options than its file has.

    Attributes:
        config: name of the file.
        quantizer_options: model.quantizer_options of the training.
        options: others of its options by dotted name; they come before those that all rows of a table share.
    """

    config: str
    quantizer_options: dict[str, Any] = field(default_factory=dict)
    options: dict[str, Any] = field(default_factory=dict)

    @property
    def all_options(self) -> dict[str, Any]:
        """The options of the training by dotted name."""
        return self.options | ({"model.quantizer_options": self.quantizer_options} if self.quantizer_options else {})


# The paper's schedule, also in short trainings, whose rows otherwise have a cooldown.
_CONSTANT = {"optim.schedule": "constant"}

_CVQ_WEIGHT = {"loss.pixel_weight": 4.0}

VARIANTS = {
    # Unit initialisation, cosine look-up and the growing ball, without the arc loss. Table 6 calls this row BBNR; the
    # paper does not say whether it looks up by cosine.
    "arcvq_ball": Variant("arcvq", {"arc_initial": 0.0}),
    "arcvq_loss": Variant("arcvq", {"ball": "none"}),
    "arcvq_fixed": Variant("arcvq", {"ball": "fixed"}),  # radius 1 in every step
    "arcvq_top1": Variant("arcvq", {"top_k": 1}),  # positives of each code
    "arcvq_top8": Variant("arcvq", {"top_k": 8}),
    "arcvq_margin0.5": Variant("arcvq", {"margin": 0.5}),
    "arcvq_margin1.0": Variant("arcvq", {"margin": 1.0}),
    "arcvq_scale5": Variant("arcvq", {"scale": 5.0}),
    "arcvq_scale20": Variant("arcvq", {"scale": 20.0}),
    # Another initial codebook: uniform is VQ-VAE's U(-1/K, 1/K), unit is ArcVQ's directions of length 1.
    "arcvq_uniform": Variant("arcvq", {"init": "uniform"}),
    "cosine_unit": Variant("cosine", {"init": "unit"}),  # ArcVQ without ball and arc loss
    "vq_unit": Variant("vq", {"init": "unit"}),
    # CVQ-VAE's paper, where table 1 has the numbers of these two from, divides the squared error of images in [-1, 1]
    # by the variance of pixels in [0, 1]: reconstruction weighs 4 times what it does in ArcVQ-VAE's code.
    "vq_weight4": Variant("vq", options=_CVQ_WEIGHT),
    "cvq_weight4": Variant("cvq", options=_CVQ_WEIGHT),
    "arcvq_weight4": Variant("arcvq", options=_CVQ_WEIGHT),
    # One part more than ArcVQ-VAE, at a constant rate.
    "arcvq_constant": Variant("arcvq", options=_CONSTANT),
    "arcvq_cooldown": Variant("arcvq", options={"optim.schedule": "cooldown"}),
    "arcvq_averaged": Variant("arcvq", options=_CONSTANT | {"ema_decay": 0.999}),
    "arcvq_kmeans": Variant("arcvq", {"init": "kmeans"}, _CONSTANT),
    "arcvq_moving_average": Variant("arcvq", {"table": "moving_average"}, _CONSTANT),
    "arcvq_rotation": Variant("arcvq", {"estimator": "rotation"}, _CONSTANT),
    "arcvq_revival": Variant("arcvq", {"revive_below": 1.0}, _CONSTANT),
    "arc_vae_constant": Variant("arc_vae", options=_CONSTANT),
    "cvq_constant": Variant("cvq", options=_CONSTANT),
}


def own_options(name: str) -> dict[str, Any]:
    """Return the options, by dotted name, that set a row's tokenizer apart from its config; none for a config."""
    return VARIANTS[name].all_options if name in VARIANTS else {}
