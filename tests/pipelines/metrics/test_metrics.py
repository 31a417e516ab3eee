import math
import random

import numpy as np
import pytest
import torch
from images import Images
from places import GOLDEN
from scipy.ndimage import gaussian_filter
from skimage.metrics import peak_signal_noise_ratio, structural_similarity
from torch import nn
from torch.utils.data import Dataset, TensorDataset

from pipelines.metrics import (
    FeatureMoments,
    ReconstructionMetrics,
    distribution_metrics,
    distributions,
    extract_features,
    generation_metrics,
    inception_score,
    l1,
    lpips,
    moments_of,
    pair_metrics,
    psnr,
    ssim,
    to_uint8,
)
from pipelines.metrics.digits import DigitExtractor, train_digit_classifier
from pipelines.metrics.extractors import Extractor
from tokenizer.data import DataConfig, load_images


def golden_images(name):
    golden = np.load(GOLDEN / f"image_metrics_{name}.npz")
    originals, distorted = (torch.from_numpy(golden[key]).permute(0, 3, 1, 2) for key in ("images", "distorted"))
    return originals, distorted, golden


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_image_metrics_equal_the_golden_numbers(name):
    originals, distorted, golden = golden_images(name)
    np.testing.assert_allclose(psnr(originals, distorted).numpy(), golden["psnr"], rtol=1e-7)
    np.testing.assert_allclose(ssim(originals, distorted).numpy(), golden["ssim_uniform11"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(l1(originals, distorted).numpy(), golden["l1"], rtol=1e-6)


@pytest.mark.parametrize("name", ["mnist", "cifar10"])
def test_psnr_and_both_windows_of_ssim_equal_scikit_image(name):
    originals, distorted, _ = golden_images(name)
    gaussian = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False}
    windows = {"uniform": {}, "gaussian": gaussian}
    for window, options in windows.items():
        expected = [
            structural_similarity(
                *(image.permute(1, 2, 0).numpy() for image in pair),
                data_range=255,
                win_size=11,
                channel_axis=-1,
                **options,
            )
            for pair in zip(originals, distorted, strict=True)
        ]
        np.testing.assert_allclose(ssim(originals, distorted, window).numpy(), expected, rtol=0, atol=1e-10)
    expected = [
        peak_signal_noise_ratio(a.numpy(), b.numpy(), data_range=255) for a, b in zip(originals, distorted, strict=True)
    ]
    np.testing.assert_allclose(psnr(originals, distorted).numpy(), expected, rtol=1e-12)
    torch.testing.assert_close(ssim(originals, distorted), ssim(originals, distorted, "uniform"), rtol=0, atol=0)


@pytest.mark.parametrize("window", ["uniform", "gaussian"])
def test_ssim_of_images_that_are_not_square_is_that_of_the_images_turned(window):
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randint(256, (2, 3, 12, 19), generator=generator, dtype=torch.uint8) for _ in range(2))
    torch.testing.assert_close(ssim(a, b, window), ssim(a.mT, b.mT, window), rtol=1e-12, atol=0)
    pair = [side[1].permute(1, 2, 0).numpy() for side in (a, b)]
    options = {"gaussian_weights": True, "sigma": 1.5, "use_sample_covariance": False} if window == "gaussian" else {}
    expected = structural_similarity(*pair, data_range=255, win_size=11, channel_axis=-1, **options)
    assert ssim(a, b, window)[1].item() == pytest.approx(expected, abs=1e-10)


def test_ssim_equals_the_formula_window_by_window():
    generator = torch.Generator().manual_seed(0)
    a = torch.randint(256, (1, 2, 13, 12), generator=generator, dtype=torch.uint8)
    b = torch.randint(256, (1, 2, 13, 12), generator=generator, dtype=torch.uint8)
    values = []
    for channel in range(2):
        for top in range(3):
            for left in range(2):
                x, y = (i[0, channel, top : top + 11, left : left + 11].double().numpy().ravel() for i in (a, b))
                cov = np.cov(x, y)
                c1, c2 = 2.55**2, 7.65**2
                contrast = (2 * cov[0, 1] + c2) / (cov[0, 0] + cov[1, 1] + c2)
                values.append((2 * x.mean() * y.mean() + c1) / (x.mean() ** 2 + y.mean() ** 2 + c1) * contrast)
    assert ssim(a, b).item() == pytest.approx(np.mean(values), rel=1e-12)


