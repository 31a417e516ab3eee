"""The hierarchical quantizer, against its definition on plain N x K x D arrays."""

import copy
import math

import pytest
import torch
from processes_as_threads import Processes
from torch.nn.functional import one_hot

from tokenizer import VQTokenizer
from tokenizer.quantizers import make_quantizer

K, D, B = 7, 5, 2
SMALL = {"hidden_channels": 4, "residual_channels": 2, "num_residual_layers": 1}


def make(levels=2, codes=K, dim=D, **options):
    """With statistics that are not those of the start."""
    quantizer = make_quantizer("hvq", codes, dim, {"levels": levels, **SMALL, **options})
    for networks in quantizer.networks:
        networks.mean.uniform_(-1, 1)
        networks.variance.uniform_(0.2, 2)
    return quantizer


def encoder_output_for(quantizer, *, batch=B, side=8, dtype=torch.float32):
    return torch.randn(batch, quantizer.encoder_channels, side, side, dtype=dtype)


def tokens_of(maps):
    return maps.permute(0, 2, 3, 1).reshape(-1, maps.shape[1])


def distances(maps, table):
    """(N, K)."""
    return ((tokens_of(maps)[:, None] - table) ** 2).sum(dim=2)


def nearest_rows(maps, table):
    rows = table[distances(maps, table).argmin(dim=1)]
    return rows.view(maps.shape[0], *maps.shape[2:], -1).permute(0, 3, 1, 2)


def oracle_level(maps, table, values, gumbel, temperature):
    """Soft sample (B, D, h, w), kl and commitment per input value of one level."""
    d2 = distances(maps, table)
    p = torch.exp(-d2) / torch.exp(-d2).sum(dim=1, keepdim=True)
    kl = (p * (p.log() + math.log(K))).sum() / (len(d2) * values)
    commitment = (p * d2).sum() / (len(d2) * values)
    soft = torch.softmax((p.log() + gumbel.reshape(-1, K)) / temperature, dim=1) @ table
    return soft.view(maps.shape[0], *maps.shape[2:], -1).permute(0, 3, 1, 2), kl, commitment


def test_sample_losses_and_gradients_are_the_definitions():
    quantizer = make(initial_temperature=0.5).double()
    quantizer.values_per_token = 3
    plain = copy.deepcopy(quantizer)
    encoder_output = encoder_output_for(quantizer, side=4, dtype=torch.float64).requires_grad_()
    z1 = encoder_output.detach().clone().requires_grad_()
    quantizer.seed_noise(5, 0)
    noise = quantizer.noise(encoder_output)
    gumbels = [noise.gumbel(torch.empty(B, n, K, dtype=torch.float64)) for n in (16, 4)]
    networks = plain.networks[0]
    below = (z1.detach() - networks.mean) / (networks.variance + 1e-5).sqrt()
    z2 = networks.encoder(below)
    sample1, kl1, commitment1 = oracle_level(z1, plain.tables[0], 3, gumbels[0], 0.5)
    sample2, kl2, commitment2 = oracle_level(z2, plain.tables[1], 4 * D, gumbels[1], 0.5)
    expected = {
        "level_1_kl": kl1,
        "level_1_commitment": commitment1,
        "level_2_kl": kl2,
        "level_2_commitment": commitment2,
        "level_2_reconstruction": ((networks.decoder(sample2) - below) ** 2).mean(),
    }
    found = quantizer(encoder_output)
    assert set(found.losses) == set(expected) == set(quantizer.loss_weights())
    torch.testing.assert_close(found.quantized, sample1, rtol=1e-10, atol=1e-12)
    codes = distances(z2, plain.tables[1]).argmin(dim=1).view(B, 2, 2)
    assert torch.equal(found.codes, codes)
    assert torch.equal(found.counts, torch.bincount(codes.flatten(), minlength=K))
    pull = torch.randn_like(sample1)
    scalars = {**found.losses, "images": (found.quantized * pull).sum()}
    plain_scalars = {**expected, "images": (sample1 * pull).sum()}
    ours, theirs = [encoder_output, *quantizer.parameters()], [z1, *plain.parameters()]
    for name, scalar in scalars.items():
        torch.testing.assert_close(scalar, plain_scalars[name], rtol=1e-10, atol=1e-12)
        gradients = torch.autograd.grad(scalar, ours, retain_graph=True, allow_unused=True)
        others = torch.autograd.grad(plain_scalars[name], theirs, retain_graph=True, allow_unused=True)
        assert any(other is not None and other.norm() > 1e-6 for other in others)
        for gradient, other in zip(gradients, others, strict=True):
            assert (gradient is None) == (other is None)
            if other is not None:
                torch.testing.assert_close(gradient, other, rtol=1e-9, atol=1e-11)
        # Level 2 trains nothing below it, and the images level 1 alone.
        below_is_reached = gradients[0] is not None and gradients[1] is not None
        above_is_reached = any(g is not None for g in gradients[2:])
        assert (below_is_reached, above_is_reached) == (("level_2" not in name), "level_2" in name)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_evaluation_looks_up_downwards(levels):
    quantizer = make(levels, codes=300).eval()  # so many that the nearest one tells latents apart
    encoder_output = encoder_output_for(quantizer)
    state = torch.get_rng_state()
    out, latents = quantizer(encoder_output), quantizer.latents(encoder_output)
    assert torch.equal(torch.get_rng_state(), state)
    side = 8 // 2 ** (levels - 1)
    assert quantizer.downsampling == 8 // side and latents.shape == (B, D, side, side)
    z = encoder_output
    for networks in quantizer.networks:
        z = networks.encoder((z - networks.mean) / (networks.variance + 1e-5).sqrt())
    torch.testing.assert_close(latents, z)
    assert torch.equal(quantizer.codebook, quantizer.tables[levels - 1])
    assert torch.equal(out.codes, distances(z, quantizer.codebook).argmin(dim=1).view(B, side, side))
    assert torch.equal(out.codes, quantizer.encode(latents))
    rows = nearest_rows(z, quantizer.codebook)
    for networks, table in zip(list(quantizer.networks)[::-1], list(quantizer.tables)[-2::-1], strict=True):
        rows = nearest_rows(networks.decoder(rows) * (networks.variance + 1e-5).sqrt() + networks.mean, table)
    assert out.quantized.shape == encoder_output.shape
    torch.testing.assert_close(out.quantized, rows)
    assert torch.equal(out.quantized, quantizer.lookup(out.codes))
    assert torch.equal(out.quantized, quantizer.quantize_latents(latents))
    assert torch.equal(out.quantized, quantizer(encoder_output).quantized)
    assert set(out.losses) == set(quantizer.loss_weights())


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_what_is_decoded_in_evaluation_has_a_gradient_to_latents_and_moments(levels):
    quantizer = make(levels).eval()
    encoder_output = encoder_output_for(quantizer).requires_grad_()
    latents = quantizer.latents(encoder_output).detach().requires_grad_()
    pull = torch.randn_like(encoder_output)
    for leaf, made in (
        (encoder_output, quantizer(encoder_output).quantized),
        (latents, quantizer.quantize_latents(latents)),
    ):
        (gradient,) = torch.autograd.grad((made * pull).sum(), leaf)
        assert gradient.isfinite().all() and gradient.norm() > 0
        if levels == 1:
            assert torch.equal(gradient, pull)


