import math
from dataclasses import replace

import pytest
import torch
from fake_cuda import FakeCuda
from launches import Launches

from tokenizer.functional import tiles
from tokenizer.functional.noise import ImageNoise, _mix, _signed, noise_key

CPU = torch.device("cpu")
KINDS = ["normal", "uniform", "gumbel"]
DTYPES = [torch.float32, torch.float64]


def mixed(word):
    """SplitMix64's mixer of a Python integer."""
    word %= 2**64
    word = (word ^ word >> 30) * 0xBF58476D1CE4E5B9 % 2**64
    word = (word ^ word >> 27) * 0x94D049BB133111EB % 2**64
    return word ^ word >> 31


def drawn(kind, shape, dtype=torch.float32, seed=3, first_image=0, draws=1):
    noise = ImageNoise(shape[0], CPU, seed, first_image)
    for _ in range(draws):
        found = getattr(noise, kind)(torch.empty(shape, dtype=dtype))
    return found


def test_the_mixer_is_splitmix64s():
    # The first outputs of the authors' reference code for the seed 0.
    expected = [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F, 0xF88BB8A8724C81EC, 0x1B39896A51A8749B]
    states = torch.tensor([_signed(step * 0x9E3779B97F4A7C15 % 2**64) for step in range(1, 6)])
    assert _mix(states, torch.empty_like(states)).tolist() == [_signed(word) for word in expected]
    assert noise_key(0x9E3779B97F4A7C15).item() == _signed(expected[0])


