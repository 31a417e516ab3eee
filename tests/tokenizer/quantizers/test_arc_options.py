"""ArcVQ with parts of other methods: rotated gradients, moving averages, revived codes, a start by k-means."""

import copy
import math

import pytest
import torch
from no_float64 import DEVICE, NoFloat64
from quantizer_cases import check_goes_on_as_saved
from torch.nn.functional import cosine_similarity

from tokenizer.angular_margin import arc_loss
from tokenizer.functional.noise import ImageNoise
from tokenizer.quantizers import make_quantizer
from tokenizer.quantizers.kmeans import ITERATIONS

D = 4


def make(codes=7, **options):
    return make_quantizer("arc", codes, D, options).double()


def batch(images=3):
    return torch.randn(images, D, 2, 3, dtype=torch.float64)


def tokens_of(latents):
    return latents.permute(0, 2, 3, 1).reshape(-1, D)


def clipped(row, radius):
    return row * min(1.0, radius / row.norm().item()) if row.norm() > 0 else row


def drawn(count, step):
    """The order in which tokens are drawn at random, without a seed from the step."""
    return ImageNoise(1, torch.device("cpu"), torch.tensor(step), -1).words(count)[0].argsort().tolist()


def nearest(token, table):
    return max(range(len(table)), key=lambda k: cosine_similarity(token, table[k], dim=0).item())


def test_the_rotated_gradient_is_that_of_the_map_built_as_a_matrix():
    quantizer, latents = make(estimator="rotation"), batch().requires_grad_()
    out = quantizer(latents)
    assert torch.equal(out.quantized, quantizer.lookup(out.codes))
    upstream = torch.randn_like(out.quantized)
    (found,) = torch.autograd.grad(out.quantized, latents, upstream)
    tokens = map(tokens_of, (latents.detach(), out.quantized, upstream, found))
    for latent, row, given, ours in zip(*tokens, strict=True):
        a, b = latent / latent.norm(), row / row.norm()
        r = (a + b) / (a + b).norm()
        turn = torch.eye(D, dtype=torch.float64) - 2 * torch.outer(r, r) + 2 * torch.outer(b, a)
        torch.testing.assert_close(ours, row.norm() / latent.norm() * turn.T @ given)


def test_the_rotation_changes_no_loss_and_no_gradient_of_one():
    plain, rotated = make(), make(estimator="rotation")
    rotated.load_state_dict(plain.state_dict())
    latents, results = batch(), []
    for quantizer in (plain, rotated):
        leaf = latents.clone().requires_grad_()
        losses = quantizer(leaf).losses
        results.append((losses, torch.autograd.grad(sum(losses.values()), [leaf, quantizer.codebook])))
    assert results[0][0] == results[1][0] and len(results[0][0]) == 3
    assert all(torch.equal(*pair) for pair in zip(results[0][1], results[1][1], strict=True))


@pytest.mark.parametrize(("decay", "revive_below"), [(0.9, 0.0), (0.5, 0.0), (0.5, 1.5)])
def test_the_table_of_moving_averages_is_that_of_plain_loops_inside_the_ball(decay, revive_below):
    quantizer = make(table="moving_average", average_decay=decay, revive_below=revive_below, ball_growth=0.05)
    assert not list(quantizer.parameters())
    table, sums, sizes = quantizer.codebook.clone(), quantizer.codebook.clone(), [1.0] * 7
    outside = revived = 0
    for step in range(5):
        latents = 4 * batch()
        tokens = tokens_of(latents)
        out = quantizer(latents)
        codes = [nearest(token, table) for token in tokens]
        assert out.codes.flatten().tolist() == codes
        quantizer.after_update(latents, out.codes)
        for k in range(7):
            mine = [token for token, code in zip(tokens, codes, strict=True) if code == k]
            sizes[k] = decay * sizes[k] + (1 - decay) * len(mine)
            sums[k] = decay * sums[k] + (1 - decay) * sum(mine, start=torch.zeros(D))
        dead = [k for k in range(7) if sizes[k] < revive_below]
        for k, place in zip(dead, drawn(len(tokens), step), strict=False):
            sizes[k] = max(1.0, revive_below)
            sums[k] = sizes[k] * tokens[place]
        revived += len(dead)
        total, radius = sum(sizes), math.exp(0.05 * (step + 1))
        for k in range(7):
            mean = sums[k] / ((sizes[k] + 1e-5) / (total + 7e-5) * total)
            outside += mean.norm().item() > radius
            table[k] = clipped(mean, radius)
        torch.testing.assert_close(quantizer.codebook, table, rtol=1e-10, atol=1e-11)
        # The averages themselves stay outside, so that a row follows the ball as it grows.
        torch.testing.assert_close(quantizer.cluster_sums, sums, rtol=1e-10, atol=1e-11)
        torch.testing.assert_close(quantizer.cluster_sizes, torch.tensor(sizes, dtype=torch.float64))
    assert outside > 3 and (revived > 0) == (revive_below > 0)


