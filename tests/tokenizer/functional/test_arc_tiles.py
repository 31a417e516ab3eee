import math
import weakref

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from plain_arc_loss import plain_arc_loss

from tokenizer.angular_margin import arc_loss, arc_loss_and_codes, arc_terms
from tokenizer.functional import arc_tiles as streaming_arc
from tokenizer.functional.arc_tiles import _largest
from tokenizer.functional.nearest import most_similar
from tokenizer.functional.vectors import unit_vectors


def loss_and_gradient(function, latents, codebook, **options):
    latents = latents.detach().clone().requires_grad_()
    loss = function(latents, codebook, **options)
    loss.backward()
    return loss.detach(), latents.grad


def random_pair(tokens, codes, dim, dtype=torch.float64):
    return torch.randn(tokens, dim, dtype=dtype), torch.randn(codes, dim, dtype=dtype)


CASES = given(
    tokens=st.integers(1, 70),
    codes=st.integers(1, 20),
    dim=st.integers(2, 9),
    top_k=st.integers(1, 12),
    scale=st.sampled_from([0.5, 5.0, 10.0, 60.0]),
    margin=st.sampled_from([0.0, 0.1, 0.7, 3.0]),
    entries=st.one_of(st.none(), st.integers(1, 1500)),
    candidate_cost=st.sampled_from([0, 0.1, 16]),
    group=st.sampled_from([2, 3, 16]),
    seed=st.integers(0, 10**6),
)


def streaming_equals_plain(tokens, codes, dim, top_k, scale, margin, entries, candidate_cost, group, seed):
    torch.manual_seed(seed)
    latents, codebook = random_pair(tokens, codes, dim)
    options = {"scale": scale, "margin": margin, "top_k": top_k}
    expected, expected_gradient = loss_and_gradient(plain_arc_loss, latents, codebook, **options)
    with pytest.MonkeyPatch.context() as patch:
        # Few tokens in chunks as large as the tile, of some, or of one each, and few chunks in many groups.
        patch.setattr(streaming_arc, "_CANDIDATE_COST", candidate_cost)
        patch.setattr(streaming_arc, "_GROUP", group)
        found, gradient = loss_and_gradient(arc_loss, latents, codebook, **options, tile_entries=entries)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-11)


@settings(max_examples=40, deadline=None, derandomize=True)
@CASES
def test_streaming_equals_plain(**case):
    streaming_equals_plain(**case)


@pytest.mark.robustness
@settings(max_examples=400, deadline=None, derandomize=True)
@CASES
def test_streaming_equals_plain_in_many_cases(**case):
    streaming_equals_plain(**case)


@pytest.mark.parametrize("tokens", [1, 2, 37])
def test_every_tile_size_gives_the_same(tokens):
    latents, codebook = random_pair(tokens, 5, 4)
    expected, expected_gradient = loss_and_gradient(plain_arc_loss, latents, codebook)
    # One token of one code, up to all tokens of all codes, and more.
    for entries in range(1, 5 * tokens + 2):
        found, gradient = loss_and_gradient(arc_loss, latents, codebook, tile_entries=entries)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-11)


@pytest.mark.parametrize("candidate_cost", [0, 0.1])
def test_every_tile_size_gives_the_same_where_chunks_and_parts_do_not_fit_each_other(candidate_cost, monkeypatch):
    monkeypatch.setattr(streaming_arc, "_CANDIDATE_COST", candidate_cost)  # chunks as large as the tile, or smaller
    latents, codebook = random_pair(70, 5, 4)
    expected, expected_gradient = loss_and_gradient(plain_arc_loss, latents, codebook)
    for entries in range(1, 70 * 5 + 2):
        found, gradient = loss_and_gradient(arc_loss, latents, codebook, tile_entries=entries)
        torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
        torch.testing.assert_close(gradient, expected_gradient, rtol=1e-8, atol=1e-11)


def test_a_negative_beside_the_positives_does_not_overflow():
    # Eight tokens near the code, of which three are positives, in chunks that are otherwise at its opposite: against
    # those, exp of the other five is beyond float32.
    code = torch.eye(8, dtype=torch.float64)[:1]
    latents = -code + 0.1 * torch.randn(3000, 8, dtype=torch.float64)
    latents[:8] = code + 0.1 * torch.randn(8, 8, dtype=torch.float64)
    expected, expected_gradient = loss_and_gradient(plain_arc_loss, latents, code, scale=100.0)
    found, gradient = loss_and_gradient(arc_loss, latents.float(), code.float(), scale=100.0)
    assert found.item() == pytest.approx(expected.item(), rel=1e-4)
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_a_tile_size_below_one_is_refused():
    with pytest.raises(ValueError, match="tile_entries >= 1, got 0"):
        arc_loss(*random_pair(3, 2, 2), tile_entries=0)


