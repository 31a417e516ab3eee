"""From a latent to the row of the table that stands for it: value, gradient, and the losses that draw them together.

tokens (N, D), codebook (K, D), codes (N,) -> rows (N, D), codebook loss, commitment loss
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.nearest import blocks
from tokenizer.functional.vectors import refuse_second_derivative

# Tokens at a time, so that their differences from the rows stay in a processor's cache.
_PART = 4096


def straight_through(rows: Tensor, latents: Tensor) -> Tensor:
    """Value: the table's rows, exactly. Gradient: the identity to the latents, none to the rows. One shape."""
    return rows.detach() + (latents - latents.detach())


class CodebookLookup(torch.autograd.Function):
    """The rows (N, D) of the codes, and two scalars of one value, the mean squared distance of tokens and rows.

    The gradient of the rows goes to the tokens, straight through; that of the first scalar, the codebook loss, to the
    codebook alone; that of the second, the commitment loss, to the tokens alone. No difference of N x D is ever held.
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
