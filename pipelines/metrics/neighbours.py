"""Nearest neighbours of features: distances, precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

Every comparison of two distances is decided as if both had been summed in float64 from the differences of the features.
A float32 matrix product with a bound on its rounding error decides nearly all comparisons; only cases within the bound
are computed again. No more than a tile of the distances exists at once.
"""

import math

import torch
from torch import Tensor

from tokenizer.functional.float64 import where_float64

TILE = 2048  # rows and columns of the distances held at once
_SPARE = 4  # candidates beyond the k nearest, so that rounding rarely makes a row ambiguous
_LARGEST = 1e140
_EXACT_VALUES = 2**22  # differences held at once when distances are computed exactly


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Compute precision, the share of samples within the manifold of the reference, and recall, the reverse, in [0, 1].

    A set's manifold is the union of balls around its members, each with the distance to its k-th nearest other member
    as radius; points on the boundary are within.

    Args:
        samples: features of the generated images, (N, D), floating point.
        reference: features of the real images, (M, D).
        k: number of neighbours.

    Raises:
        ValueError: features of another shape or that are not finite, or fewer than k + 1 in a set.
    """
    samples, reference = where_float64(samples), where_float64(reference)
    _check("samples", samples, k)
    _check("reference", reference, k)
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(f"features have {samples.shape[1]} and {reference.shape[1]} dimensions; take one extractor")
    with torch.autocast(samples.device.type, enabled=False):
        return _precision_recall(samples, reference, k)


def neighbour_distances(features: Tensor, k: int) -> Tensor:
    """Compute the squared distance of each feature to its k-th nearest other one: (N, D) -> float64 (N,).

    Raises:
        ValueError: features of another shape or that are not finite, or fewer than k + 1.
    """
    features = where_float64(features)
    _check("images'", features, k)
    with torch.autocast(features.device.type, enabled=False):
        return _neighbour_distances(features, k, _Screen(features))


def _precision_recall(samples: Tensor, reference: Tensor, k: int) -> tuple[float, float]:
    screen = _Screen(reference, samples)
    radii = [_neighbour_distances(features, k, screen) for features in (samples, reference)]
    covered = [torch.zeros(len(features), dtype=torch.bool, device=samples.device) for features in (samples, reference)]
    for rows, tile_rows in _tiles(samples):
        a, a_squares = screen(tile_rows)
        for columns, tile_columns in _tiles(reference):
            b, b_squares = screen(tile_columns)
            products = a @ b.T
            sets = (samples[rows], reference[columns])
            squares = (a_squares, b_squares)
            for side, members in enumerate((rows, columns)):
                oriented = products if side == 0 else products.T
                others = (columns, rows)[side]
                covered[side][members] |= _within(
                    oriented,
                    squares[side],
                    squares[1 - side],
                    sets[side],
                    sets[1 - side],
                    radii[1 - side][others],
                    screen,
                )
    precision, recall = (hits.double().mean().item() for hits in covered)
    return precision, recall


def _neighbour_distances(features: Tensor, k: int, screen: "_Screen") -> Tensor:
    number = len(features)
    kept = min(number - 1, k + _SPARE)
    nearest = torch.full((number, kept), torch.inf, dtype=screen.dtype, device=features.device)
    indices = torch.zeros((number, kept), dtype=torch.int64, device=features.device)
    for rows, tile_rows in _tiles(features):
        a, a_squares = screen(tile_rows)
        for columns, tile_columns in _tiles(features):
            if columns.start < rows.start:
                continue  # handled as the transpose of another tile
            b, b_squares = (a, a_squares) if columns == rows else screen(tile_columns)
            distances = torch.addmm(b_squares[None, :], a, b.T, alpha=-2).add_(a_squares[:, None])
            if columns == rows:
                distances.fill_diagonal_(torch.inf)
            else:
                _keep_smallest(nearest[columns], indices[columns], distances.T, rows.start)
            _keep_smallest(nearest[rows], indices[rows], distances, columns.start)

    result = torch.empty(number, dtype=torch.float64, device=features.device)
    step = max(1, _EXACT_VALUES // (kept * features.shape[1]))
    for start in range(0, number, step):
        rows = slice(start, min(start + step, number))
        exact = _squared_distances(features[rows, None], features[indices[rows]])
        result[rows] = exact.kthvalue(k, dim=1).values
    # The largest kept distance is a lower bound of all discarded ones, up to the rounding of the product.
    squares = screen.squares(features)
    lower = screen.unscaled(nearest[:, -1].double() - screen.error * (squares + squares.max()) - screen.underflow)
    for row in ((lower <= result) if kept < number - 1 else torch.zeros(0)).nonzero().flatten().tolist():
        exact = torch.cat([_squared_distances(features[row], part) for _, part in _tiles(features)])
        exact[row] = torch.inf
        result[row] = exact.kthvalue(k).values
    return result


class _Screen:
    """Prepare features for the float32 matrix products that screen the distances, and their squared lengths.

    Features are centred and scaled to a length of at most about 1.
    `error` times the sum of two squared lengths, plus `underflow`, bounds the error of the resulting squared distance.
    """

    def __init__(self, *sets: Tensor):
        self.mean = sum(part.double().sum(dim=0) for _, part in _tiles(sets[0])) / len(sets[0])
        self.dtype = torch.float32 if _float32_products_are_float32() else torch.float64
        parts = (part.double() - self.mean for features in sets for _, part in _tiles(features))
        largest = max(part.square().sum(dim=1).max().item() for part in parts)
        self.scale = 2.0 ** -round(math.log2(max(largest, 1e-300)) / 2)  # a power of two, so scaling is exact
        unit = torch.finfo(self.dtype).eps / 2
        # Bounds the rounding of both factors, of D products and sums, and of the squared lengths and their sums.
        self.error = 1.01 * (sets[0].shape[1] + 10) * unit
        self.underflow = 1e-30

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (features.double() - self.mean) * self.scale
        return scaled.to(self.dtype), scaled.square().sum(dim=1).to(self.dtype)

    def squares(self, features: Tensor) -> Tensor:
        """Compute squared lengths, float64 (N,)."""
        return torch.cat(
            [((part.double() - self.mean) * self.scale).square().sum(dim=1) for _, part in _tiles(features)]
        )

    def unscaled(self, squared: Tensor) -> Tensor:
        """Convert squared distances back to the scale of the features."""
        return squared / self.scale**2


def _within(
    products: Tensor,
    squares: Tensor,
    centre_squares: Tensor,
    points: Tensor,
    centres: Tensor,
    radii: Tensor,
    screen: _Screen,
) -> Tensor:
    """Decide which points lie in a ball around any of the centres, with these squared radii: bool (n,)."""
    scaled = radii * screen.scale**2
    # Upper bound of how far a point lies inside a ball: above 0 it may be inside, above twice the error bound it is.
    low = (scaled - (1 - screen.error) * centre_squares + screen.underflow).to(screen.dtype)
    inside = torch.add(low[None, :], products, alpha=2).sub_(((1 - screen.error) * squares)[:, None])
    slack = 2 * screen.error * (squares + centre_squares.max()) + 4 * screen.underflow
    slack = slack + 4 * torch.finfo(screen.dtype).eps * (squares + centre_squares.max() + scaled.max().to(screen.dtype))
    best = inside.max(dim=1)
    hits = best.values > slack
    doubtful = (~hits & (best.values >= -slack)).nonzero().flatten()
    while len(doubtful):
        rows = inside[doubtful]
        values, column = rows.max(dim=1)
        possible = (values >= -slack[doubtful]) & (values > -torch.inf)
        doubtful, column = doubtful[possible], column[possible]
        is_inside = _squared_distances(points[doubtful], centres[column]) <= radii[column]
        hits[doubtful[is_inside]] = True
        inside[doubtful, column] = -torch.inf
        doubtful = doubtful[~is_inside]
    return hits


def _keep_smallest(nearest: Tensor, indices: Tensor, distances: Tensor, first: int) -> None:
    """Merge the smallest of each row of `distances`, whose columns start at `first`, into the rows' candidates."""
    smallest = distances.topk(min(nearest.shape[1], distances.shape[1]), dim=1, largest=False)
    values = torch.cat([nearest, smallest.values], dim=1)
    columns = torch.cat([indices, smallest.indices + first], dim=1)
    kept = values.topk(nearest.shape[1], dim=1, largest=False)
    nearest.copy_(kept.values)
    indices.copy_(columns.gather(1, kept.indices))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """Compute squared distances over the last dimension from the differences, in float64."""
    return (a.double() - b.double()).square().sum(dim=-1)


def _tiles(features: Tensor) -> list[tuple[slice, Tensor]]:
    ends = [(start, min(start + TILE, len(features))) for start in range(0, len(features), TILE)]
    return [(slice(*limits), features[slice(*limits)]) for limits in ends]


def _float32_products_are_float32() -> bool:
    """Tell whether float32 products have full precision; a lower precision set by the user would break the bound."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # set per backend, so there is no common value
        return False


def _check(role: str, features: Tensor, k: int) -> None:
    if features.ndim != 2 or not features.is_floating_point() or features.shape[1] == 0:
        raise ValueError(f"{role} features are {features.dtype} {tuple(features.shape)}, not floating point (N, D)")
    if k < 1 or len(features) <= k:
        raise ValueError(f"{len(features)} {role} are too few for {k} neighbours; pass at least {max(k, 1) + 1}")
    # The squares of larger values would overflow.
    if not all((part.abs() < _LARGEST).all() for _, part in _tiles(features)):
        raise ValueError(
            f"{role} features hold NaN or infinity, or values above {_LARGEST:.0e}; check the images "
            "and the extractor's weights"
        )
