"""Operations on rows of vectors that the quantizers share: unit vectors, lengths, inner products."""

import torch
from torch import Tensor
from torch.nn.functional import conv2d, linear

_HAS_ONEDNN = torch.backends.mkldnn.is_available()  # evaluated at import, outside any torch.compile trace


def unit_vectors(vectors: Tensor) -> Tensor:
    """Scale each row of `vectors` (..., D) to length 1, without under- or overflow; a zero row stays zero."""
    return directions_and_lengths(vectors)[0]


def directions_and_lengths(vectors: Tensor) -> tuple[Tensor, Tensor]:
    """Split `vectors` (..., D) into unit vectors (..., D) and the lengths (..., 1) they were divided by.

    The length of a zero row is given as 1, so that dividing by it is safe. A length beyond the dtype's range is inf.
    """
    largest = vectors.detach().abs().amax(dim=-1, keepdim=True)  # vector_norm(ord=inf) takes ten times as long
    largest = largest + (largest == 0)
    scaled = vectors / largest
    # A zero row has length 0 here; 1 instead keeps it, and its gradient, finite.
    length = torch.linalg.vector_norm(scaled, dim=-1, keepdim=True)
    length = length + (length == 0)
    return scaled / length, length * largest


def at_least_float32(vectors: Tensor, like: Tensor) -> Tensor:
    """Cast `vectors` to float32, or to float64 where `like` is float64."""
    return vectors.to(torch.promote_types(like.dtype, torch.float32))


def inner_products(rows: Tensor, columns: Tensor, bias: Tensor | None = None) -> Tensor:
    """Compute rows @ columns.T + bias: (n, D), (k, D), (k,) -> (n, k), contiguous.

    In float32 on a CPU the product runs as a 1 x 1 convolution, because PyTorch's convolutions use the widest vector
    instructions of every processor and its matrix product does not: 2.5 times as fast on an AMD with AVX-512. On a GPU
    the precision is the one set by torch.set_float32_matmul_precision, by default full float32.
    """
    as_convolution = rows.device.type == "cpu" and rows.dtype == torch.float32 and _HAS_ONEDNN
    if not as_convolution or 0 in (*rows.shape, *columns.shape):
        return linear(rows, columns, bias)
    pixels = rows.contiguous().view(1, len(rows), 1, -1).permute(0, 3, 1, 2)  # (1, D, n, 1), channels-last
    return conv2d(pixels, columns[:, :, None, None], bias).permute(0, 2, 3, 1).reshape(len(rows), len(columns))


def refuse_second_derivative(name: str) -> None:
    """Raise RuntimeError if the current backward pass is itself recorded; call it first in a hand-written backward.

    torch's own once_differentiable lets a gradient without a history through, as if it were a constant.
    """
    # While a graph is compiled gradients may be enabled for its tracing; compiled graphs refuse by themselves.
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        raise RuntimeError(f"{name} has no second derivative: differentiate it without create_graph=True")