@pytest.mark.parametrize("entries", [None, 7, 64])
def test_duplicate_tokens_share_the_loss_of_any_choice_among_them(entries):
    latents, codebook = random_pair(9, 4, 3)
    repeated = latents.repeat(5, 1)  # ties everywhere: which of equal tokens is a positive must not matter to the loss
    expected = plain_arc_loss(repeated, codebook, top_k=3)
    found, gradient = loss_and_gradient(arc_loss, repeated, codebook, top_k=3, tile_entries=entries)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=0)
    # Summed over equal tokens the gradient is that of the distinct ones, whichever was chosen.
    _, plain_gradient = loss_and_gradient(plain_arc_loss, repeated, codebook, top_k=3)
    torch.testing.assert_close(
        gradient.view(5, 9, 3).sum(0), plain_gradient.view(5, 9, 3).sum(0), rtol=1e-8, atol=1e-11
    )


@pytest.mark.parametrize("entries", [None, 5])
def test_all_tokens_equal(entries):
    latents, codebook = random_pair(1, 4, 3)
    equal = latents.repeat(11, 1)
    torch.testing.assert_close(
        arc_loss(equal, codebook, tile_entries=entries), plain_arc_loss(equal, codebook), rtol=1e-10, atol=0
    )


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_an_exact_hit_and_an_opposite_vector_in_closed_form(dtype):
    # cos theta of the two tokens: 1 and -1. One of them is the positive, the other the only negative.
    code = torch.tensor([[0.6, 0.8]], dtype=dtype)
    latents = torch.tensor([[1.2, 1.6], [-3.0, -4.0]], dtype=dtype, requires_grad=True)
    loss = arc_loss(latents, code, top_k=1)
    expected = math.log1p(math.exp(-10 - 10 * math.cos(0.1)))
    assert loss.item() == pytest.approx(expected, rel=1e-6 if dtype == torch.float32 else 1e-13)
    loss.backward()
    # Both are at a pole of the sphere, where no direction along it leads closer.
    assert latents.grad.norm() < 1e-6


def test_a_large_scale_neither_overflows_nor_loses_the_negatives():
    # exp(300) is beyond float32, and against the positives' exp the negatives' would vanish.
    latents, codebook = random_pair(50, 6, 4)
    options = {"scale": 300.0, "margin": 1.0}
    expected, expected_gradient = loss_and_gradient(plain_arc_loss, latents, codebook, **options)
    found, gradient = loss_and_gradient(arc_loss, latents.float(), codebook.float(), **options, tile_entries=60)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5) and expected > 1
    assert (gradient - expected_gradient).norm() < 1e-4 * expected_gradient.norm()


def test_bfloat16_latents_stay_within_their_own_rounding_of_the_plain_form():
    latents, codebook = random_pair(300, 20, 8, torch.bfloat16)
    expected, expected_gradient = loss_and_gradient(plain_arc_loss, latents.double(), codebook.double())
    found, gradient = loss_and_gradient(arc_loss, latents, codebook, tile_entries=1000)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert gradient.dtype == torch.bfloat16
    assert (gradient.double() - expected_gradient).norm() < 2**-8 * expected_gradient.norm()


@pytest.mark.parametrize("entries", [None, 13])
@pytest.mark.parametrize("scale", [1.0, 30.0])
def test_gradient_equals_finite_differences(scale, entries):
    latents, codebook = random_pair(8, 5, 3)
    latents.requires_grad_()
    options = {"scale": scale, "top_k": 2, "tile_entries": entries}
    assert torch.autograd.gradcheck(lambda z: arc_loss(z, codebook, **options), [latents])


@pytest.mark.parametrize("codes", [300, 1100])  # in one block and in several, and the tokens in several parts
def test_the_search_of_the_same_pass_finds_the_codes_and_leaves_the_loss(codes):
    latents, codebook = random_pair(10_000, codes, 8, torch.float32)
    loss, codes = arc_loss_and_codes(latents, codebook, 10.0, 0.1, 3)
    assert torch.equal(codes, most_similar(latents, codebook))
    assert torch.equal(loss, arc_loss(latents, codebook))
    assert codes.dtype == torch.int64 and not codes.requires_grad


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("rows", [1, 3, 15, 16, 49, 192, 256, 1000, 2048, 65536])
def test_the_largest_of_each_column_are_those_of_topk(rows, count):
    # Small integers: ties within and across chunks.
    for table in (torch.randn(rows, 7), torch.randint(0, 9, (rows, 7)).float()):
        count = min(count, rows)
        at = _largest(table, count)
        assert torch.equal(table.gather(0, at), table.topk(count, dim=0).values)
        assert all(len(set(column)) == count for column in at.T.tolist())


