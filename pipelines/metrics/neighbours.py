"""Features -> nearest neighbours' distances, precision and recall (Kynkäänniemi et al. 2019, arXiv 1904.06991).

Every comparison of two distances is decided as if both had been summed in float64 from the differences of the features.
Nearly all are decided by a float32 matrix product and a bound on its rounding error; only what lies within the bound is
computed again. Nothing larger than a tile of the distances exists at once.
"""

import math

import torch
from torch import Tensor

TILE = 2048  # rows and columns of the distances held at once
_SPARE = 4  # candidates kept beyond the k nearest, so that rounding seldom makes a row ambiguous
_LARGEST = 1e140
_EXACT_VALUES = 2**22  # differences held at once where distances are computed from them


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3) -> tuple[float, float]:
    """Precision: the share of samples within the manifold of the reference; recall: the reverse; both in [0, 1].

    A set's manifold is the union of balls around its members, each as large as the distance to the k-th nearest other
    member; a point on the boundary is within.

    Args:
        samples: features of the generated images, (N, D), floating point.
        reference: features of the real images, (M, D).
        k: neighbours.

    Raises:
        ValueError: features of another shape or that are not finite, or fewer than k + 1 in a set.
    """
    _check("samples", samples, k)
    _check("reference", reference, k)
    if samples.shape[1] != reference.shape[1]:
        raise ValueError(f"features have {samples.shape[1]} and {reference.shape[1]} dimensions; take one extractor")
    with torch.autocast(samples.device.type, enabled=False):
        return _precision_recall(samples, reference, k)


def neighbour_distances(features: Tensor, k: int) -> Tensor:
    """Squared distance of each feature to its k-th nearest other one: (N, D) => float64 (N,).

    Raises:
        ValueError: features of another shape or that are not finite, or fewer than k + 1.
    """
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
            for side, these in enumerate((rows, columns)):
                oriented = products if side == 0 else products.T
                others = (columns, rows)[side]
                covered[side][these] |= _within(
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
                continue  # seen as the transpose of another tile
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
    # The largest distance kept is a lower bound of all that were not, up to the rounding of the product.
    squares = screen.squares(features)
    lower = screen.unscaled(nearest[:, -1].double() - screen.error * (squares + squares.max()) - screen.underflow)
    for row in ((lower <= result) if kept < number - 1 else torch.zeros(0)).nonzero().flatten().tolist():
        exact = torch.cat([_squared_distances(features[row], part) for _, part in _tiles(features)])
        exact[row] = torch.inf
        result[row] = exact.kthvalue(k).values
    return result


class _Screen:
    """Features -> what the products are taken of: centred, at most of length about 1, float32; and squared lengths.

    `error` times the sum of two squared lengths, plus `underflow`, bounds the error of a squared distance from them.
    """

    def __init__(self, *sets: Tensor):
        self.mean = sum(part.double().sum(dim=0) for _, part in _tiles(sets[0])) / len(sets[0])
        self.dtype = torch.float32 if _float32_products_are_float32() else torch.float64
        parts = (part.double() - self.mean for features in sets for _, part in _tiles(features))
        largest = max(part.square().sum(dim=1).max().item() for part in parts)
        self.scale = 2.0 ** -round(math.log2(max(largest, 1e-300)) / 2)  # a power of two: it rounds nothing
        unit = torch.finfo(self.dtype).eps / 2
        # Rounding of both factors, of each of the D products and sums, of the squared lengths and their sums.
        self.error = 1.01 * (sets[0].shape[1] + 10) * unit
        self.underflow = 1e-30

    def __call__(self, features: Tensor) -> tuple[Tensor, Tensor]:
        scaled = (features.double() - self.mean) * self.scale
        return scaled.to(self.dtype), scaled.square().sum(dim=1).to(self.dtype)

    def squares(self, features: Tensor) -> Tensor:
        """Squared lengths, float64 (N,)."""
        return torch.cat(
            [((part.double() - self.mean) * self.scale).square().sum(dim=1) for _, part in _tiles(features)]
        )

    def unscaled(self, squared: Tensor) -> Tensor:
        """Squared distances as the features have them."""
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
    """Which points lie in a ball around any of the centres, of these squared radii: bool (n,)."""
    scaled = radii * screen.scale**2
    # How far a point lies inside a ball at most: above 0 it may be inside, above twice the bound it is.
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
        found = _squared_distances(points[doubtful], centres[column]) <= radii[column]
        hits[doubtful[found]] = True
        inside[doubtful, column] = -torch.inf
        doubtful = doubtful[~found]
    return hits


def _keep_smallest(nearest: Tensor, indices: Tensor, distances: Tensor, first: int) -> None:
    """Merges the smallest of each row of `distances`, columns `first` and on, into the rows' running candidates."""
    found = distances.topk(min(nearest.shape[1], distances.shape[1]), dim=1, largest=False)
    values = torch.cat([nearest, found.values], dim=1)
    places = torch.cat([indices, found.indices + first], dim=1)
    kept = values.topk(nearest.shape[1], dim=1, largest=False)
    nearest.copy_(kept.values)
    indices.copy_(places.gather(1, kept.indices))


def _squared_distances(a: Tensor, b: Tensor) -> Tensor:
    """From the differences, in float64, over the last dimension."""
    return (a.double() - b.double()).square().sum(dim=-1)


def _tiles(features: Tensor) -> list[tuple[slice, Tensor]]:
    ends = [(start, min(start + TILE, len(features))) for start in range(0, len(features), TILE)]
    return [(slice(*ends_of), features[slice(*ends_of)]) for ends_of in ends]


def _float32_products_are_float32() -> bool:
    """Not where the user has set a lower precision for all float32 products, which would break the bound."""
    try:
        return torch.get_float32_matmul_precision() == "highest"
    except RuntimeError:  # it was set for one backend alone
        return False


def _check(role: str, features: Tensor, k: int) -> None:
    if features.ndim != 2 or not features.is_floating_point() or features.shape[1] == 0:
        raise ValueError(f"{role} features are {features.dtype} {tuple(features.shape)}, not floating point (N, D)")
    if k < 1 or len(features) <= k:
        raise ValueError(f"{len(features)} {role} are too few for {k} neighbours; pass at least {max(k, 1) + 1}")
    # Their squares would be infinite.
    if not all((part.abs() < _LARGEST).all() for _, part in _tiles(features)):
        raise ValueError(
            f"{role} features hold NaN or infinity, or values above {_LARGEST:.0e}; check the images "
            "and the extractor's weights"
        )
