"""Codebook look-up with straight-through gradient, codebook loss and commitment loss.

tokens (N, D), codebook (K, D), codes (N,) -> rows (N, D), codebook loss, commitment loss
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import embedding

from tokenizer.functional.row_sums import sum_rows
from tokenizer.functional.tiles import blocks, tiles_of
from tokenizer.functional.vectors import refuse_second_derivative


def straight_through(rows: Tensor, latents: Tensor) -> Tensor:
    """Return `rows` exactly, with the gradient passed to `latents` unchanged and none to `rows`; equal shapes."""
    return rows.detach() + (latents - latents.detach())


class CodebookLookup(torch.autograd.Function):
    """Rows (N, D) of the codes, codebook loss and commitment loss; both losses equal the mean squared distance.

    The gradient of the rows goes straight through to the tokens, the gradient of the codebook loss to the codebook
    alone, and the gradient of the commitment loss to the tokens alone. A CPU never holds all N x D differences.
    """

    @staticmethod
    def forward(ctx: Any, tokens: Tensor, codebook: Tensor, codes: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        rows = embedding(codes, codebook)
        size = tiles_of(tokens.device).look_up
        pairs = zip(tokens.split(size), rows.split(size), strict=True)
        squares = [(part - row).square_().sum() for part, row in pairs]
        error = (squares[0] if len(squares) == 1 else torch.stack(squares).sum()) / tokens.numel()
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
        to_codebook = None
        for part in blocks(len(tokens), tiles_of(tokens.device).look_up):
            difference = rows[part] - tokens[part]
            if from_codebook is not None:
                added = sum_rows(difference, codes[part], ctx.codebook_size)
                to_codebook = added if to_codebook is None else to_codebook.add_(added)
            if from_commitment is not None:
                torch.mul(difference, from_commitment * (-2 / tokens.numel()), out=to_tokens[part])
                if from_rows is not None:
                    to_tokens[part] += from_rows[part]
        if from_codebook is not None:
            to_codebook = to_codebook.mul_(from_codebook * (2 / tokens.numel())).to(rows.dtype)
        return to_tokens, to_codebook, None