def test_a_zero_code_moves_nothing():
    latents, codebook = random_pair(30, 4, 16)
    codebook[1] = 0
    _, gradient = loss_and_gradient(arc_loss, latents, codebook, top_k=2)
    _, expected = loss_and_gradient(plain_arc_loss, latents, codebook[[0, 2, 3]], top_k=2)
    torch.testing.assert_close(gradient, expected * 3 / 4, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("side", [1, -1])
def test_float32_gradient_near_a_code_and_near_its_opposite(side):
    # All tokens lie within 6e-3 of one pole, where (cos theta) directions - codes has lost half its digits.
    code = unit_vectors(torch.randn(1, 16)).double()
    angles = torch.tensor([[2e-3], [3e-3], [6e-3]], dtype=torch.float64)
    latents = (side * code + angles * unit_vectors(torch.randn(3, 16)).double()).float().double()
    options = {"top_k": 2, "margin": 0.3}
    _, expected = loss_and_gradient(plain_arc_loss, latents, code, **options)
    _, found = loss_and_gradient(arc_loss, latents.float(), code.float(), **options)
    assert expected.norm() > 1e-3
    assert (found - expected).norm() < 2.5e-5 * expected.norm()


@pytest.mark.parametrize("latents_dtype", [torch.bfloat16, torch.float32, torch.float64])
@pytest.mark.parametrize("codebook_dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_latents_and_codebook_may_be_of_different_types(latents_dtype, codebook_dtype):
    latents, codebook = random_pair(30, 5, 4, torch.bfloat16)
    expected, expected_codes = arc_loss(latents.double(), codebook.double()), most_similar(latents, codebook)
    latents, codebook = latents.to(latents_dtype), codebook.to(codebook_dtype)
    found = arc_loss(latents, codebook)
    assert found.dtype == (torch.float64 if latents_dtype == torch.float64 else torch.float32)
    assert found.item() == pytest.approx(expected.item(), rel=1e-5)
    assert torch.equal(most_similar(latents, codebook), expected_codes)


def test_no_codes_are_no_terms_and_no_gradient():
    latents, codebook = torch.randn(30, 4, requires_grad=True), torch.randn(0, 4)
    terms, _ = arc_terms(latents, codebook, 10.0, 0.1, 3)
    assert terms.shape == (0,)
    terms.sum().backward()
    assert torch.equal(latents.grad, torch.zeros(30, 4))


def test_the_graph_may_be_gone_through_twice():
    latents, codebook = random_pair(40, 5, 4)
    latents.requires_grad_()
    loss = arc_loss(latents, codebook)
    first, second = (torch.autograd.grad(loss, latents, retain_graph=True)[0] for _ in range(2))
    assert torch.equal(first, second) and first.norm() > 0


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_nothing_waits_for_the_device():
    latents, codebook = (tensor.cuda() for tensor in random_pair(5000, 600, 16, torch.float32))
    latents.requires_grad_()
    arc_loss_and_codes(latents, codebook, 10.0, 0.1, 3)[0].backward()
    torch.cuda.set_sync_debug_mode("error")
    try:
        arc_loss_and_codes(latents, codebook, 10.0, 0.1, 3)[0].backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


def test_a_second_derivative_is_refused():
    latents, codebook = random_pair(9, 4, 3)
    latents.requires_grad_()
    with pytest.raises(RuntimeError, match="no second derivative"):
        torch.autograd.grad(arc_loss(latents, codebook), latents, create_graph=True)


@pytest.mark.parametrize(
    "options, share",
    [
        ({}, 1 / 8),
        pytest.param({"tile_entries": 8192}, 1 / 64, marks=pytest.mark.slow),
        ({"top_k": 60}, 1 / 2),
    ],
)
def test_no_table_of_tokens_and_codes_is_ever_held(options, share):
    latents, codebook = random_pair(4096, 8192, 4, torch.float32)
    latents.requires_grad_()
    live, most, seen = 0, 0, weakref.WeakSet()

    def freed(size):
        nonlocal live
        live -= size

    class Live(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal live, most
            result = func(*args, **(kwargs or {}))
            for tensor in result if isinstance(result, tuple | list) else [result]:
                if isinstance(tensor, torch.Tensor) and (storage := tensor.untyped_storage()) not in seen:
                    seen.add(storage)
                    live += storage.nbytes()
                    most = max(most, live)
                    weakref.finalize(storage, freed, storage.nbytes())
            return result

    with Live():
        arc_loss(latents, codebook, **options).backward()
    assert latents.grad.norm() > 0
    assert 4096 * 8 < most < share * 4096 * 8192 * 4


@pytest.mark.slow
def test_compiles_without_a_graph_break():
    latents, codebook = random_pair(220, 12, 4, torch.float32)  # chunks of 2
    compiled = torch.compile(arc_loss, fullgraph=True, backend="aot_eager")
    for entries in (None, 300):
        expected, expected_gradient = loss_and_gradient(arc_loss, latents, codebook, tile_entries=entries)
        found, gradient = loss_and_gradient(compiled, latents, codebook, tile_entries=entries)
        torch.testing.assert_close(found, expected)
        torch.testing.assert_close(gradient, expected_gradient)
