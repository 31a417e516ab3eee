"""Sums of rows by place, in a fixed order: rows (n, D), places (n,) -> sums (length, D)."""

import torch
from torch import Tensor


def sum_rows(rows: Tensor, places: Tensor, length: int) -> Tensor:
    """Sum the `rows` (n, D) of each of the `places` (n,) int64 in [0, length): (length, D), 0 where there are none.

    Unlike index_add_, which adds in any order on a GPU, the backward pass of an embedding has a fixed order. Where it
    is compiled, inductor makes atomic additions of it, and only torch.use_deterministic_algorithms fixes the order.
    """
    return torch.ops.aten.embedding_dense_backward(rows, places, length, -1, False)
