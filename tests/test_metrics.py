import math
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import scipy.linalg
import torch
import torch_fidelity
from torch.utils.data import Dataset, TensorDataset
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3

from pipelines import metrics
from pipelines.metrics import (
    Extractor,
    ReconstructionMetrics,
    generation_metrics,
    inception_extractor,
    l1,
    psnr,
    ssim,
    to_uint8,
)

GOLDEN = Path(__file__).parent / "golden"
INCEPTION_FILE = "weights-inception-2015-12-05-6726825d.pth"


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


@pytest.fixture
def table_extractor(monkeypatch):
    """Registers an extractor whose features and logits are given: two tables, samples' and reference's."""

    def register(features, logits):
        class TableExtractor(torch_fidelity.FeatureExtractorBase):
            def __init__(self, name, features_list, **kwargs):
                super().__init__(name, features_list)

            @staticmethod
            def get_provided_features_list():
                return "features", "logits"

            @staticmethod
            def can_be_compiled():
                return False

            def forward(self, images):
                table, high, low = images[:, :, 0, 0].long().unbind(dim=1)
                layers = {"features": features, "logits": logits}
                rows = [
                    {name: layers[name][t][r] for name in layers}
                    for t, r in zip(table.tolist(), (256 * high + low).tolist(), strict=True)
                ]
                return tuple(torch.stack([row[name] for row in rows]) for name in self.features_list)

        monkeypatch.setitem(torch_fidelity.registry.FEATURE_EXTRACTORS_REGISTRY, "table-of-test", TableExtractor)
        return Extractor("table", "table-of-test", "features", "logits", None, "0123abcd")

    return register


def run(extractor, samples, reference, **kwargs):
    return generation_metrics(Indexed(0, samples), Indexed(1, reference), extractor, **kwargs)


def frechet_distance(a, b):
    """In float64, by the definition."""
    root = scipy.linalg.sqrtm(np.cov(a, rowvar=False) @ np.cov(b, rowvar=False)).real
    means = a.mean(axis=0) - b.mean(axis=0)
    return means @ means + np.trace(np.cov(a, rowvar=False) + np.cov(b, rowvar=False) - 2 * root)


def test_generation_metrics_equal_the_golden_numbers(table_extractor, monkeypatch):
    golden = np.load(GOLDEN / "feature_metrics.npz")
    fake, real, logits = (torch.from_numpy(golden[key]) for key in ("fake", "real", "logits"))
    assert golden["neighbours"] == metrics.NEIGHBOURS
    result = run(table_extractor((fake, real), (logits, logits)), len(fake), len(real), batch_size=100)
    assert result["frechet_distance[table]"] == pytest.approx(float(golden["frechet"]), rel=1e-9)
    assert result["precision[table]"] == pytest.approx(float(golden["precision"]), rel=1e-6)  # a float32 mean
    assert result["recall[table]"] == pytest.approx(float(golden["recall"]), rel=1e-6)

    monkeypatch.setattr(metrics, "INCEPTION_SCORE_SPLITS", 1)
    features = torch.randn(len(logits), 4, generator=torch.Generator().manual_seed(0))
    result = run(table_extractor((features, features), (logits, logits)), len(logits), 50)
    score = float(golden["inception_score_one_split"])
    assert result["inception_score[table]"] == pytest.approx(score, rel=1e-9)


def test_frechet_distance_equals_its_definition_and_is_zero_for_one_set(table_extractor):
    generator = torch.Generator().manual_seed(1)
    fake = torch.randn(120, 12, generator=generator, dtype=torch.float64).cumsum(dim=1)
    real = torch.randn(150, 12, generator=generator, dtype=torch.float64) + 0.5
    logits = torch.randn(150, 10, generator=generator, dtype=torch.float64)
    result = run(table_extractor((fake, real), (logits, logits)), 120, 150)
    assert result["frechet_distance[table]"] == pytest.approx(frechet_distance(fake.numpy(), real.numpy()), rel=1e-9)
    assert result["frechet_distance[table]"] > 1

    result = run(table_extractor((real, real), (logits, logits)), 150, 150)
    assert abs(result["frechet_distance[table]"]) < 1e-9
    assert result["precision[table]"] == result["recall[table]"] == 1.0


