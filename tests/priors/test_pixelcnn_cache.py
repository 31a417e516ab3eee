"""The cache gives the full forward's logits and codes; what sampling adds: guidance, given codes, compilation."""

import pytest
import torch
from accelerate import cpu_offload
from pipeline_calls import seeded

from priors import PixelCNN
from priors.pixelcnn_cache import PixelCNNCache


def random_model(seed, grid, codes=7, layers=None, channels=None, **options):
    """Weights far from their initialisation: every bias counts, and codes depend on each other."""
    torch.manual_seed(seed)
    layers = layers or 1 + seed % 5
    model = PixelCNN(codes, 3, grid, channels or 4 + 4 * (seed % 3), layers, head_channels=11, **options).eval()
    with torch.no_grad():
        for weight in model.parameters():
            weight.add_(torch.randn_like(weight) * 0.1)
        model.head[-1].weight.mul_(6)
    return model


def grids_and_batches(count):
    """`count` samples' worth of random (seed, grid, batch); the smallest and the largest grid first."""
    generator = torch.Generator().manual_seed(7)
    draw = lambda high: 1 + torch.randint(high, (), generator=generator).item()  # noqa: E731
    cases, samples = [(0, (1, 1), 1), (1, (17, 23), 9)], 10
    while samples < count:
        cases.append((len(cases), (draw(17), draw(23)), draw(9)))
        samples += cases[-1][2]
    return cases


@torch.no_grad()
def test_logits_are_those_of_the_full_forward():
    for seed, (height, width), batch in grids_and_batches(60):
        model = random_model(seed, (height, width))
        codes, labels = torch.randint(7, (batch, height, width)), torch.randint(3, (batch,))
        cache = PixelCNNCache(model.layers, model.embedding, model.head, labels, width)
        found = torch.empty(batch, 7, height, width)
        for row in range(height):
            cache.begin_row()
            for column in range(width):
                found[:, :, row, column] = cache.logits(column)
                cache.append(column, codes[:, row, column])
        expected = model(codes, labels)
        assert expected.std() > 0.3
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)


def codes_of(model, batch, labels, **options):
    return model.sample(labels, seeded(*range(batch)), **options)


def check_codes(cases):
    samples = 0
    for seed, grid, batch in cases:
        model, labels = random_model(seed, grid), torch.arange(batch) % 3
        cached, full = (codes_of(model, batch, labels, use_cache=use_cache) for use_cache in (True, False))
        assert torch.equal(cached, full), f"{seed} {grid} {batch}"
        samples += batch
    return samples


def test_codes_are_those_of_the_full_forward():
    assert check_codes(grids_and_batches(30)) >= 30


@pytest.mark.slow
def test_codes_of_1000_samples_are_those_of_the_full_forward():
    assert check_codes(grids_and_batches(1000)) >= 1000


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": 0.5},
        {"top_k": 3},
        {"top_p": 0.8},
        {"guidance_scale": 2.5},
        {"guidance_scale": 0.0},
        {"guidance_scale": 1.5, "temperature": 1.3, "top_k": 5, "top_p": 0.9},
    ],
)
def test_with_every_option_too(options):
    model, labels = random_model(3, (5, 6), label_dropout=0.1), torch.tensor([0, 1, 2, 1])
    cached, full = (codes_of(model, 4, labels, use_cache=use_cache, **options) for use_cache in (True, False))
    assert torch.equal(cached, full)
    assert not torch.equal(cached, codes_of(model, 4, labels))


@torch.no_grad()
def test_guidance_is_that_of_the_logits():
    # One position: the codes' frequencies are the softmax of u + s (c - u).
    model = random_model(2, (1, 1), label_dropout=0.1)
    nothing = torch.zeros(1, 1, 1, dtype=torch.int64)
    conditional, unconditional = (model(nothing, torch.tensor([label])).flatten().double() for label in (1, 3))
    for scale in (0.0, 1.0, 3.0):
        expected = (unconditional + scale * (conditional - unconditional)).softmax(dim=0)
        codes = model.sample(torch.full((20000,), 1), seeded(0) * 20000, guidance_scale=scale)
        torch.testing.assert_close(codes.flatten().bincount(minlength=7) / 20000, expected.float(), rtol=0, atol=0.015)