def test_a_table_of_moving_averages_has_no_codebook_loss_and_the_arc_loss_reaches_the_encoder():
    quantizer, latents = make(table="moving_average"), batch().requires_grad_()
    losses = quantizer(latents).losses
    assert set(losses) == set(quantizer.loss_weights()) == {"commitment", "arc"}
    assert quantizer.loss_weights()["commitment"] == 0.25
    expected = arc_loss(tokens_of(latents), quantizer.codebook)
    torch.testing.assert_close(losses["arc"], expected)
    gradients = [torch.autograd.grad(value, latents, retain_graph=True)[0] for value in (losses["arc"], expected)]
    assert gradients[1].norm() > 0.01
    torch.testing.assert_close(*gradients)


def test_unused_rows_of_a_learned_table_become_tokens_inside_the_ball_and_the_others_stay():
    quantizer, latents = make(codes=9, revive_below=0.7, average_decay=0.6), 3 * batch()
    sizes, tokens, replaced = [1.0] * 9, tokens_of(latents), 0
    for step in range(3):
        before = quantizer.codebook.detach().clone()
        out = quantizer(latents)
        quantizer.after_update(latents, out.codes)
        counts = out.codes.flatten().bincount(minlength=9).tolist()
        sizes = [0.6 * size + 0.4 * count for size, count in zip(sizes, counts, strict=True)]
        dead = [k for k in range(9) if sizes[k] < 0.7]
        for k, place in zip(dead, drawn(len(tokens), step), strict=False):
            sizes[k], before[k] = 1.0, tokens[place]
        replaced += len(dead)
        expected = torch.stack([clipped(row, math.exp(3e-4 * (step + 1))) for row in before])
        torch.testing.assert_close(quantizer.codebook.detach(), expected)
        torch.testing.assert_close(quantizer.cluster_sizes, torch.tensor(sizes, dtype=torch.float64))
    assert 0 < replaced < 27 and quantizer.codebook.requires_grad


@pytest.mark.parametrize("table", ["gradient", "moving_average"])
def test_the_first_update_alone_replaces_the_table_by_the_k_means_of_plain_loops(table):
    quantizer, latents = make(codes=5, init="kmeans", table=table, ball="none"), batch(images=6)
    torch.testing.assert_close(quantizer.codebook.norm(dim=1), torch.ones(5, dtype=torch.float64))
    tokens = tokens_of(latents)
    means = [tokens[place] for place in drawn(len(tokens), 0)[:5]]
    for _ in range(ITERATIONS):
        codes = [nearest(token, means) for token in tokens]
        for k in set(codes):
            means[k] = torch.stack([token for token, code in zip(tokens, codes, strict=True) if code == k]).mean(dim=0)
    quantizer.after_update(latents, quantizer(latents).codes)
    torch.testing.assert_close(quantizer.codebook.detach(), torch.stack(means))
    if table == "moving_average":
        torch.testing.assert_close(quantizer.cluster_sums, torch.stack(means))
        assert (quantizer.cluster_sizes == 1).all()
        return
    quantizer.after_update(batch(images=6), quantizer(latents).codes)
    torch.testing.assert_close(quantizer.codebook.detach(), torch.stack(means))


def test_a_device_that_is_not_waited_for_keeps_its_table_after_the_first_update():
    quantizer, latents = make_quantizer("arc", 5, D, {"init": "kmeans", "ball": "none"}), batch().float()
    with NoFloat64():
        other = copy.deepcopy(quantizer).to(DEVICE)
        for step in range(3):
            seen = (latents + step).to(DEVICE)
            other.after_update(seen, other(seen).codes)
            quantizer.after_update(latents + step, quantizer(latents + step).codes)
            torch.testing.assert_close(other.codebook.detach().cpu(), quantizer.codebook.detach())


def test_k_means_finds_the_directions_that_the_tokens_have():
    directions = torch.eye(D, dtype=torch.float64)
    latents = (directions.repeat(50, 1) + 0.05 * torch.randn(200, D)).T.reshape(1, D, 10, 20)
    quantizer = make(codes=12, init="kmeans")
    quantizer.after_update(latents, quantizer(latents).codes)
    found = (quantizer.codebook.detach() @ directions).max(dim=0).values
    assert found.min() > 0.9 and quantizer(latents).losses["commitment"] < 0.01


@pytest.mark.parametrize("options", [{"table": "moving_average"}, {"revive_below": 1.5}, {"init": "kmeans"}])
def test_a_saved_quantizer_goes_on_as_it_would_have(options):
    check_goes_on_as_saved(make(**options), make(**options), [batch() for _ in range(4)])


def test_a_batch_must_be_able_to_hit_each_code_often_enough():
    make(codes=24, revive_below=1.0).check_batch(12, 2)
    with pytest.raises(ValueError, match=r"a batch of 24 codes cannot hit each of 25 codes revive_below 1.0 times"):
        make(codes=25, revive_below=1.0).check_batch(12, 2)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"table": "moving_average", "legacy_beta": True}, "set model.quantizer_options.legacy_beta to false"),
        ({"average_decay": 1.0}, "average_decay must be at least 0 and below 1, got 1.0"),
        ({"estimator": "gumbel"}, "arc.estimator is one of straight_through, rotation, got 'gumbel'"),
        ({"init": "tokens"}, "arc.init is one of unit, uniform, normal, kmeans, got 'tokens'"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make(**options)
