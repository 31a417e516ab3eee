"""CVQ-VAE (Zheng and Vedaldi 2023): rarely used codes move towards tokens of the batch, their anchors."""

from typing import Literal

import torch
from torch import Tensor
from torch.nn.functional import cross_entropy
from torch.utils.checkpoint import checkpoint

from tokenizer.functional.distributed import all_gather, all_reduce_sum, global_count
from tokenizer.functional.nearest import closest, most_similar
from tokenizer.functional.tiles import entries_of_tile
from tokenizer.functional.vectors import at_least_float32
from tokenizer.quantizers.anchors import Distance, closest_tokens, random_tokens, sampled_tokens, similarities
from tokenizer.quantizers.base import tokens_of
from tokenizer.quantizers.tables import TableInit
from tokenizer.quantizers.vq import VQQuantizer

# Temperature of the contrastive loss.
_TEMPERATURE = 0.07


class CVQQuantizer(VQQuantizer):
    """Closest code; the decoder gets the raw rows; rarely used codes are pulled to anchors.

        k = argmin_k distance(z, e_k); quantized = z + sg(e_k - z)
        losses: ||sg(z) - e_k||^2 + beta ||z - sg(e_k)||^2, optionally a contrastive loss

    After each optimizer step the table moves (section 3.2):

        N_k <- g N_k + (1 - g) f_k,  a_k = exp(-10 K N_k / (1 - g) - 1e-3),  e_k <- (1 - a_k) e_k + a_k anchor_k,

    where f_k is the share of the global batch's tokens with code k, and N_k starts at 0. A code in use, N_k = 1 / K,
    stays; a code that is never used becomes its anchor in every update.

    Args:
        codebook_size: K, the number of codes.
        codebook_dim: D, the size of a code.
        beta: weight of the commitment loss.
        legacy_beta: puts beta on the codebook loss instead.
        distance: measure of closeness in assignment, anchors and contrastive loss: the cosine or the Euclidean
            distance.
        anchor: a code's anchor in the global batch: `closest`, its closest token; `random`, a random token (the public
            code draws from a pool of earlier batches as well); `probrandom`, a token sampled by the softmax over tokens
            of cosines or negative squared distances.
        decay: g.
        first_batch: move codes to their anchors at the first update only.
        contrastive_weight: weight of the contrastive loss; 0 disables it. For each code, it is the cross-entropy of the
            mean similarity of its max(1, N / K) closest tokens against the similarities of its N / 2 farthest tokens,
            at a temperature of 0.07. It trains the table alone. In training, the N tokens are those of all processes.
        init: initialisation of the table: see `initial_table`.

    Attributes:
        frequencies: N_k, (K,).
    """

    def __init__(
        self,
        codebook_size: int,
        codebook_dim: int,
        beta: float = 0.25,
        legacy_beta: bool = False,
        distance: Distance = "cosine",
        anchor: Literal["closest", "random", "probrandom"] = "closest",
        decay: float = 0.99,
        first_batch: bool = False,
        contrastive_weight: float = 0.0,
        init: TableInit = "uniform",
    ):
        super().__init__(codebook_size, codebook_dim, beta, legacy_beta, init)
        if not 0 <= decay < 1:
            raise ValueError(f"decay must be at least 0 and below 1, got {decay}")
        self.distance = distance
        self.anchor = anchor
        self.decay = decay
        self.first_batch = first_batch
        self.contrastive_weight = contrastive_weight
        self.register_buffer("frequencies", torch.zeros(codebook_size))

    def assign(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Find the closest code: (N, D), (K, D) -> (N,) int64."""
        return most_similar(tokens, codebook) if self.distance == "cosine" else closest(tokens, codebook)

    def assign_with_losses(self, tokens: Tensor, codebook: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Find the closest codes, and compute `contrastive` if it has a weight."""
        codes, losses = super().assign_with_losses(tokens, codebook)
        return codes, losses | ({"contrastive": self.contrastive(tokens, codebook)} if self.contrastive_weight else {})

    def contrastive(self, tokens: Tensor, codebook: Tensor) -> Tensor:
        """Compute the contrastive loss, a scalar; in training, every process must call this."""
        tokens = all_gather(tokens.detach()) if self.training else tokens.detach()
        part = max(1, entries_of_tile(tokens) // len(tokens))
        # Blocks of codes, recomputed in the backward pass, so that the K x N similarities are never held.
        options = {"use_reentrant": False, "preserve_rng_state": False}
        terms = [checkpoint(self._contrastive_terms, tokens, codes, **options) for codes in codebook.split(part)]
        return torch.cat(terms).mean()

    def _contrastive_terms(self, tokens: Tensor, codes: Tensor) -> Tensor:
        """Compute the contrastive loss of each of the `codes`, (k,)."""
        similarity = similarities(tokens, codes, self.distance) / _TEMPERATURE
        positive = similarity.topk(max(1, len(tokens) // self.codebook_size)).values.mean(dim=1, keepdim=True)
        logits = torch.cat([positive, similarity.topk(len(tokens) // 2, largest=False).values], dim=1)
        return cross_entropy(logits, similarity.new_zeros(len(codes), dtype=torch.int64), reduction="none")

    def loss_weights(self) -> dict[str, float | Tensor]:
        """Return 1 and beta (see `legacy_beta`), and `contrastive_weight`."""
        weight = self.contrastive_weight
        return super().loss_weights() | ({"contrastive": weight} if weight else {})

    @torch.no_grad()
    def after_update(self, encoder_output: Tensor, codes: Tensor | None) -> None:
        """Move rarely used codes to tokens of the global batch, and count the update."""
        self._move(tokens_of(at_least_float32(encoder_output.detach(), self.codebook)), codes)
        super().after_update(encoder_output, codes)

    def _move(self, tokens: Tensor, codes: Tensor) -> None:
        shares = all_reduce_sum(self.counts_of(codes)).to(self.frequencies.dtype) / global_count(tokens)
        self.frequencies.lerp_(shares, 1 - self.decay)
        weights = torch.exp(-10 * self.codebook_size / (1 - self.decay) * self.frequencies - 1e-3)
        if self.first_batch:
            weights = weights * (self.step == 0)
        if self.anchor == "closest":
            anchors = closest_tokens(tokens, self.codebook, self.distance)
        elif self.anchor == "random":
            anchors = random_tokens(
                tokens, torch.arange(self.codebook_size, device=tokens.device), self.update_noise(1)
            )
        else:
            anchors = sampled_tokens(tokens, self.codebook, self.distance, self.update_noise(1))
        self.codebook.lerp_(anchors.to(self.codebook.dtype), weights[:, None])
