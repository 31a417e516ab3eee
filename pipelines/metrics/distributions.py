"""Compare two sets of images by their features and logits: Frechet distance, Inception score, precision and recall.

Precision and recall, which are based on neighbours, are in neighbours.py. All sums are float64.
"""

from dataclasses import dataclass, field

import numpy as np
import torch
from torch import Tensor

from pipelines.metrics.neighbours import precision_recall
from tokenizer.functional.float64 import as_float64

NEIGHBOURS = 3  # k of precision and recall
INCEPTION_SCORE_SPLITS = 10
INCEPTION_SCORE_SEED = 2020  # torch-fidelity's


@dataclass
class FeatureMoments:
    """Mean and covariance of features, accumulated batch by batch; independent of order and batch size up to rounding.

    `count` is the number of features, `mean` float64 (D,), `scatter` float64 (D, D) the sum of outer products of the
    deviations from the mean.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    scatter: Tensor = field(default_factory=lambda: torch.zeros(0, 0, dtype=torch.float64))

    def update(self, features: Tensor) -> None:
        """Add features (B, D), floating point.

        Raises:
            ValueError: features of another shape or that are not finite.
        """
        if features.ndim != 2 or not features.is_floating_point():
            raise ValueError(f"features are {features.dtype} {tuple(features.shape)}, not floating point (B, D)")
        if not torch.isfinite(features).all():
            raise ValueError("features hold NaN or infinity; check the images and the extractor's weights")
        if self.count and features.shape[1] != len(self.mean):
            raise ValueError(f"features have {features.shape[1]} dimensions after {len(self.mean)}; use one extractor")
        if len(features) == 0:
            return
        features = as_float64(features)
        mean = features.mean(dim=0)
        deviations = features - mean
        self.merge(FeatureMoments(len(features), mean, deviations.T @ deviations))

    def merge(self, other: "FeatureMoments") -> None:
        """Add the features of another accumulator (Chan et al. 1983, the pairwise update)."""
        if self.count == 0 or other.count == 0:
            if other.count:
                self.count, self.mean, self.scatter = other.count, other.mean.clone(), other.scatter.clone()
            return
        count = self.count + other.count
        difference = other.mean - self.mean
        self.scatter += other.scatter + torch.outer(difference, difference) * (self.count * other.count / count)
        self.mean = self.mean + difference * (other.count / count)
        self.count = count

    @property
    def covariance(self) -> Tensor:
        """Covariance normalised by count - 1, float64 (D, D). Raises ValueError for fewer than 2 features."""
        if self.count < 2:
            raise ValueError(f"a covariance needs 2 images or more, got {self.count}")
        return self.scatter / (self.count - 1)


def frechet_distance(mean_a: Tensor, covariance_a: Tensor, mean_b: Tensor, covariance_b: Tensor) -> float:
    """Compute |mean_a - mean_b|^2 + tr(C_a + C_b - 2 (C_a C_b)^(1/2)) of two Gaussians (Heusel et al. 2017).

    arXiv 1706.08500. The trace of the root is the sum of the singular values of C_a^(1/2) C_b^(1/2). The roots of the
    eigenvalues of C_a C_b are the same numbers, but an eigenvalue that is 0 up to rounding would have a root of 1e-8.

    Args:
        mean_a: (D,), real.
        covariance_a: (D, D), symmetric and positive semi-definite up to the rounding of float32.
        mean_b: as mean_a.
        covariance_b: as covariance_a.

    Raises:
        ValueError: shapes that do not fit, complex or non-finite values, or a matrix that is no covariance.
    """
    values = [_as_float64(value) for value in (mean_a, covariance_a, mean_b, covariance_b)]
    dims = len(values[0]) if values[0].ndim == 1 else 0
    if [tuple(value.shape) for value in values] != [(dims,), (dims, dims)] * 2 or dims == 0:
        shapes = ", ".join(str(tuple(value.shape)) for value in values)
        raise ValueError(f"means and covariances have the shapes {shapes}; they are of different extractors")
    if not all(torch.isfinite(value).all() for value in values):
        raise ValueError("a mean or covariance holds NaN or infinity; check the images and the extractor's weights")
    mean_a, covariance_a, mean_b, covariance_b = values
    roots = [_root(covariance, name) for covariance, name in ((covariance_a, "first"), (covariance_b, "second"))]
    root = torch.linalg.svdvals(roots[0] @ roots[1]).sum()
    distance = (mean_a - mean_b).square().sum() + covariance_a.trace() + covariance_b.trace() - 2 * root
    if not torch.isfinite(distance):
        raise ValueError("the means and covariances are beyond float64's range; check the extractor's features")
    return max(0.0, distance.item())


def covariance_problem(matrix: Tensor, eigenvalues: Tensor | None = None) -> str | None:
    """Describe why a finite float64 (D, D) is no covariance; None if it is one up to the rounding of float32.

    `eigenvalues` are those of its lower triangle, if known.
    """
    # Stored in float32, each number has a relative error of up to eps / 2, so an eigenvalue has an error of up to
    # sqrt(D) eps / 2 of the largest (Weyl's bound by the errors' Frobenius norm). If the sums were float32 too,
    # the error is several times larger: 16 times is allowed, 4e-5 of the largest for Inception's 2048 features.
    tolerance = 8 * len(matrix) ** 0.5 * torch.finfo(torch.float32).eps
    asymmetry = (matrix - matrix.T).abs()
    if asymmetry.max() > tolerance * matrix.abs().max():
        row, column = divmod(int(asymmetry.argmax()), len(matrix))
        pair = f"{matrix[row, column]:.4g} and {matrix[column, row]:.4g}"
        return f"is not symmetric: ({row}, {column}) and ({column}, {row}) are {pair}"
    values = torch.linalg.eigvalsh(matrix) if eigenvalues is None else eigenvalues
    if values.min() < -tolerance * values.abs().max():
        return f"is not positive semi-definite: its eigenvalues go from {values.min():.4g} to {values.max():.4g}"
    return None


def inception_score(
    logits: Tensor, splits: int = INCEPTION_SCORE_SPLITS, seed: int | None = INCEPTION_SCORE_SEED
) -> tuple[float, float]:
    """Compute exp of the mean KL of p(y|x) from p(y): mean and standard deviation over splits (arXiv 1606.03498).

    Samples usually come sorted by class, and a split of one class has score 1, so they are shuffled first, as in
    torch-fidelity.

    Args:
        logits: (N, classes), floating point, N at least `splits`.
        splits: number of parts, equal in size up to one sample.
        seed: seed of the shuffle; None: no shuffle.

    Raises:
        ValueError: logits of another shape or that are not finite, or fewer than `splits`.
    """
    if logits.ndim != 2 or not logits.is_floating_point() or not torch.isfinite(logits).all():
        raise ValueError(f"logits are {logits.dtype} {tuple(logits.shape)}, not finite floating point (N, classes)")
    number = len(logits)
    if number < splits or splits < 1:
        raise ValueError(f"{number} images are too few for {splits} splits of the Inception score; pass more")
    if seed is not None:
        order = np.random.RandomState(seed).permutation(number)  # the legacy generator, as in torch-fidelity
        logits = logits[torch.from_numpy(order).to(logits.device)]
    scores = []
    for index in range(splits):
        part = as_float64(logits[index * number // splits : (index + 1) * number // splits]).log_softmax(dim=1)
        marginal = part.logsumexp(dim=0) - np.log(len(part))  # log of the mean, finite even if all p(y|x) underflow
        divergence = (part.exp() * (part - marginal)).sum(dim=1).mean()
        scores.append(divergence.exp().item())
    return float(np.mean(scores)), float(np.std(scores))


def distribution_metrics(
    features: Tensor, logits: Tensor | None, reference: Tensor | None, moments: FeatureMoments | None = None
) -> dict[str, float]:
    """Compute frechet_distance, precision and recall (k = 3), and with logits inception_score (10 splits).

    Args:
        features: features of the samples, (N, D), in the order that the Inception score shuffles.
        logits: logits of the samples, (N, classes).
        reference: features of the reference, (M, D); None: no precision and recall.
        moments: moments of the reference, if not those of `reference` (from a file of statistics).

    Raises:
        ValueError: too few images or features that are not finite.
    """
    if moments is None:
        if reference is None:
            raise ValueError("there is nothing to compare with; pass the reference's features, or its moments")
        moments = moments_of(reference)
    own = moments_of(features)
    result = {"frechet_distance": frechet_distance(own.mean, own.covariance, moments.mean, moments.covariance)}
    if reference is not None:
        result["precision"], result["recall"] = precision_recall(features, reference, NEIGHBOURS)
    if logits is not None:
        result["inception_score"], result["inception_score_std"] = inception_score(logits)
    return result


def moments_of(features: Tensor) -> FeatureMoments:
    """Compute the moments of features in one call."""
    moments = FeatureMoments()
    for part in features.split(4096):
        moments.update(part)
    return moments


def _as_float64(values: Tensor) -> Tensor:
    if values.is_complex() if isinstance(values, Tensor) else np.iscomplexobj(values):
        raise ValueError("a mean or covariance is complex; both are of real numbers")
    return as_float64(values) if isinstance(values, Tensor) else torch.as_tensor(values, dtype=torch.float64)


def _root(covariance: Tensor, name: str) -> Tensor:
    """Compute the symmetric square root; eigenvalues that are 0 up to rounding are set to 0.

    Raises:
        ValueError: the matrix is no covariance; the message calls it `name`.
    """
    values, vectors = torch.linalg.eigh(covariance)
    if problem := covariance_problem(covariance, values):
        raise ValueError(f"the {name} covariance {problem}; compute it as a covariance of features")
    rounding = len(values) * torch.finfo(torch.float64).eps * values.abs().max()
    return vectors * torch.where(values > rounding, values, 0.0).sqrt() @ vectors.T
