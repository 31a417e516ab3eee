"""A class-conditional gated PixelCNN over the code grid: codes, labels -> nll; labels -> sampled codes.

van den Oord et al. 2016, "Conditional image generation with PixelCNN decoders".
"""

import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, nullcontext

import torch
from diffusers.configuration_utils import ConfigMixin
from diffusers.models.modeling_utils import ModelMixin
from torch import Tensor, nn
from torch.nn.functional import cross_entropy, relu

from priors.code_sampling import CodeSampler, check_given_codes
from priors.gated_layer import GatedLayer
from priors.pixelcnn_cache import PixelCNNCache
from tokenizer.functional.noise import ImageNoise
from tokenizer.loading.safe_mixin import CompleteWeights
from tokenizer.loading.typed_decorators import apply_forward_hook, register_to_config
from tokenizer.model import VQTokenizer
from tokenizer.option_checks import check_layers


def code_grid(tokenizer: VQTokenizer) -> tuple[int, int]:
    """Return (h, w) of a tokenizer's codes.

    Raises:
        ValueError: the tokenizer has no codes, or several per token, which this prior does not model.
    """
    depth = tokenizer.bottleneck.depth
    if depth != 1:
        codes = "no codes" if depth == 0 else f"{depth} codes for each token"
        raise ValueError(
            f"the PixelCNN models one code for each token, and quantizer {tokenizer.config.quantizer!r} gives {codes}; "
            "train the latent diffusion prior on this tokenizer, or take another quantizer"
        )
    return tokenizer.code_shape