def test_identical_images_and_black_against_white():
    images = golden_images("cifar10")[0]
    assert psnr(images, images).tolist() == [math.inf] * len(images)
    assert l1(images, images).tolist() == [0.0] * len(images)
    torch.testing.assert_close(ssim(images, images), torch.ones(len(images), dtype=torch.float64))
    black = torch.zeros(1, 1, 11, 11, dtype=torch.uint8)
    assert psnr(black, black + 255).item() == 0.0
    assert l1(black, black + 255).item() == 1.0


@pytest.mark.parametrize("metric", [psnr, ssim, l1])
def test_pairs_that_cannot_be_compared_are_refused(metric):
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    for a, b in (
        (images, images[:1]),
        (images.float(), images.float()),
        (images, images.float()),
        (images[0], images[0]),
    ):
        with pytest.raises(ValueError, match="uint8"):
            metric(a, b)


def test_ssim_refuses_images_smaller_than_its_window():
    images = torch.zeros(2, 3, 10, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="10x16 are smaller than the 11-pixel window"):
        ssim(images, images)
    with pytest.raises(ValueError, match="no window 'hann'; take uniform or gaussian"):
        ssim(images, images, "hann")


def test_to_uint8_rounds_and_clamps():
    levels = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16)
    images = levels.float() / 127.5 - 1
    assert torch.equal(to_uint8(images), levels)
    assert torch.equal(to_uint8(images + 0.9 / 255), levels)  # less than half a level away, on both sides
    assert torch.equal(to_uint8(images - 0.9 / 255), levels)
    assert to_uint8(torch.tensor([[[[-7.0, 1.01, 3.0]]]])).tolist() == [[[[0, 255, 255]]]]


def test_to_uint8_refuses_what_is_no_image():
    for value in (math.nan, math.inf, -math.inf):
        with pytest.raises(ValueError, match="1 image values are NaN or infinite"):
            to_uint8(torch.tensor([[[[0.0, value]]]]))
    with pytest.raises(ValueError, match="uint8"):
        to_uint8(torch.zeros(1, 1, 2, 2, dtype=torch.uint8))


def reconstruction_result(batch_size, codes, images=24):
    originals, distorted, _ = golden_images("mnist")
    stream = ReconstructionMetrics(codebook_size=16)
    for start in range(0, images, batch_size):
        rows = slice(start, min(start + batch_size, images))
        stream.update(originals[rows], distorted[rows], codes[rows])
    return stream.result()


def test_reconstruction_metrics_are_per_sample_means_for_any_batch_size():
    codes = torch.randint(11, (24, 7, 7), generator=torch.Generator().manual_seed(0))
    golden = golden_images("mnist")[2]
    expected = {key: golden[name].mean() for key, name in (("psnr", "psnr"), ("ssim", "ssim_uniform11"), ("l1", "l1"))}
    frequencies = np.bincount(codes.flatten()) / codes.numel()
    expected |= {"usage": 11 / 16, "perplexity": np.exp(-(frequencies * np.log(frequencies)).sum()), "images": 24}
    whole = reconstruction_result(24, codes)
    assert whole == pytest.approx(expected, rel=1e-6)
    for batch_size in (1, 5, 23):  # 5 and 23 leave a smaller last batch
        assert reconstruction_result(batch_size, codes) == pytest.approx(whole, rel=1e-12)


def test_usage_and_perplexity_are_of_the_split_and_not_means_over_batches():
    codes = torch.arange(8).view(8, 1, 1)  # each image has a code of its own
    result = reconstruction_result(1, codes, images=8)
    assert result["usage"] == 0.5
    assert result["perplexity"] == pytest.approx(8.0)


def test_one_exact_reconstruction_makes_the_mean_psnr_infinite():
    images, distorted, _ = golden_images("cifar10")
    stream = ReconstructionMetrics(codebook_size=4)
    stream.update(images[:2], torch.stack([images[0], distorted[1]]), torch.zeros(2, 8, 8, dtype=torch.int64))
    result = stream.result()
    assert result["psnr"] == math.inf
    assert math.isfinite(result["ssim"]) and result["ssim"] < 1