def test_the_temperature_is_linear_in_a_planned_training():
    quantizer = make()
    quantizer.step.fill_(10)
    assert quantizer.temperature.item() == pytest.approx(0.667)
    quantizer.set_total_steps(40)
    for step, expected in ((0, 0.667), (10, 0.667 - 0.666 / 4), (40, 0.001), (400, 0.001)):
        quantizer.step.fill_(step)
        assert quantizer.temperature.item() == pytest.approx(expected, rel=1e-6)
    quantizer.seed_noise(1, 0)
    encoder_output = encoder_output_for(quantizer)
    cold = quantizer(encoder_output).quantized
    quantizer.step.fill_(0)
    warm = quantizer(encoder_output).quantized
    assert torch.cdist(tokens_of(cold), quantizer.tables[0]).amin(dim=1).mean() < 1e-2
    assert torch.cdist(tokens_of(warm), quantizer.tables[0]).amin(dim=1).mean() > 0.1


def test_samples_do_not_depend_on_the_split():
    quantizer = make(3)
    encoder_output = encoder_output_for(quantizer, batch=4, dtype=torch.float32)
    quantizer.seed_noise(3, 0)
    whole = quantizer(encoder_output)
    means = dict.fromkeys(whole.losses, 0)
    for index, part in enumerate(encoder_output.chunk(2)):
        quantizer.seed_noise(3, 2 * index)
        out = quantizer(part)
        torch.testing.assert_close(out.quantized, whole.quantized.chunk(2)[index])
        means = {name: mean + out.losses[name] / 2 for name, mean in means.items()}
    torch.testing.assert_close(means, whole.losses, rtol=1e-4, atol=1e-6)
    quantizer.seed_noise(4, 0)
    assert (quantizer(encoder_output).quantized - whole.quantized).abs().max() > 0.1