def test_a_scale_of_zero_forgets_the_class():
    model = random_model(3, (4, 4), label_dropout=0.1)
    first, second = (model.sample(torch.full((3,), label), seeded(1, 2, 3), guidance_scale=0.0) for label in (0, 1))
    assert torch.equal(first, second)


def test_guidance_without_a_null_class_is_refused():
    with pytest.raises(ValueError, match=r"guidance_scale 2\.0 needs a prior trained with label_dropout above 0"):
        random_model(0, (2, 2)).sample(torch.tensor([0]), seeded(0), guidance_scale=2.0)


@torch.no_grad()
def test_labels_are_dropped_in_training_alone():
    model = random_model(4, (3, 3), label_dropout=0.5)
    assert model.null_label == 3 and random_model(4, (3, 3)).null_label is None
    codes, labels = torch.randint(7, (1, 3, 3)).expand(4000, -1, -1), torch.ones(4000, dtype=torch.int64)
    kept, dropped = model(codes[:1], labels[:1]), model(codes[:1], torch.tensor([3]))
    torch.testing.assert_close(model(codes, labels)[5], kept[0])
    logits = model.train()(codes, labels)
    is_dropped = (logits - dropped).abs().amax(dim=(1, 2, 3)) < 1e-5
    is_kept = (logits - kept).abs().amax(dim=(1, 2, 3)) < 1e-5
    assert (is_dropped ^ is_kept).all() and 0.46 < is_dropped.double().mean() < 0.54


@pytest.mark.parametrize("use_cache", [True, False])
def test_completion_keeps_what_is_given_and_draws_the_rest_as_before(use_cache):
    model, labels = random_model(5, (5, 4)), torch.tensor([0, 2, 1])
    whole = codes_of(model, 3, labels)
    # What a sample begins with leads to the same sample: every position has its own uniform number.
    for known in (0, 1, 4, 7, 8, 20):
        given = whole.clone().flatten(1)
        given[:, known:] = -1
        assert torch.equal(codes_of(model, 3, labels, given=given.view_as(whole), use_cache=use_cache), whole)
    # Another beginning leads elsewhere.
    given = torch.full_like(whole, -1)
    given[:, :2] = (whole[:, :2] + 1) % 7
    found = codes_of(model, 3, labels, given=given, use_cache=use_cache)
    assert torch.equal(found[:, :2], given[:, :2]) and not torch.equal(found[:, 2:], whole[:, 2:])
    # Each sample has its own given codes, anywhere.
    given = torch.where(torch.rand(whole.shape) < 0.5, torch.randint(7, whole.shape), -1)
    found = codes_of(model, 3, labels, given=given, use_cache=use_cache)
    assert torch.equal(found[given >= 0], given[given >= 0])


def test_completion_is_the_same_with_guidance():
    model, labels = random_model(6, (4, 4), label_dropout=0.2), torch.tensor([0, 2])
    given = torch.full((2, 4, 4), -1)
    given[:, 0], given[1, 1, :2] = 3, 5
    cached, full = (
        codes_of(model, 2, labels, given=given, guidance_scale=2.0, use_cache=use_cache) for use_cache in (True, False)
    )
    assert torch.equal(cached, full)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (torch.zeros(1, 2, 3, dtype=torch.int64), r"int64 \(2, 2, 3\), got torch.int64 \(1, 2, 3\)"),
        (torch.zeros(2, 2, 3), "got torch.float32"),
        (torch.full((2, 2, 3), 7), "0 to 6, or -1 to be drawn, got 7 to 7"),
        (torch.full((2, 2, 3), -2), "got -2 to -2"),
    ],
)
def test_given_codes_that_do_not_fit_are_refused(given, message):
    with pytest.raises(ValueError, match=message):
        random_model(0, (2, 3)).sample(torch.tensor([0, 1]), seeded(0, 1), given=given)


@pytest.mark.parametrize("use_cache", [True, False])
def test_a_callback_replaces_the_code_of_its_position_and_what_follows_knows(use_cache):
    model, labels = random_model(8, (3, 4)), torch.tensor([0, 1])

    def on_position(position, codes):
        return torch.where(torch.tensor(position == 1), (codes + 1) % 7, codes)

    plain = codes_of(model, 2, labels)
    given = torch.full_like(plain, -1)
    given[:, 0, 1] = (plain[:, 0, 1] + 1) % 7
    found = codes_of(model, 2, labels, on_position=on_position, use_cache=use_cache)
    assert torch.equal(found, codes_of(model, 2, labels, given=given))
    assert not torch.equal(found.flatten(1)[:, 2:], plain.flatten(1)[:, 2:])


