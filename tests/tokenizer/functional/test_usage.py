import math

import pytest
import torch

from tokenizer.functional.usage import code_counts, perplexity, usage


def test_counts_equal_a_loop_over_the_codes():
    codes = torch.randint(11, (3, 4, 5))
    counts = code_counts(codes, 13)
    assert counts.dtype == torch.int64
    assert counts.tolist() == [(codes == code).sum().item() for code in range(13)]
    assert counts.sum() == codes.numel()


def test_counts_of_batches_add_up():
    codes = torch.randint(7, (6, 2, 2))
    assert torch.equal(code_counts(codes[:2], 7) + code_counts(codes[2:], 7), code_counts(codes, 7))


def test_no_codes_count_nothing():
    assert code_counts(torch.zeros(0, 2, 2, dtype=torch.int64), 3).tolist() == [0, 0, 0]


def test_usage_is_the_share_of_codes_hit():
    assert usage(torch.tensor([5, 0, 1, 0])) == 0.5
    assert usage(torch.tensor([0, 0, 0, 9])) == 0.25
    assert usage(torch.ones(6, dtype=torch.int64)) == 1
    assert usage(torch.zeros(6, dtype=torch.int64)) == 0


def test_perplexity_is_the_number_of_equally_frequent_codes():
    assert perplexity(torch.tensor([8, 8, 8, 8])).item() == pytest.approx(4, rel=1e-12)
    assert perplexity(torch.tensor([0, 7, 7, 0, 0])).item() == pytest.approx(2, rel=1e-12)
    assert perplexity(torch.tensor([0, 123, 0])) == 1
    entropy = -(0.75 * math.log(0.75) + 0.25 * math.log(0.25))
    assert perplexity(torch.tensor([30, 10])).item() == pytest.approx(math.exp(entropy), rel=1e-12)


def test_perplexity_counts_large_splits_exactly():
    # Float32 would lose the ones beside 2^25.
    counts = torch.tensor([2**25, 2**25 + 1])
    assert perplexity(counts).dtype == torch.float64
    assert perplexity(counts).item() == pytest.approx(2, rel=1e-14)