def test_reconstruction_metrics_refuse_nothing_and_mismatched_codes():
    stream = ReconstructionMetrics(codebook_size=4)
    with pytest.raises(ValueError, match="no image was measured"):
        stream.result()
    images = torch.zeros(2, 3, 16, 16, dtype=torch.uint8)
    with pytest.raises(ValueError, match="codes of 3 images came with 2 originals"):
        stream.update(images, images, torch.zeros(3, 4, dtype=torch.int64))


class Difference(nn.Module):
    """In place of LPIPS: the mean absolute difference of what it is given."""

    name = "lpips-of-test"

    def __init__(self):
        super().__init__()
        self.register_buffer("shift", torch.zeros(1, dtype=torch.float64))

    def forward(self, images, reconstructions):
        assert images.dtype == reconstructions.dtype == self.shift.dtype
        self.seen = images
        return (images - reconstructions).abs().mean(dim=(1, 2, 3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_lpips_sees_images_from_minus_one_to_one_in_its_own_precision(dtype):
    originals, distorted, _ = golden_images("cifar10")
    network = Difference().to(dtype)
    found = lpips(originals, distorted, network)
    assert found.dtype == torch.float64
    torch.testing.assert_close(found, 2 * l1(originals, distorted), rtol=1e-5, atol=0)
    assert network.seen.min() == -1 and network.seen.max() == 1
    with pytest.raises(ValueError, match="use to_uint8"):
        lpips(originals.float(), distorted.float(), network)


def test_pair_metrics_are_named_by_their_window_and_network():
    originals, distorted, _ = golden_images("cifar10")
    plain = pair_metrics(originals, distorted)
    assert list(plain) == ["psnr", "ssim", "l1"]
    full = pair_metrics(originals, distorted, Difference(), "gaussian")
    assert list(full) == ["psnr", "ssim-gaussian", "l1", "lpips-of-test"]
    assert all(values.shape == (24,) and values.dtype == torch.float64 for values in (plain | full).values())
    assert torch.equal(plain["ssim"], ssim(originals, distorted))
    assert torch.equal(full["ssim-gaussian"], ssim(originals, distorted, "gaussian"))
    assert not torch.equal(plain["ssim"], full["ssim-gaussian"])


def test_reconstruction_metrics_carry_window_and_network_and_take_what_was_measured_elsewhere():
    originals, distorted, _ = golden_images("cifar10")
    codes = torch.arange(24).view(24, 1) % 5
    network = Difference()
    updated, added = (ReconstructionMetrics(8, network, "gaussian") for _ in range(2))
    for rows in (slice(0, 10), slice(10, 24)):
        updated.update(originals[rows], distorted[rows], codes[rows])
        counts = torch.bincount(codes[rows].flatten(), minlength=8)
        added.add(pair_metrics(originals[rows], distorted[rows], network, "gaussian"), counts)
    result = updated.result()
    assert added.result() == result
    assert updated.counts.tolist() == [5, 5, 5, 5, 4, 0, 0, 0]
    assert set(result) == {"psnr", "ssim-gaussian", "l1", "lpips-of-test", "usage", "perplexity", "images"}
    assert result["lpips-of-test"] == pytest.approx(2 * result["l1"], rel=1e-12)


class Indexed(Dataset):
    """Images that say which row of a table their features are: (table, row // 256, row % 256) in the first pixels."""

    def __init__(self, table, length):
        self.table, self.length = table, length

    def __len__(self):
        return self.length

    def __getitem__(self, row):
        image = torch.zeros(3, 2, 2, dtype=torch.uint8)
        image[:, 0, 0] = torch.tensor([self.table, row // 256, row % 256])
        return image


class Table(Extractor):
    """Features and logits that are given: two tables, samples' and reference's."""

    def __init__(self, features, logits=None, is_fid=False):
        super().__init__("table", "0123abcd" * 8, smallest=2, input_text="as it is", is_fid=is_fid)
        self.features, self.logits = features, logits
        self.scale = nn.Parameter(torch.ones((), dtype=torch.float64), requires_grad=False)

    def forward(self, pixels):
        table, high, low = pixels[:, :, 0, 0].long().unbind(dim=1)
        places = list(zip(table.tolist(), (256 * high + low).tolist(), strict=True))
        layers = (self.features, self.logits)
        features, logits = (layer and torch.stack([layer[table][row] for table, row in places]) for layer in layers)
        return features, logits


def run(extractor, samples, reference, **kwargs):
    return generation_metrics(Indexed(0, samples), Indexed(1, reference), extractor, **kwargs)


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_generation_metrics_equal_the_golden_numbers(monkeypatch):
    golden = np.load(GOLDEN / "feature_metrics.npz")
    fake, real, logits = (torch.from_numpy(golden[key]) for key in ("fake", "real", "logits"))
    assert golden["neighbours"] == 3
    for result in (
        run(Table((fake, real)), len(fake), len(real), batch_size=100),
        {f"{name}[table]": value for name, value in distribution_metrics(fake, None, real).items()},
    ):
        assert list(result) == ["frechet_distance[table]", "precision[table]", "recall[table]"]
        assert result["frechet_distance[table]"] == pytest.approx(float(golden["frechet"]), rel=1e-6)
        assert result["precision[table]"] == pytest.approx(float(golden["precision"]), rel=1e-9)
        assert result["recall[table]"] == pytest.approx(float(golden["recall"]), rel=1e-9)
    monkeypatch.setattr(distributions, "inception_score", lambda logits: inception_score(logits, splits=1))
    result = run(Table((logits, logits), (logits, logits)), len(logits), 50)
    score = float(golden["inception_score_one_split"])
    assert result["inception_score[table]"] == pytest.approx(score, rel=1e-6)


def test_only_the_extractor_of_fid_leaves_its_name_out():
    features, logits = (normal(20, 4), normal(20, 4, seed=1)), (normal(20, 10), normal(20, 10))
    fid = run(Table(features, logits, is_fid=True), 20, 15)
    other = run(Table(features, logits), 20, 15)
    assert list(fid) == ["fid", "precision", "recall", "inception_score", "inception_score_std"]
    assert list(other) == [f"{name}[table]".replace("fid", "frechet_distance") for name in fid]
    assert list(fid.values()) == list(other.values())
    assert list(run(Table(features, is_fid=True), 20, 15)) == ["fid", "precision", "recall"]


def test_precision_is_of_the_samples_and_the_inception_score_too():
    real = normal(200, 8)
    fake = real[:1] + 1e-3 * normal(100, 8, seed=1)
    varied, alike = 50.0 * torch.eye(10).repeat(20, 1), torch.zeros(200, 10)
    result = run(Table((fake, real), (alike, varied)), 100, 200)
    assert result["precision[table]"] == 1.0 and result["recall[table]"] <= 0.01
    assert result["inception_score[table]"] == pytest.approx(1.0)
    assert run(Table((real, fake), (varied, alike)), 200, 100)["inception_score[table]"] > 8
    same = run(Table((real, real)), 200, 200)
    assert same["frechet_distance[table]"] == pytest.approx(0, abs=1e-9)
    assert same["precision[table]"] == same["recall[table]"] == 1.0


def test_moments_of_a_larger_reference_take_the_place_of_the_features():
    features, reference, larger = normal(40, 4), normal(30, 4, seed=1), normal(100, 4, seed=2) + 1
    moments = FeatureMoments()
    moments.update(larger)
    expected = distribution_metrics(features, None, larger)["frechet_distance"]
    assert distribution_metrics(features, None, None, moments) == {"frechet_distance": expected}
    both = distribution_metrics(features, None, reference, moments)
    alone = distribution_metrics(features, None, reference)
    assert both == alone | {"frechet_distance": expected} != alone


def test_moments_of_many_features_are_those_of_all_at_once():
    features = normal(4096 + 100, 3) + torch.arange(4196)[:, None] / 1000
    found = moments_of(features)
    assert found.count == 4196
    np.testing.assert_allclose(found.covariance, np.cov(features.numpy(), rowvar=False), rtol=1e-10)


def digit_images(split, number):
    dataset = load_images(DataConfig(name="digits"), split)
    return to_uint8(torch.stack([dataset[index]["images"] for index in range(number)]))


@pytest.fixture(scope="module")
def digit_extractor():
    return DigitExtractor(train_digit_classifier(steps=100)).double()


def test_no_batch_size_changes_a_result_and_the_process_is_left_alone(digit_extractor, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    samples, reference = Images(digit_images("test", 70)), Images(digit_images("train", 80))
    states = torch.get_rng_state(), np.random.get_state()[1].copy(), random.getstate()  # noqa: NPY002
    first = generation_metrics(samples, reference, digit_extractor)
    for batch_size in (1, 7, 64):
        found = generation_metrics(samples, reference, digit_extractor, batch_size=batch_size)
        assert found == pytest.approx(first, rel=1e-9)
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert random.getstate() == states[2]
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_more_blur_of_digits_is_worse_by_every_metric(digit_extractor):
    originals = digit_images("test", 100)
    features, _ = extract_features(Images(originals), digit_extractor)
    worse = {"psnr": -1, "ssim": -1, "l1": 1, "ssim-gaussian": -1, "frechet_distance": 1}
    found = {name: [] for name in worse}
    for sigma in (0.5, 1.0, 1.5, 2.0, 3.0):
        blurred = torch.from_numpy(gaussian_filter(originals.numpy(), (0, 0, sigma, sigma)))
        pairs = pair_metrics(originals, blurred) | pair_metrics(originals, blurred, ssim_window="gaussian")
        for name, values in pairs.items():
            found[name].append(values.mean().item())
        blurred_features, _ = extract_features(Images(blurred), digit_extractor)
        found["frechet_distance"].append(distribution_metrics(blurred_features, None, features)["frechet_distance"])
    for name, direction in worse.items():
        assert (direction * np.diff(found[name]) > 0).all(), (name, found[name])


def test_features_come_in_the_order_of_the_images_in_single_precision_on_the_cpu():
    table = normal(300, 4)
    features, logits = extract_features(Indexed(0, 300), Table((table,), (2 * table,)), batch_size=7)
    assert torch.equal(features, table.float()) and torch.equal(logits, (2 * table).float())
    assert extract_features(Indexed(0, 30), Table((table,)))[1] is None


def test_too_few_images_are_refused():
    features, logits = (normal(20, 4),) * 2, (normal(20, 10),) * 2
    with pytest.raises(ValueError, match="9 images are too few for 10 splits"):
        run(Table(features, logits), 9, 20)
    with pytest.raises(ValueError, match="3 reference are too few for 3 neighbours; pass at least 4"):
        run(Table(features, logits), 20, 3)
    with pytest.raises(ValueError, match="3 samples are too few for 3 neighbours"):
        run(Table(features), 3, 20)
    for samples, reference in ((1, 20), (20, 1)):
        with pytest.raises(ValueError, match="2 images or more, got 1"):
            run(Table(features, logits), samples, reference)
    for samples, reference in ((0, 20), (20, 0)):
        with pytest.raises(ValueError, match="there are no images"):
            run(Table(features, logits), samples, reference)


def test_images_of_another_kind_are_refused():
    extractor = Table((normal(20, 4),) * 2)
    good = Indexed(0, 20)
    for wrong, reason in (
        (Images(torch.zeros(20, 3, 8, 8)), r"torch.float32 \(20, 3, 8, 8\), not uint8"),
        (Images(torch.zeros(20, 2, 8, 8, dtype=torch.uint8)), r"torch.uint8 \(20, 2, 8, 8\), not uint8"),
        (TensorDataset(torch.zeros(20, 3, 8, 8, dtype=torch.uint8)), "the images are list, not uint8 tensors"),
        (Images(torch.zeros(20, 3, 1, 1, dtype=torch.uint8)), "images of 1x1 are too small for table"),
    ):
        for sets in ((wrong, good), (good, wrong)):
            with pytest.raises(ValueError, match=reason):
                generation_metrics(*sets, extractor)


def test_features_and_logits_that_are_not_finite_are_refused():
    good = normal(20, 4)
    for value in (math.nan, math.inf):
        bad = good.clone()
        bad[7, 2] = value
        for tables in ((bad, good), (good, bad)):
            with pytest.raises(ValueError, match="features hold NaN or infinity"):
                run(Table(tables), 20, 20)
        with pytest.raises(ValueError, match="not finite floating point"):
            run(Table((good, good), (bad, bad)), 20, 20)


def test_logits_so_far_apart_that_probabilities_are_zero_still_give_a_score():
    features = normal(40, 4)
    logits = 1e4 * torch.eye(10).repeat(4, 1)
    result = run(Table((features, features), (logits, logits)), 40, 40)
    assert 1 < result["inception_score[table]"] <= 4  # splits of four
