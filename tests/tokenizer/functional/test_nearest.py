from dataclasses import replace

import pytest
import torch
from torch.nn.functional import cosine_similarity

from tokenizer.functional import nearest, tiles
from tokenizer.functional.nearest import closest, most_similar


def tiles_of(entries, monkeypatch):
    """The tiles of a CPU have `entries` entries."""
    monkeypatch.setitem(tiles.TILES, "cpu", replace(tiles.TILES["cpu"], entries=entries))


def test_closest_is_the_smallest_distance_of_all():
    tokens, codebook = torch.randn(500, 5) + 3, torch.randn(40, 5) * torch.rand(40, 1) * 4 + 3
    assert torch.equal(closest(tokens, codebook), torch.cdist(tokens.double(), codebook.double()).argmin(dim=1))


def test_most_similar_is_the_largest_cosine_of_all():
    tokens, codebook = torch.randn(500, 5), torch.randn(40, 5) * torch.rand(40, 1) * 100
    cosines = cosine_similarity(tokens.double()[:, None], codebook.double()[None], dim=2)
    assert torch.equal(most_similar(tokens, codebook), cosines.argmax(dim=1))


@pytest.mark.parametrize("search", [closest, most_similar])
@pytest.mark.parametrize("entries", [1, 5, 17, 17 * 2, 17 * 10 + 5, 17 * 103])
def test_the_block_size_does_not_change_the_codes(search, entries, monkeypatch):
    tokens, codebook = torch.randn(103, 6), torch.randn(17, 6)
    expected = search(tokens, codebook)
    tiles_of(entries, monkeypatch)
    assert torch.equal(search(tokens, codebook), expected)


def test_a_tile_of_scores_holds_no_more_entries_than_allowed(monkeypatch):
    tiles_of(50, monkeypatch)
    sizes = []

    def products(part, codes, bias):
        sizes.append((len(part), len(codes)))
        return part @ codes.T

    monkeypatch.setattr(nearest, "inner_products", products)
    assert nearest.largest_product(torch.randn(7, 6), torch.randn(17, 6)).shape == (7,)
    assert sizes == [(2, 17), (2, 17), (2, 17), (1, 17)]
    sizes.clear()
    nearest.largest_product(torch.randn(2, 6), torch.randn(120, 6))
    assert sizes == [(1, 50), (1, 50), (1, 20)] * 2


@pytest.mark.parametrize("columns", [16, 17, 512])
def test_the_maximum_of_a_row_is_found_in_groups(columns):
    tile = torch.randn(300, columns)
    values, places = nearest._row_maximum(tile)
    assert torch.equal(places, tile.argmax(dim=1)) and torch.equal(values, tile.amax(dim=1))


def test_of_equal_codes_the_first_is_found_whatever_the_tile(monkeypatch):
    # Signs times powers of two: every product and every norm is exact, in whatever order a processor adds them up.
    corners = torch.randint(0, 2, (48, 4)) * 2.0 - 1
    tokens, codes = (corners * 2.0 ** torch.randint(0, 4, (48, 1))).split([40, 8])
    codebook = codes.repeat(8, 1)  # every code eight times
    for search in (closest, most_similar):
        expected = search(tokens, codes)
        for entries in (1, 5, 33, 64 * 7, 64 * 40):
            tiles_of(entries, monkeypatch)
            assert torch.equal(search(tokens, codebook), expected)
        monkeypatch.undo()
