"""When a codebook is said to collapse."""

import pytest

from arcvq.training.collapse import CollapseConfig


def test_a_warning_after_so_many_in_a_row_and_again_after_as_many_more():
    config, counts = CollapseConfig(usage_below=0.1, evaluations=2), {}
    usages = [0.05, 0.5, 0.09, 0.02, 0.1, 0.01, 0.01, 0.01, 0.01, 0.01]
    said = [config.warning(counts, usage, 3.25, 512) for usage in usages]
    assert [index for index, text in enumerate(said) if text] == [3, 6, 8]
    assert "use 2.0% of 512 codes, with a perplexity of 3.2, and less than 10.0% in each of the last 2" in said[3]
    assert "last 4 evaluations" in said[8]


def test_it_goes_on_counting_where_it_was():
    counts = {}
    CollapseConfig(evaluations=2).warning(counts, 0.0, 1.0, 8)
    assert CollapseConfig(evaluations=2).warning(dict(counts), 0.0, 1.0, 8)


@pytest.mark.parametrize("options", [{"usage_below": -0.1}, {"usage_below": float("nan")}, {"evaluations": 0}])
def test_numbers_that_cannot_work(options):
    with pytest.raises(ValueError, match=f"collapse.{next(iter(options))}"):
        CollapseConfig(**options).check()
