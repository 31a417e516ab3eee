"""The benchmark's peers: quantizers of other libraries, and the plain form of our own."""

import math
from collections.abc import Callable

import torch
from diffusers.models.autoencoders.vq_model import VectorQuantizer
from einops import rearrange
from torch import Tensor, nn
from torch.nn.functional import mse_loss, normalize, one_hot

from tokenizer import VQTokenizer


class PlainArcQuantizer(nn.Module):
    """ArcVQ's quantizer as its equations are written: full matrices of similarities and angles, one-hot codes."""

    def __init__(self, codebook_size: int, codebook_dim: int, scale: float = 10.0, margin: float = 0.1, top_k: int = 3):
        super().__init__()
        self.codebook = nn.Embedding(codebook_size, codebook_dim)
        self.codebook.weight.data = normalize(torch.randn(codebook_size, codebook_dim), dim=1)
        self.scale, self.margin, self.top_k = scale, margin, top_k

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, h, w) -> quantized latents with straight-through gradient, loss."""
        tokens = rearrange(latents, "b d h w -> b h w d").contiguous()
        flat = tokens.view(-1, tokens.shape[-1])  # (N, D)
        table = self.codebook.weight
        codes = (normalize(flat, dim=1) @ normalize(table, dim=1).T).argmax(dim=1)
        rows = (one_hot(codes, len(table)).to(table.dtype) @ table).view(tokens.shape)
        loss = mse_loss(rows, tokens.detach()) + 0.25 * mse_loss(rows.detach(), tokens) + self.arc_loss(flat)
        quantized = tokens + (rows - tokens).detach()
        return rearrange(quantized, "b h w d -> b d h w").contiguous(), loss

    def arc_loss(self, flat: Tensor) -> Tensor:
        """Equations 10-12 and 17-18 over tokens (N, D)."""
        cosines = normalize(self.codebook.weight.detach(), dim=1) @ normalize(flat, dim=1).T  # (K, N)
        nearest = cosines.topk(min(self.top_k, len(flat)), dim=1).indices
        positive = torch.zeros_like(cosines).scatter(1, nearest, 1.0)
        angles = torch.acos(cosines.clamp(-1 + 1e-7, 1 - 1e-7))
        logits = self.scale * torch.cos(angles + self.margin * positive)
        likelihoods = torch.exp(logits)
        return -torch.log((likelihoods * positive).sum(dim=1) / likelihoods.sum(dim=1)).mean()


class NoQuantizer(nn.Module):
    """Return the latents unchanged, with a loss of 0."""

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, h, w) -> themselves, 0."""
        return latents, latents.new_zeros(())


class TokenizerAround(nn.Module):
    """A tokenizer's encoder and decoder with another quantizer in between."""

    def __init__(self, tokenizer: VQTokenizer, quantizer: nn.Module):
        super().__init__()
        self.encoder, self.quantizer, self.decoder = tokenizer.encoder, quantizer, tokenizer.decoder

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """Images (B, C, H, W) -> reconstruction, the quantizer's loss."""
        quantized, loss = self.quantizer(self.encoder(images))
        return self.decoder(quantized), loss


class DiffusersQuantizer(VectorQuantizer):
    """diffusers' VectorQuantizer (l2)."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__(codebook_size, codebook_dim, beta=0.25, legacy=False)

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, h, w) -> quantized latents, loss."""
        return super().forward(latents)[:2]


class LucidrainsQuantizer(nn.Module):
    """vector-quantize-pytorch's VectorQuantize (cosine, its moving averages included)."""

    def __init__(self, codebook_size: int, codebook_dim: int):
        super().__init__()
        from vector_quantize_pytorch import VectorQuantize  # an optional install

        self.quantizer = VectorQuantize(
            dim=codebook_dim, codebook_size=codebook_size, use_cosine_sim=True, accept_image_fmap=True
        )

    def forward(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Latents (B, D, h, w) -> quantized latents, loss."""
        quantized, _, loss = self.quantizer(latents)
        return quantized, loss.sum()


def bare_products(latents: Tensor, codebook_size: int) -> Callable[[], None]:
    """Set up the three matrix products that any arc loss needs, into preallocated memory.

    One computes the similarities, two their gradients with respect to tokens and codebook.
    """
    tokens = rearrange(latents.detach(), "b d h w -> (b h w) d").contiguous()
    table = torch.randn(codebook_size, tokens.shape[1], device=tokens.device) / math.sqrt(tokens.shape[1])
    similarity = tokens.new_empty(len(tokens), codebook_size)
    to_tokens, to_table = torch.empty_like(tokens), torch.empty_like(table)

    def multiply() -> None:
        torch.mm(tokens, table.T, out=similarity)
        torch.mm(similarity, table, out=to_tokens)
        torch.mm(similarity.T, tokens, out=to_table)

    return multiply