def test_weights_of_half_the_width_are_sampled():
    model, labels = random_model(9, (3, 4)).to(torch.bfloat16), torch.tensor([0, 1])
    codes = codes_of(model, 2, labels)
    assert codes.dtype == torch.int64 and codes.min() >= 0 and codes.max() < 7


def test_bits_are_nats_over_log_2():
    model = random_model(1, (3, 3))
    codes, labels = torch.randint(7, (2, 3, 3)), torch.tensor([0, 1])
    probabilities = model(codes, labels).softmax(dim=1).gather(1, codes[:, None])[:, 0]
    torch.testing.assert_close(model.bits_per_code(codes, labels), -probabilities.log2().mean(dim=(1, 2)))


@pytest.mark.slow
def test_the_compiled_step_gives_the_same_codes():
    model, labels = random_model(10, (4, 5), layers=4), torch.tensor([0, 1, 2])
    assert torch.equal(codes_of(model, 3, labels, compile=True), codes_of(model, 3, labels))


def test_the_cache_computes_no_forward_and_without_it_there_is_one_for_each_position():
    model, labels = random_model(3, (3, 4), dropout=0.3, label_dropout=0.3), torch.tensor([0, 1])
    calls = []
    hook = model.register_forward_pre_hook(lambda *args: calls.append(args))
    cached = codes_of(model, 2, labels)
    assert calls == []
    full = codes_of(model, 2, labels, use_cache=False)
    assert len(calls) == 12
    # In training too a sample is drawn in evaluation mode, and the mode stays.
    model.train()
    for use_cache in (True, False):
        assert torch.equal(codes_of(model, 2, labels, use_cache=use_cache), cached) and model.training
    hook.remove()
    assert torch.equal(cached, full)


@pytest.mark.parametrize("number", [0, 1, 4])
def test_other_than_a_generator_per_sample_is_refused(number):
    with pytest.raises(ValueError, match=f"3 samples need as many generators, got {number}"):
        random_model(0, (2, 2)).sample(torch.tensor([0, 1, 2]), seeded(*range(number)))


def test_weights_that_are_elsewhere_are_refused():
    model = cpu_offload(random_model(0, (2, 2)))
    with pytest.raises(ValueError, match="use_cache=False"):
        codes_of(model, 1, torch.tensor([0]))
    assert codes_of(model, 1, torch.tensor([0]), use_cache=False).shape == (1, 2, 2)


@pytest.mark.parametrize("options", [{"guidance_scale": float("inf")}, {"guidance_scale": -1.0}])
def test_a_scale_that_is_none_is_refused(options):
    with pytest.raises(ValueError, match="at least 0 and finite"):
        random_model(0, (2, 2), label_dropout=0.1).sample(torch.tensor([0]), seeded(0), **options)


def test_a_temperature_near_zero_is_greedy():
    model, labels = random_model(3, (3, 4)), torch.tensor([0, 1])
    assert torch.equal(codes_of(model, 2, labels, temperature=1e-40), codes_of(model, 2, labels, top_k=1))


@pytest.mark.slow  # of this CPU's kernels: others may want more rows than FEWEST_ROWS
@torch.no_grad()
def test_logits_are_the_same_bits_in_every_batch():
    # Codes differ where a uniform number falls between two roundings: of 50,000 grids some would.
    model = random_model(3, (3, 4), codes=64, layers=4, channels=32)
    codes, labels = torch.randint(64, (70, 3, 4)), torch.arange(70) % 3

    def logits(number):
        cache, found = PixelCNNCache(model.layers, model.embedding, model.head, labels[:number], 4), []
        for row in range(3):
            cache.begin_row()
            for column in range(4):
                found.append(cache.logits(column))
                cache.append(column, codes[:number, row, column])
        return torch.stack(found, dim=1)

    whole = logits(70)
    for number in (1, 2, 3, 5, 7, 16, 17, 64):
        assert torch.equal(logits(number), whole[:number])
