"""Reduce a trained tokenizer's codebook with k-means (VQGAN-LC, arXiv 2406.11837, table 10)."""

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

from tokenizer.model import VQTokenizer
from tokenizer.quantizers.projected import ProjectedQuantizer

_TABLES = ("bottleneck.codebook", "bottleneck.table")


def reduced_codebook(tokenizer: VQTokenizer, codebook_size: int, seed: int = 0) -> VQTokenizer:
    """Build a tokenizer with K' = `codebook_size` codes: the centroids of a k-means of the effective codebook.

    The networks stay the same. If the codebook is a frozen table behind a linear layer, a new row of the table is the
    mean of its members' rows, whose projection is the centroid. For cosine quantizers k-means still clusters the rows
    that the decoder gets, not their directions. Further state per code (counts and sums of a moving average) is summed
    over the members. The result depends on the set of rows and the seed, not on the order of the rows. If the codebook
    has fewer distinct rows than K', they are repeated.

    Args:
        tokenizer: trained tokenizer; not modified.
        codebook_size: K', below the tokenizer's K.
        seed: seed of the k-means.

    Raises:
        ValueError: a K' that is not between 1 and K - 1, or a quantizer without one table of K rows.
    """
    size = tokenizer.config.codebook_size
    if not 0 < codebook_size < size:
        raise ValueError(f"codebook_size {codebook_size} is no reduction of {size} codes; take 1 to {size - 1}")
    state = tokenizer.state_dict()
    name = next((name for name in _TABLES if name in state and len(state[name]) == size), None)
    if name is None or tokenizer.bottleneck.depth != 1:
        raise ValueError(
            f"quantizer {tokenizer.config.quantizer!r} has no table of one row for each of its codes, which alone can "
            "be reduced; take a tokenizer of vq, arc, fc, lc and the like"
        )
    # Not from_config, which replaces arguments that were passed by position by their defaults.
    arguments = {key: value for key, value in tokenizer.config.items() if not key.startswith("_")}
    smaller = VQTokenizer(**arguments | {"codebook_size": codebook_size})
    codebook = tokenizer.codebook.detach()
    groups = torch.from_numpy(_groups(codebook.double().cpu().numpy(), codebook_size, seed)).to(codebook.device)
    rows = state[name] if isinstance(tokenizer.bottleneck, ProjectedQuantizer) else codebook
    expected = {key: tensor.shape for key, tensor in smaller.state_dict().items()}
    of_codes = {key: _summed(state[key], groups) for key in state if expected[key] != state[key].shape}
    members = _summed(torch.ones(size, 1, device=codebook.device), groups)
    of_codes[name] = _summed(rows, groups) / members
    again = torch.arange(codebook_size, device=codebook.device) % len(members)
    of_codes = {key: values[again].to(state[key].dtype) for key, values in of_codes.items()}
    smaller.load_state_dict(state | of_codes)
    return smaller.train(tokenizer.training)


def _groups(points: np.ndarray, number: int, seed: int) -> np.ndarray:
    """Assign points (K, D) to groups (K,), numbered from 0, none empty: by k-means, or one group per distinct point."""
    distinct, place, weights = np.unique(points, axis=0, return_inverse=True, return_counts=True)
    if len(distinct) <= number:
        return place
    labels = KMeans(number, n_init=1, random_state=seed).fit(distinct, sample_weight=weights).labels_
    return np.unique(labels, return_inverse=True)[1][place]


def _summed(rows: Tensor, groups: Tensor) -> Tensor:
    """Sum rows (K, ...) by group, in float64."""
    total = rows.new_zeros(int(groups.max()) + 1, *rows.shape[1:], dtype=torch.float64)
    return total.index_add_(0, groups, rows.double())