def test_collapsed_samples_are_precise_and_recall_nothing(table_extractor):
    generator = torch.Generator().manual_seed(2)
    real = torch.randn(200, 8, generator=generator, dtype=torch.float64)
    fake = real[:1] + 1e-3 * torch.randn(100, 8, generator=generator, dtype=torch.float64)
    logits = torch.zeros(200, 10, dtype=torch.float64)
    result = run(table_extractor((fake, real), (logits, logits)), 100, 200)
    assert result["precision[table]"] == 1.0
    assert result["recall[table]"] <= 0.01
    assert result["inception_score[table]"] == pytest.approx(1.0)  # every image is read alike


def test_scores_of_samples_sorted_by_class_do_not_fall(table_extractor):
    logits = 50.0 * torch.eye(10, dtype=torch.float64).repeat_interleave(40, dim=0)
    features = torch.randn(400, 4, generator=torch.Generator().manual_seed(3))
    result = run(table_extractor((features, features), (logits, logits)), 400, 20)
    assert 8 < result["inception_score[table]"] <= 10  # unshuffled, each split would be one class and score 1


def test_numbers_of_other_extractors_are_never_called_fid(table_extractor):
    features, logits = torch.randn(20, 4), torch.randn(20, 10)
    result = run(table_extractor((features, features), (logits, logits)), 20, 15)
    scores = ("frechet_distance", "inception_score", "inception_score_std", "precision", "recall")
    facts = {"samples": 20, "reference_images": 15, "extractor": "table", "extractor_hash": "0123abcd"}
    assert set(result) == {f"{score}[table]" for score in scores} | set(facts)
    assert not any("fid" in name for name in result)
    assert {name: result[name] for name in facts} == facts


def test_inception_is_asked_for_every_metric_and_its_distance_is_fid(monkeypatch):
    asked = {}

    def calculate_metrics(**kwargs):
        asked.update(kwargs)
        keys = ("frechet_inception_distance", "inception_score_mean", "inception_score_std", "precision", "recall")
        return dict(zip(keys, (1.0, 2.0, 3.0, 4.0, 5.0), strict=True))

    monkeypatch.setattr(torch_fidelity, "calculate_metrics", calculate_metrics)
    extractor = Extractor(metrics.INCEPTION, metrics.INCEPTION, "2048", "logits_unbiased", Path("w.pth"), "6726825d")
    samples, reference = Indexed(0, 20), Indexed(1, 15)
    result = generation_metrics(samples, reference, extractor, batch_size=7)
    scores = {"fid": 1.0, "inception_score": 2.0, "inception_score_std": 3.0, "precision": 4.0, "recall": 5.0}
    facts = {"samples": 20, "reference_images": 15, "extractor": metrics.INCEPTION, "extractor_hash": "6726825d"}
    assert result == scores | facts
    assert asked["input1"] is samples and asked["input2"] is reference
    default_layer = FeatureExtractorInceptionV3.get_default_feature_layer_for_metric
    assert asked["feature_layer_isc"] == default_layer("isc")
    assert asked["feature_layer_fid"] == asked["feature_layer_prc"] == default_layer("fid")
    assert asked["feature_extractor"] == "inception-v3-compat" and asked["feature_extractor_weights_path"] == "w.pth"
    assert not asked["cache"] and not asked["cuda"] and not asked["verbose"] and asked["batch_size"] == 7
    assert set(asked) <= set(torch_fidelity.defaults.DEFAULTS)  # unknown arguments are ignored in silence


def test_generation_metrics_leave_random_state_caches_and_screen_alone(table_extractor, monkeypatch, tmp_path, capfd):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    features, logits = torch.randn(20, 4), torch.randn(20, 10)
    extractor = table_extractor((features, features), (logits, logits))
    state = torch.get_rng_state()
    first = run(extractor, 20, 20)
    assert torch.equal(torch.get_rng_state(), state)
    assert run(extractor, 20, 20, batch_size=3) == first
    assert not list(tmp_path.iterdir())
    assert capfd.readouterr() == ("", "")