class PixelCNN(CompleteWeights, ModelMixin, ConfigMixin):
    """Gated PixelCNN prior over codes (B, h, w), conditioned on class labels.

    Args:
        codebook_size: K, the number of codes.
        num_classes: number of class labels.
        grid_size: (h, w) of the code grid.
        channels: width of the stacks.
        num_layers: gated layers; the first has mask A and kernel 7, the others mask B and kernel 3.
        head_channels: width of the layer before the logits.
        dropout: dropout inside the gated layers.
        label_dropout: probability in [0, 1) that training replaces a label by the null class, which guidance needs; at
            0 the model has no null class.
    """

    @register_to_config
    def __init__(
        self,
        codebook_size: int = 512,
        num_classes: int = 10,
        grid_size: tuple[int, int] = (8, 8),
        channels: int = 64,
        num_layers: int = 15,
        head_channels: int = 512,
        dropout: float = 0.0,
        label_dropout: float = 0.0,
    ):
        super().__init__()
        sizes = {"codebook_size": codebook_size, "num_classes": num_classes}
        widths = {"channels": channels, "num_layers": num_layers, "head_channels": head_channels}
        for name, value in (sizes | widths | {"grid_size": min(grid_size)}).items():
            if value < 1:
                raise ValueError(f"{name} must be at least 1, got {value}: every size of a PixelCNN is")
        check_layers(num_layers=num_layers)
        if not 0 <= dropout <= 1:
            raise ValueError(f"dropout must be between 0 and 1, got {dropout}")
        if not 0 <= label_dropout < 1:
            raise ValueError(f"label_dropout must be at least 0 and below 1, got {label_dropout}")
        labels = num_classes + (label_dropout > 0)
        self.embedding = nn.Embedding(codebook_size, channels)
        self.layers = nn.ModuleList(
            GatedLayer(channels, 3 if layer else 7, labels, sees_itself=layer > 0, dropout=dropout)
            for layer in range(num_layers)
        )
        self.head = nn.Sequential(
            nn.Conv2d(channels, head_channels, 1), nn.ReLU(), nn.Conv2d(head_channels, codebook_size, 1)
        )

    def forward(self, codes: Tensor, labels: Tensor, noise: ImageNoise | None = None) -> Tensor:
        """Compute logits (B, K, h, w) from codes (B, h, w) and labels (B,), both int64.

        The logits at a position depend on the codes before it in raster order alone. In training `noise` decides which
        labels are dropped; None: noise seeded by the global generator.
        """
        if self.training and self.config.label_dropout:
            noise = noise or ImageNoise(len(labels), labels.device)
            dropped = noise.uniform(torch.empty_like(labels, dtype=torch.float32)) < self.config.label_dropout
            labels = torch.where(dropped, self.null_label, labels)
        vertical = horizontal = self.embedding(codes).permute(0, 3, 1, 2)  # (B, C, h, w)
        for layer in self.layers:
            vertical, horizontal = layer(vertical, horizontal, labels)
        return self.head(relu(horizontal))

    def nll(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Compute the negative log-likelihood in nats per code, (B,) float32; codes (B, h, w), labels (B,) int64."""
        return code_nll(self(codes, labels), codes)

    def bits_per_code(self, codes: Tensor, labels: Tensor) -> Tensor:
        """Compute `nll` in bits."""
        return self.nll(codes, labels) / math.log(2)

    @property
    def null_label(self) -> int | None:
        """Id of the null class, which stands for "no label"; None if the prior was trained without label dropout."""
        return self.config.num_classes if self.config.label_dropout else None

    @torch.no_grad()
    @apply_forward_hook
    def sample(
        self,
        labels: Tensor,
        generators: Sequence[torch.Generator | None],
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        progress: Callable[[range], Iterable[int]] = lambda positions: positions,
        on_position: Callable[[int, Tensor], Tensor] | None = None,
        guidance_scale: float = 1.0,
        given: Tensor | None = None,
        use_cache: bool = True,
        compile: bool = False,
    ) -> Tensor:
        """Sample codes position by position, each from its own uniform number, in evaluation mode.

        Args:
            labels: (B,) int64.
            generators: one per sample, on any device; None is torch's global generator.
            temperature: divides the logits, > 0.
            top_k: keep the k most likely codes.
            top_p: keep the smallest set of codes whose probability reaches p.
            progress: wraps the positions, to show the progress.
            on_position: called with each position and the codes (B, h, w) so far; the code that it returns at this
                position replaces the drawn one.
            guidance_scale: s in u + s (c - u), with logits c for the label and u for the null class; 1 gives c.
            given: codes (B, h, w) int64 to complete, with -1 for each code to draw. A given code conditions the codes
                after it; codes before it are drawn without knowing it.
            use_cache: False recomputes all rows so far for every position: the same codes, except where a uniform
                number is within rounding (about 1e-7) of the boundary between two codes in the cumulative distribution.
            compile: compile a position's step with torch.compile, which takes a while for every new batch size; after
                eight sizes in a process PyTorch stops compiling.

        Returns:
            Codes (B, h, w) int64.

        Raises:
            TypeError: an option or given codes of another type.
            ValueError: an option out of range, guidance without a null class, or given codes that do not fit.
        """
        sampler = CodeSampler(guidance_scale, temperature, top_k, top_p)
        self.check_sampler(sampler)
        if len(generators) != len(labels):
            raise ValueError(f"{len(labels)} samples need as many generators, got {len(generators)}")
        if use_cache and any(weight.is_meta for weight in self.parameters()):
            raise ValueError("weights that are fetched layer by layer cannot be cached: sample with use_cache=False")
        height, width = self.config.grid_size
        if given is not None:
            check_given_codes(given, (len(labels), height, width), self.config.codebook_size)
            given = given.to(self.device)
        draws = [True] * height if given is None else (given < 0).any(dim=2).any(dim=0).tolist()  # of each row
        codes = torch.zeros(len(labels), height, width, dtype=torch.int64, device=labels.device)
        # One uniform number per position, drawn per sample, so that a batch gives the same samples as single calls.
        uniform = torch.stack(
            [
                torch.rand(height * width, generator=generator, device=generator.device if generator else "cpu")
                for generator in generators
            ]
        ).to(labels.device)
        repeats = 2 if sampler.is_guided else 1  # null class and label share the codes
        conditions = torch.cat([torch.full_like(labels, self.null_label), labels]) if sampler.is_guided else labels
        # The cache reads the weights and applies no dropout, so a model shared by threads keeps its mode.
        with nullcontext() if use_cache else _evaluating(self):
            cache = None
            if use_cache:
                cache = PixelCNNCache(self.layers, self.embedding, self.head, conditions, width, compile)
            for position in progress(range(height * width)):
                row, column = divmod(position, width)
                if cache and column == 0:
                    cache.begin_row()
                if draws[row]:
                    if cache:
                        logits = cache.logits(column)
                    else:  # rows below have no influence yet
                        logits = self(codes[:, : row + 1].repeat(repeats, 1, 1), conditions)[:, :, row, column]
                    drawn = sampler(logits, uniform[:, position])
                    if given is not None:
                        drawn = torch.where(given[:, row, column] < 0, drawn, given[:, row, column])
                else:
                    drawn = given[:, row, column]
                codes[:, row, column] = drawn
                if on_position is not None:
                    codes[:, row, column] = on_position(position, codes.clone())[:, row, column]
                if cache:
                    cache.append(column, codes[:, row, column].repeat(repeats))
        return codes

    def check_sampler(self, sampler: CodeSampler) -> None:
        """Raise ValueError for guidance if the prior has no null class."""
        if sampler.is_guided and self.null_label is None:
            raise ValueError(
                f"guidance_scale {sampler.guidance_scale} needs a prior trained with label_dropout above 0, and this "
                "one has no null class; train one with --prior.label_dropout 0.1, or leave the scale at 1"
            )


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model into evaluation mode within the context."""
    training = model.training
    model.eval()
    try:
        yield
    finally:
        model.train(training)


def code_nll(logits: Tensor, codes: Tensor) -> Tensor:
    """Compute the cross-entropy in nats per code, (B,) float32: logits (B, K, h, w), codes (B, h, w)."""
    return cross_entropy(logits.float(), codes, reduction="none").mean(dim=(1, 2))