def test_the_words_are_a_function_of_seed_image_and_place_that_never_changes():
    noise = ImageNoise(2, CPU, 5, 7)
    found = noise.words(3), noise.words(1)
    assert found[0].tolist() == [
        [-2062477813633881561, -4088182673422120631, 4350625637148927920],
        [-3941295262980311290, 8581618543853695581, -5233608802676201439],
    ]
    assert found[1].tolist() == [[3601237093396955774], [2528026717009676197]]
    weyl = 0x9E3779B97F4A7C15
    for draw, words in enumerate(found):
        for image, row in enumerate(words.tolist()):
            start = mixed(mixed(5) + (7 + image) * weyl)
            assert row == [_signed(mixed(start + (draw * 2**40 + place) * weyl)) for place in range(len(row))]


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_any_split_draws_alike_whatever_the_tiles(kind, dtype, monkeypatch):
    shape = (7, 5, 3)  # an odd number of elements
    whole = drawn(kind, shape, dtype)
    for words in (1, 3, 8, 11, 1 << 20):
        monkeypatch.setitem(tiles.TILES, "cpu", replace(tiles.TILES["cpu"], noise=words))
        parts = [drawn(kind, (j - i, 5, 3), dtype, first_image=i) for i, j in ((0, 1), (1, 5), (5, 7))]
        # How elements fall into vectors of a processor may change their last bit.
        torch.testing.assert_close(torch.cat(parts), whole, rtol=1e-5 if dtype == torch.float32 else 1e-13, atol=1e-6)
    wide = drawn(kind, (2, 900_001))  # more than one tile of a CPU
    monkeypatch.setitem(tiles.TILES, "cpu", tiles.ACCELERATOR_TILES)
    torch.testing.assert_close(drawn(kind, (2, 900_001)), wide, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("kind", KINDS)
def test_noise_has_its_distribution(kind, dtype):
    found = drawn(kind, (100, 9_999), dtype).double().flatten().sort().values
    assert found.isfinite().all() and found.dtype == torch.float64
    below = {
        "normal": lambda x: torch.special.ndtr(x),
        "uniform": lambda x: x,
        "gumbel": lambda x: torch.exp(-torch.exp(-x)),
    }[kind](found)
    number = len(found)
    distance = (below - (torch.arange(number) + 0.5) / number).abs().max().item()
    assert distance < 1.95 / math.sqrt(number)  # Kolmogorov and Smirnov: one in a thousand is beyond
    centred = found - {"normal": 0.0, "uniform": 0.5, "gumbel": 0.5772156649015329}[kind]
    variance, fourth = {"normal": (1, 3), "uniform": (1 / 12, 1 / 80), "gumbel": (math.pi**2 / 6, 14.61)}[kind]
    assert abs(centred.mean()) < 4 * math.sqrt(variance / number)
    assert abs(centred.square().mean() - variance) < 4 * math.sqrt((fourth - variance**2) / number)
    if kind == "uniform":
        assert found[0] >= 0 and found[-1] < 1


@pytest.mark.parametrize("other", ["image", "element", "seed", "draw", "far image"])
@pytest.mark.parametrize("kind", KINDS)
def test_neighbours_are_independent(kind, other):
    shape = (64, 4096)
    one = drawn(kind, shape)
    two = {
        "image": lambda: drawn(kind, shape, first_image=1),
        "element": lambda: one.roll(1, 1),
        "seed": lambda: drawn(kind, shape, seed=4),
        "draw": lambda: drawn(kind, shape, draws=2),
        "far image": lambda: drawn(kind, shape, first_image=1 << 40),
    }[other]()
    a, b = one.double().flatten(), two.double().flatten()
    for power in (1, 2):
        correlation = torch.corrcoef(torch.stack([(a - a.mean()) ** power, (b - b.mean()) ** power]))[0, 1]
        assert abs(correlation) < 4.5 / math.sqrt(one.numel())
    assert (one == two).double().mean() < 1e-4


def test_the_two_numbers_of_a_word_are_independent():
    whole = drawn("normal", (256, 4096)).double()
    for power in (1, 2):  # they share a radius
        pairs = torch.stack([half.flatten() ** power for half in whole.chunk(2, dim=1)])
        assert abs(torch.corrcoef(pairs)[0, 1]) < 4.5 / math.sqrt(pairs.shape[1])


@pytest.mark.parametrize(("kind", "least", "largest"), [("normal", -7.6, 7.6), ("gumbel", -2.82, 22.2)])
def test_the_extreme_words_give_finite_noise_far_in_the_tails(kind, least, largest, monkeypatch):
    extremes = torch.tensor([0, -1, 1 << 63 - 1, -(1 << 63), (1 << 63) - 1, (1 << 32) - 1, 1 << 31])

    def fill(self, words, spare, draw, rows, columns):
        words.copy_(extremes.repeat(words.numel())[: words.numel()].view(words.shape))

    monkeypatch.setattr(ImageNoise, "_fill", fill)
    for dtype in DTYPES:
        found = drawn(kind, (2, 70), dtype)
        assert found.isfinite().all()
        if dtype == torch.float32:
            assert least < found.min() and found.max() < largest and found.max() > 0.9 * largest


def test_the_noise_of_half_precision_is_that_of_float32_rounded():
    assert torch.equal(drawn("normal", (3, 8), torch.bfloat16), drawn("normal", (3, 8)).bfloat16())


@pytest.mark.parametrize("kind", KINDS)
def test_empty_noise_is_empty(kind):
    for shape in ((0, 4), (3, 0), (0, 0)):
        assert drawn(kind, shape).shape == shape


@pytest.mark.parametrize("kind", KINDS)
def test_the_number_of_launches_does_not_depend_on_the_batch(kind):
    counts = set()
    for images in (1, 1024):
        with Launches() as launches:
            getattr(ImageNoise(images, torch.device("meta"), 1, 5), kind)(torch.empty(images, 64, 64, device="meta"))
        counts.add(launches.total)
    assert len(counts) == 1 and counts.pop() < 60, launches


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", [3, None])
def test_the_host_does_not_wait_for_noise(kind, seed):
    with FakeCuda() as cuda:
        like = torch.empty(3, 4, device="cuda:0")
        cuda.refuses_copies = True
        assert getattr(ImageNoise(3, like.device, seed, 5), kind)(like).device == like.device


def test_without_a_seed_the_global_generator_decides():
    found = []
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        found.append(ImageNoise(2, CPU).normal(torch.empty(2, 9)))
    assert torch.equal(found[0], found[1]) and not torch.equal(found[0], found[2])


@pytest.mark.slow
def test_compiled_code_draws_alike_and_is_compiled_once_for_all_seeds():
    def draw(like, key, first_image):
        noise = ImageNoise(len(like), like.device, key, first_image)
        return [*(getattr(noise, kind)(like) for kind in KINDS), noise.words(3), noise.integers(1000)]

    torch.compiler.reset()
    compiled, like = torch.compile(draw, fullgraph=True), torch.empty(4, 6, 5)
    for seed in range(4):
        with torch.compiler.set_stance("fail_on_recompile" if seed else "default"):
            arguments = like, noise_key(seed), torch.tensor(3 * seed)
            for found, expected in zip(compiled(*arguments), draw(*arguments), strict=True):
                torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