def test_unusable_images_are_refused_before_time_is_spent(table_extractor, monkeypatch):
    features, logits = torch.randn(20, 4), torch.randn(20, 10)
    extractor = table_extractor((features, features), (logits, logits))
    monkeypatch.setattr(torch_fidelity, "calculate_metrics", lambda **kwargs: pytest.fail("time is spent"))
    with pytest.raises(ValueError, match=r"9 samples images are too few .* at least 10"):
        run(extractor, 9, 20)
    with pytest.raises(ValueError, match=r"3 reference images are too few .* at least 4"):
        run(extractor, 20, 3)
    for images, found in (
        (torch.zeros(20, 3, 8, 8), r"torch.float32 \(3, 8, 8\)"),
        (torch.zeros(20, 1, 8, 8, dtype=torch.uint8), r"torch.uint8 \(1, 8, 8\)"),
    ):
        with pytest.raises(ValueError, match=f"samples images are {found}, not uint8"):
            generation_metrics(images, Indexed(1, 20), extractor)
    with pytest.raises(ValueError, match="reference images are tuple"):
        generation_metrics(Indexed(0, 20), TensorDataset(torch.zeros(20, 3, 8, 8)), extractor)
    with pytest.raises(ValueError, match="on cpu or cuda, not on mps"):
        run(extractor, 20, 20, device="mps")


def test_a_metric_that_is_not_finite_is_an_error(table_extractor):
    features = torch.randn(20, 4)
    logits = 1e4 * torch.eye(10, dtype=torch.float64)[torch.zeros(20, dtype=torch.int64)]  # probabilities of exactly 0
    with pytest.raises(ValueError, match=r"inception_score is nan: .*table"):
        run(table_extractor((features, features), (logits, logits)), 20, 20)


@pytest.fixture
def torch_home(monkeypatch, tmp_path):
    """An empty hub folder, and no network."""

    def download(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path


def test_missing_inception_weights_are_one_line_with_file_place_and_remedy(torch_home):
    with pytest.raises(ValueError) as error:
        inception_extractor()
    message = str(error.value)
    place = str(torch_home / "hub" / "checkpoints")
    for part in (INCEPTION_FILE, place, "no network", URL_INCEPTION_V3, "--inception_weights PATH"):
        assert part in message
    assert "\n" not in message


def test_damaged_and_foreign_inception_weights_are_refused_and_never_unpickled(torch_home):
    class Payload:
        def __reduce__(self):
            return Path.touch, (torch_home / "executed",)

    given = torch_home / INCEPTION_FILE
    default = torch_home / "hub" / "checkpoints" / INCEPTION_FILE
    default.parent.mkdir(parents=True)
    for content in (b"", b"truncated", pickle.dumps(Payload())):
        given.write_bytes(content)
        default.write_bytes(content)
        for weights, path in ((given, given), (str(given), given), (None, default)):
            with pytest.raises(ValueError, match=r"truncated or another file .*; download https") as error:
                inception_extractor(weights)
            assert str(path) in str(error.value) and "\n" not in str(error.value)
    with pytest.raises(ValueError, match=r"no Inception weights absent.pth in .*--inception_weights PATH"):
        inception_extractor(torch_home / "absent.pth")
    assert not (torch_home / "executed").exists()


def test_inception_weights_are_found_or_downloaded_once(torch_home, monkeypatch):
    sha256 = "3a6eb0790f39ac87c94f3856b2dd2c5d110e6811602261a9a923d3bb23adc8b7"  # of b"data"
    monkeypatch.setattr(metrics, "INCEPTION_SHA256", sha256)
    default = torch_home / "hub" / "checkpoints" / INCEPTION_FILE
    calls = []

    def download(url, path, hash_prefix, progress):
        calls.append((url, path, hash_prefix, progress))
        Path(path).write_bytes(b"data")

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for _ in range(2):
        extractor = inception_extractor()
        assert extractor.weights == default and extractor.weights_hash == "3a6eb079"
        assert extractor.name == extractor.torch_fidelity_name == "inception-v3-compat"
    assert calls == [(URL_INCEPTION_V3, str(default), sha256, False)]
    assert URL_INCEPTION_V3.endswith(f"/{INCEPTION_FILE}")


def test_the_expected_hash_is_the_one_in_the_files_name():
    assert len(metrics.INCEPTION_SHA256) == 64
    assert INCEPTION_FILE.endswith(f"-{metrics.INCEPTION_SHA256[:8]}.pth")
