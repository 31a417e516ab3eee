"""Codebook look-up with straight-through gradient, codebook loss and commitment loss.

tokens (N, D), codebook (K, D), codes (N,) -> rows (N, D), codebook loss, commitment loss
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.nearest import blocks
from tokenizer.functional.vectors import refuse_second_derivative

# Tokens per block, so that their differences from the rows stay in the processor's cache.
_PART = 4096


def straight_through(rows: Tensor, latents: Tensor) -> Tensor:
    """Return `rows` exactly, with the gradient passed to `latents` unchanged and none to `rows`; equal shapes."""
    return rows.detach() + (latents - latents.detach())


class CodebookLookup(torch.autograd.Function):
    """Rows (N, D) of the codes, codebook loss and commitment loss; both losses equal the mean squared distance.

    The gradient of the rows goes straight through to the tokens, the gradient of the codebook loss to the codebook
    alone, and the gradient of the commitment loss to the tokens alone. The N x D differences are never held as a whole.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = embedding(codes, codebook)
        squares = [
            (part - row).square_().sum() for part, row in zip(tokens.split(_PART), rows.split(_PART), strict=True)
        ]
        error = torch.stack(squares).sum() / tokens.numel()
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(tokens, rows, codes)
        ctx.codebook_size = len(codebook)
        return rows, error, error.clone()

    @staticmethod
    def backward(
        ctx: Any, from_rows: Tensor | None, from_codebook: Tensor | None, from_commitment: Tensor | None
    ) -> tuple[Tensor | None, Tensor | None, None]:
        if from_codebook is None and from_commitment is None:
            return from_rows, None, None
        refuse_second_derivative("the codebook or commitment loss")
        tokens, rows, codes = ctx.saved_tensors
        to_tokens = from_rows if from_commitment is None else tokens.new_empty(tokens.shape)
        to_codebook = None if from_codebook is None else rows.new_zeros(ctx.codebook_size, rows.shape[1])
        for part in blocks(len(tokens), _PART):
            difference = tokens[part] - rows[part]
            if from_codebook is not None:
                to_codebook -= torch.ops.aten.embedding_dense_backward(
                    difference, codes[part], ctx.codebook_size, -1, False
                )
            if from_commitment is not None:
                difference *= from_commitment * (2 / tokens.numel())
                to_tokens[part] = difference if from_rows is None else difference.add_(from_rows[part])
        if from_codebook is not None:
            to_codebook *= from_codebook * (2 / tokens.numel())
        return to_tokens, to_codebook, None
