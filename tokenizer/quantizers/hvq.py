"""The hierarchical quantised autoencoder (HQA, Williams et al. 2020; HVQ-VAE): levels of probabilistic quantizers."""

import math

import torch
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import embedding, log_softmax, mse_loss

from tokenizer.functional.distributed import all_reduce_sum
from tokenizer.functional.float64 import real_dtype
from tokenizer.functional.nearest import closest
from tokenizer.functional.noise import ImageNoise
from tokenizer.functional.soft_assignment import code_logits, expected_distances, relaxed_one_hot
from tokenizer.functional.straight_through import straight_through
from tokenizer.functional.vectors import at_least_float32
from tokenizer.networks.hierarchy import LevelNetworks
from tokenizer.option_checks import check_layers
from tokenizer.quantizers.base import Quantizer, QuantizerOutput, grid_of, maps_of, tokens_of
from tokenizer.quantizers.tables import TableInit, initial_table

# Standard deviation per dimension of the noise between a reset code and the most-used one.
_REVIVAL_SPREAD = 0.01


class HVQQuantizer(Quantizer):
    """A stack of levels with one table each, q(k | z) ~ exp(-|z - e_k|^2); `codes` are those of the top level.

        level 1: z_1 = encoder output; level l > 1: z_l = encoder_l(normalised sg(z_{l-1})), half the side
        training: quantized = the level-1 sample, sum_k softmax((logits_k + gumbel) / temperature) e_k
        losses per level: kl(q || uniform), commitment sum_k p_k ||z - e_k||^2, reconstruction of the level below

    Look-up goes downwards: the row of the top level is decoded to latents of the level below, their nearest rows are
    decoded in turn, down to level 1, whose rows are the decoder input.

    The paper trains level by level, each on frozen lower ones. Here all levels train at the same time, and no gradient
    passes from a level to the one below: its input and its target are detached. Each level thus minimises the objective
    of its phase while the level below is still learning. In training the images are decoded from the sample of level 1;
    in evaluation from the top level's codes.

    A sample is the mean of the rows, weighted by a relaxed one-hot sample (`relaxed_one_hot`). Codes and counts are
    those of the nearest row, not of the sample.

    Losses of level l, means over tokens and images:
        level_l_kl: sum_k p_k (log p_k + log K), divided by the number of scalars per token in the level's input:
            C f^2 at level 1, 4 D above.
        level_l_commitment: sum_k p_k |z - e_k|^2, divided likewise.
        level_l_reconstruction: from level 2 on, mean squared error of the normalised latents of the level below.

    Args:
        codebook_size: K, the number of codes of each level.
        codebook_dim: D, the size of a code of each level.
        levels: number of levels; 1 is a flat stochastic quantizer. Each level above the first halves the side of the
            grid.
        hidden_channels: width of the networks between levels.
        residual_channels: inner width of their residual layers.
        num_residual_layers: number of their residual layers.
        kl_weight: weight of `kl`, relative to a mean squared error of the images.
        commitment_weight: weight of `commitment`, likewise.
        initial_temperature: temperature of the samples at step 0.
        final_temperature: temperature at the end of the training, reached linearly if `set_total_steps` was called;
            otherwise the temperature stays constant.
        reset_every: updates between two resets; 0 disables them. A reset replaces the least-used code of a level by the
            most-used one plus a little noise, if its count since the last reset is below `reset_share` of the largest
            count.
        reset_share: see `reset_every`.
        norm_decay: decay per update of the running mean and variance of the latents.
        init: initialisation of the tables: see `initial_table`.

    Raises:
        ValueError: less than one level, a temperature of 0 or less, a decay above 1, or invalid sizes of the networks.
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        levels: int = 2,
        hidden_channels: int = 128,
        residual_channels: int = 32,
        num_residual_layers: int = 2,
        kl_weight: float = 1e-3,
        commitment_weight: float = 1e-3,
        initial_temperature: float = 0.667,
        final_temperature: float = 0.001,
        reset_every: int = 20,
        reset_share: float = 0.03,
        norm_decay: float = 0.9,
        init: TableInit = "normal",
    ):
        super().__init__(codebook_size, codebook_dim)
        if levels < 1:
            raise ValueError(f"levels must be at least 1, got {levels}")
        check_layers(levels=levels)
        if not min(initial_temperature, final_temperature) > 0:
            raise ValueError(f"temperatures must be above 0, got {initial_temperature} and {final_temperature}")
        if norm_decay > 1:
            raise ValueError(f"norm_decay must be at most 1, got {norm_decay}")
        self.downsampling = 2 ** (levels - 1)
        self.kl_weight = kl_weight
        self.commitment_weight = commitment_weight
        self.initial_temperature = initial_temperature
        self.final_temperature = final_temperature
        self.reset_every = reset_every
        self.reset_share = reset_share
        self.norm_decay = norm_decay
        self._total_steps: int | None = None
        self.tables = nn.ParameterList(initial_table(init, codebook_size, codebook_dim) for _ in range(levels))
        sizes = (codebook_dim, hidden_channels, residual_channels, num_residual_layers)
        self.networks = nn.ModuleList(LevelNetworks(*sizes) for _ in range(levels - 1))
        self.register_buffer("counts", torch.zeros(levels, codebook_size, dtype=torch.int64))

    @property
    def codebook(self) -> Tensor:
        """The top level's table, (K, D)."""
        return self.tables[-1]

    @property
    def temperature(self) -> Tensor:
        """Temperature of the relaxed samples at the current step, a scalar."""
        done = self.step.to(real_dtype(self.step.device)) / (self._total_steps or math.inf)
        return self.initial_temperature + (self.final_temperature - self.initial_temperature) * done.clamp(max=1)

    def set_total_steps(self, steps: int) -> None:
        """Set the number of updates after which the temperature reaches its final value."""
        self._total_steps = steps

    def latents(self, encoder_output: Tensor) -> Tensor:
        """Compute the latents of the top level: (B, D, h, w) -> (B, D, h / 2^(levels - 1), w / 2^(levels - 1)).

        Raises:
            ValueError: a side that is no multiple of 2^(levels - 1).
        """
        self._check_sides(encoder_output)
        with torch.autocast(encoder_output.device.type, enabled=False):
            latents = at_least_float32(encoder_output, encoder_output)
            for networks in self.networks:
                latents = networks.up(latents)
        return latents

    def assign_latents(self, latents: Tensor) -> Tensor:
        return _nearest(latents, self.codebook)

    def embed(self, codes: Tensor) -> Tensor:
        return self._down(_rows(codes, self.codebook))

    def quantize_latents(self, latents: Tensor) -> Tensor:
        """Compute `lookup(encode(latents))`, straight through each table; gradients also pass through the decoders."""
        with torch.autocast(latents.device.type, enabled=False):
            latents = at_least_float32(latents, latents)
            return self._down(straight_through(_rows(self.assign_latents(latents), self.codebook), latents))

    def quantize(self, encoder_output: Tensor) -> QuantizerOutput:
        self._check_sides(encoder_output)
        noise = self.noise(encoder_output) if self.training else None  # the levels draw from it in turn
        rows, codes, losses = self._level(1, encoder_output, self.values_per_token, noise)
        quantized, latents = rows, encoder_output
        for level, networks in enumerate(self.networks, start=2):
            below = networks.normalised(latents.detach())
            latents = networks.encoder(below)
            rows, codes, level_losses = self._level(level, latents, 4 * self.codebook_dim, noise)
            losses |= level_losses | {f"level_{level}_reconstruction": mse_loss(networks.decoder(rows), below)}
        if not self.training:
            latents = self.latents(encoder_output)
            quantized, codes = self.quantize_latents(latents), self.assign_latents(latents)
        return QuantizerOutput(quantized, codes, losses, self.counts_of(codes))

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 for the reconstructions, kl_weight and commitment_weight for the other losses."""
        weights = {"kl": self.kl_weight, "commitment": self.commitment_weight, "reconstruction": 1.0}
        levels = range(1, len(self.tables) + 1)
        names = ((level, name) for level in levels for name in weights if (level, name) != (1, "reconstruction"))
        return {f"level_{level}_{name}": weights[name] for level, name in names}

    def diagnostics(self) -> dict[str, Tensor]:
        """Return the temperature."""
        return {"temperature": self.temperature}

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor) -> None:
        """Count the update and the codes, update the latents' running mean and variance, and reset unused codes.

        The latents of levels between the first and the top are computed again, by the updated networks.
        """
        # At the first update the running statistics are replaced by those of the batch.
        decay = torch.where(self.step == 0, 0.0, self.norm_decay)
        super().after_update(encoder_output, codes)
        latents, counts = at_least_float32(encoder_output, encoder_output), []
        with torch.autocast(encoder_output.device.type, enabled=False):
            for table, networks in zip(self.tables, self.networks, strict=False):
                counts.append(self.counts_of(_nearest(latents, table)))
                above = networks.up(latents) if len(counts) < len(self.networks) else None
                networks.follow(latents, decay)
                latents = above
        self.counts += all_reduce_sum(torch.stack([*counts, self.counts_of(codes)]))
        if self.reset_every:
            self._replace_unused(due=self.step % self.reset_every == 0)

    def _replace_unused(self, due: Tensor) -> None:
        """Replace each level's least-used code if it is used too little and clear the counts, both only if `due`.

        Works without a branch, which would synchronise with the device.
        """
        tables = len(self.tables)
        noise = self.update_noise(tables).normal(self.codebook.new_empty(tables, self.codebook_dim))
        for table, counts, deviate in zip(self.tables, self.counts, noise, strict=True):
            least, most = counts.argmin(dim=0, keepdim=True), counts.argmax(dim=0, keepdim=True)
            unused = due & (counts[least] < self.reset_share * counts[most])
            table[least] = torch.where(unused, table[most] + _REVIVAL_SPREAD * deviate, table[least])
        self.counts.copy_(torch.where(due, 0, self.counts))

    def _level(
        self, level: int, latents: Tensor, values: int, noise: ImageNoise | None
    ) -> tuple[Tensor, Tensor, dict[str, Tensor]]:
        """Quantise one level: latents (B, D, h, w) -> rows (B, D, h, w), codes (B, h, w), losses.

        `values` is the number of values of the level's input per token. The rows are a sample, or without noise the
        nearest rows.
        """
        tokens = tokens_of(latents)  # (N, D)
        table = at_least_float32(self.tables[level - 1], tokens)
        logits = code_logits(tokens, tokens.new_full((len(tokens), 1), 2.0), table)  # (N, K)
        codes = logits.argmax(dim=1)  # (N,)
        log_p = log_softmax(logits, dim=1)
        p = log_p.exp()
        kl = (p * (log_p + math.log(self.codebook_size))).sum() / len(tokens)
        losses = {"kl": kl / values, "commitment": expected_distances(p, tokens, table).mean() / values}
        if noise is None:
            rows = embedding(codes, table)
        else:
            gumbel = noise.gumbel(logits.view(len(latents), -1, self.codebook_size)).view_as(logits)
            rows = relaxed_one_hot(logits, gumbel, self.temperature) @ table
        losses = {f"level_{level}_{name}": loss for name, loss in losses.items()}
        return maps_of(rows, latents), grid_of(codes, latents), losses

    def _down(self, rows: Tensor) -> Tensor:
        """Decode rows of the top level (B, D, h', w') to rows of level 1 (B, D, h, w), straight through each table."""
        for networks, table in zip(reversed(self.networks), reversed(list(self.tables)[:-1]), strict=True):
            below = networks.down(rows)
            rows = straight_through(_rows(_nearest(below, table), table), below)
        return rows

    def _check_sides(self, encoder_output: Tensor) -> None:
        if encoder_output.shape[2] % self.downsampling or encoder_output.shape[3] % self.downsampling:
            raise ValueError(f"sides must be multiples of {self.downsampling}, got {tuple(encoder_output.shape[2:])}")


def _nearest(latents: Tensor, table: Tensor) -> Tensor:
    """Find the nearest codes: latents (B, D, h, w), table (K, D) -> codes (B, h, w)."""
    return grid_of(closest(tokens_of(latents), table), latents)


def _rows(codes: Tensor, table: Tensor) -> Tensor:
    """Look up codes: codes (B, h, w), table (K, D) -> (B, D, h, w)."""
    return rearrange(embedding(codes, table), "b h w d -> b d h w")