def test_the_statistics_are_outright_at_first_and_then_follow():
    quantizer = make(norm_decay=0.75)
    networks = quantizer.networks[0]
    batches = [
        3 * encoder_output_for(quantizer, dtype=torch.float64) + 2,
        encoder_output_for(quantizer, dtype=torch.float64),
    ]
    means = [tokens_of(batch).mean(dim=0) for batch in batches]
    variances = [tokens_of(batch).var(dim=0, correction=0) for batch in batches]
    expected = [(means[0], variances[0])]
    expected += [(0.75 * means[0] + 0.25 * means[1], 0.75 * variances[0] + 0.25 * variances[1])]
    for batch, (mean, variance) in zip(batches, expected, strict=True):
        before = networks.mean.clone()
        codes = quantizer(batch).codes
        assert torch.equal(networks.mean, before)  # nothing changes in a forward pass
        quantizer.after_update(batch, codes)
        torch.testing.assert_close(networks.mean.flatten().double(), mean, rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(networks.variance.flatten().double(), variance, rtol=1e-5, atol=1e-5)
    assert quantizer.step == 2


def used(quantizer, *counts):
    """As if the codes of each level had been used so often."""
    quantizer.counts.copy_(torch.tensor(counts))


def test_the_codes_of_all_levels_are_counted():
    quantizer = make(3, reset_every=0)
    encoder_output = encoder_output_for(quantizer)
    codes = quantizer(encoder_output).codes
    level_2 = quantizer.networks[0].up(encoder_output)
    expected = [
        one_hot(distances(maps, table).argmin(dim=1), K).sum(dim=0)
        for maps, table in zip((encoder_output, level_2), quantizer.tables, strict=False)
    ]
    expected += [torch.bincount(codes.flatten(), minlength=K)]
    quantizer.after_update(encoder_output, codes)
    assert torch.equal(quantizer.counts, torch.stack(expected))
    assert quantizer.counts.sum(dim=1).tolist() == [B * 64, B * 16, B * 4]


def test_an_unused_code_becomes_the_most_used_one():
    quantizer = make(codes=4, reset_every=3)
    encoder_output = encoder_output_for(quantizer)
    for step in (1, 2, 3):
        before = [table.detach().clone() for table in quantizer.tables]
        # On level 1 the third is used too little; on level 2 the least-used one is used enough.
        used(quantizer, [1000, 10**6, 0, 500], [10**6, 10**6, 10**6, 10**6 // 25])
        quantizer.after_update(encoder_output, quantizer(encoder_output).codes)
        assert torch.equal(quantizer.tables[1], before[1])
        if step < 3:
            assert torch.equal(quantizer.tables[0], before[0]) and quantizer.counts.sum() > 0
    assert not quantizer.counts.any()
    found = quantizer.tables[0].detach()
    assert torch.equal(found[[0, 1, 3]], before[0][[0, 1, 3]])
    assert 0 < (found[2] - found[1]).abs().max() < 0.05


def test_the_noise_of_a_revival_is_of_the_step_and_of_a_hundredth():
    revived = []
    for step in (19, 19, 39):
        torch.manual_seed(len(revived))
        quantizer = make(codes=3, dim=2000, hidden_channels=2)
        quantizer.step.fill_(step)
        with torch.no_grad():
            [table.zero_() for table in quantizer.tables]
        used(quantizer, [9, 1000, 900], [0, 100, 0])
        quantizer.after_update(encoder_output_for(quantizer, side=2), torch.ones(B, 1, 1, dtype=torch.int64))
        revived.append([table[0].detach().clone() for table in quantizer.tables])
    for rows in revived:
        assert all(row.std().item() == pytest.approx(0.01, rel=0.1) for row in rows)
        assert not torch.equal(*rows)
    assert torch.equal(revived[0][0], revived[1][0]) and not torch.equal(revived[0][0], revived[2][0])


def test_processes_together_are_one(monkeypatch):
    single, processes = make(3, reset_every=3), Processes(2)
    copies = [copy.deepcopy(single) for _ in range(2)]
    batches = torch.randn(4, 6, D, 8, 8)
    with torch.no_grad():
        single.tables[0][0] = 100  # which no token is close to
        [other.tables[0].copy_(single.tables[0]) for other in copies]
    for batch in batches:
        single.after_update(batch, single(batch).codes)

    def work(rank):
        for batch in batches:
            part = batch.chunk(2)[rank]
            copies[rank].after_update(part, copies[rank](part).codes)

    for module in ("quantizers.hvq", "networks.hierarchy"):
        monkeypatch.setattr(f"tokenizer.{module}.all_reduce_sum", processes.total)
    monkeypatch.setattr("tokenizer.networks.hierarchy.global_count", processes.number)
    processes.run(work)
    assert single.tables[0][0].abs().max() < 50
    for other in copies:
        torch.testing.assert_close(other.state_dict(), single.state_dict(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("levels", [1, 2])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("case", ["one token", "equal", "zero", "two codes", "one code", "one dimension", "cold"])
def test_degenerate_inputs_give_finite_values_and_gradients(levels, training, case):
    codes = {"two codes": 2, "one code": 1}.get(case, K)
    quantizer = make(levels, codes, 1 if case == "one dimension" else D, reset_every=1).train(training)
    encoder_output = encoder_output_for(quantizer, batch=1 if case == "one token" else B, side=2 ** (levels - 1))
    if case in ("equal", "zero"):
        encoder_output[:] = case == "equal"
    if case == "cold":
        quantizer.set_total_steps(1)
    for _ in range(3):  # the statistics of equal tokens have no variance
        encoder_output = encoder_output.detach().requires_grad_()
        out = quantizer(encoder_output)
        (out.quantized.sum() + sum(out.losses.values())).backward()
        tensors = [out.quantized, *out.losses.values(), encoder_output.grad, *(p.grad for p in quantizer.parameters())]
        assert all(tensor.isfinite().all() for tensor in tensors if tensor is not None)
        quantizer.after_update(encoder_output.detach(), out.codes)
    assert all(value.isfinite().all() for value in quantizer.state_dict().values())


def tokenizer_of(levels, **options):
    options = {"levels": levels, **SMALL, **options}
    return VQTokenizer(
        1, 16, quantizer="hvq", codebook_size=K, codebook_dim=D, hidden_channels=8,
        network_options={"strided_layers": 1}, quantizer_options=options,
    )  # fmt: skip


def test_saved_and_loaded_it_gives_the_same_codes(tmp_path):
    tokenizer = tokenizer_of(2)
    images = 2 * torch.rand(3, 1, 16, 16) - 1
    for _ in range(2):
        tokenizer.bottleneck.after_update(tokenizer(images).encoder_output.detach(), tokenizer(images).codes)
    tokenizer.eval().save_pretrained(tmp_path)
    loaded = VQTokenizer.from_pretrained(tmp_path).eval()
    codes = tokenizer.encode_codes(images)
    assert codes.shape == (3, *tokenizer.code_shape) == (3, 4, 4)
    assert torch.equal(loaded.encode_codes(images), codes)
    assert torch.equal(loaded.decode_codes(codes), tokenizer.decode_codes(codes))
    latents = tokenizer.encode(images).latents
    assert latents.shape == (3, *tokenizer.latent_shape) == (3, D, 4, 4)
    assert torch.equal(tokenizer.decode(latents).sample, tokenizer.decode_codes(codes))
    assert torch.equal(tokenizer(images).reconstruction, tokenizer.decode_codes(codes))
    loaded.load_state_dict(tokenizer.state_dict())
    assert loaded.bottleneck.step == 2 and torch.equal(loaded.bottleneck.counts, tokenizer.bottleneck.counts)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_moments_may_be_of_another_precision_than_the_parameters(dtype):
    quantizer = make()
    encoder_output = encoder_output_for(quantizer, dtype=dtype).requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        out = quantizer(encoder_output)
        latents = quantizer.latents(encoder_output)
    (out.quantized.sum() + sum(out.losses.values())).backward()
    assert out.quantized.dtype == encoder_output.grad.dtype == dtype and latents.dtype == torch.float32
    quantizer.after_update(encoder_output.detach(), out.codes)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(quantizer.quantize_latents(latents), quantizer.lookup(quantizer.encode(latents)))


def test_sides_that_cannot_be_halved_are_refused():
    tokenizer = tokenizer_of(3)
    assert tokenizer.downsampling == 8
    with pytest.raises(ValueError, match="multiples of 8"):
        tokenizer(torch.zeros(1, 1, 12, 16))
    for call in (tokenizer.bottleneck, tokenizer.bottleneck.latents):
        with pytest.raises(ValueError, match=r"multiples of 4, got \(4, 6\)"):
            call(torch.zeros(1, D, 4, 6))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"levels": 0}, "at least 1, got 0"),
        ({"norm_decay": 1.5}, "norm_decay must be at most 1, got 1.5"),
        ({"final_temperature": 0.0}, "temperatures must be above 0"),
        ({"hidden_channels": 3}, "hidden_channels must be even"),
    ],
)
def test_options_that_cannot_work_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        make_quantizer("hvq", K, D, options)


def test_the_published_weights():
    weights = make_quantizer("hvq", K, D, SMALL).loss_weights()
    assert weights.pop("level_2_reconstruction") == 1
    assert len(weights) == 4 and set(weights.values()) == {1e-3}


def test_the_tokenizer_says_how_many_values_a_token_stands_for():
    sizes = {"quantizer": "hvq", "image_size": 16, "codebook_dim": 4, "hidden_channels": 8}
    options = {"quantizer_options": {"hidden_channels": 8}}
    assert VQTokenizer(3, network_options={"strided_layers": 1}, **sizes, **options).bottleneck.values_per_token == 12
    assert VQTokenizer(1, **sizes, **options).bottleneck.values_per_token == 16
