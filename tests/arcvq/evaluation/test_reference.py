"""Files of statistics, of whoever has written them: read as they are, or one line that says what is wrong."""

import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from arcvq.evaluation import reference
from arcvq.evaluation.reference import read_statistics
from pipelines.metrics.distributions import frechet_distance, moments_of
from pipelines.metrics.extractors import Extractor

D = 24


class Means(Extractor):
    """D features of an image, as files of Inception's have 2048, which do not name their extractor."""

    def __init__(self):
        super().__init__("means", "0" * 64, smallest=4, input_text="as it is", is_fid=True)

    def forward(self, pixels):
        return pixels.mean(dim=(1, 2, 3))[:, None] * torch.arange(D), None


def features(count=3 * D, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, D, generator=generator, dtype=torch.float64) * torch.logspace(0, -4, D) + 0.3


def statistics(count=3 * D):
    found = moments_of(features(count))
    return {"mu": found.mean.numpy(), "sigma": found.covariance.numpy()}


def save(folder, **arrays):
    np.savez(folder / "theirs.npz", **arrays)
    return str(folder / "theirs.npz")


def refused(path):
    with pytest.raises(ValueError) as error:
        read_statistics(path, Means())
    message = str(error.value)
    assert "\n" not in message and path in message and "arcvq evaluate statistics" in message
    return message


@pytest.mark.parametrize("count", [3 * D, 5], ids=["full", "of few images"])
@pytest.mark.parametrize("dtype", ["f8", "f4", ">f8", ">f4", "g"])
@pytest.mark.parametrize("save_as", [np.savez, np.savez_compressed])
def test_statistics_of_public_code_are_read_in_any_floating_point(tmp_path, count, dtype, save_as):
    """As ADM's and others', which hold mu and sigma and perhaps more."""
    exact = statistics(count)
    arrays = {name: value.astype(dtype) for name, value in exact.items()}
    save_as(tmp_path / "a.npz", mu_s=np.zeros(3), **arrays)
    found = read_statistics(str(tmp_path / "a.npz"), Means()).moments
    np.testing.assert_allclose(found.mean, exact["mu"], rtol=1e-6)
    np.testing.assert_allclose(found.covariance, exact["sigma"], rtol=1e-6, atol=1e-12)
    ours = moments_of(features(seed=1))
    distance = frechet_distance(ours.mean, ours.covariance, found.mean, found.covariance)
    expected = frechet_distance(ours.mean, ours.covariance, *(torch.from_numpy(exact[name]) for name in exact))
    assert distance == pytest.approx(expected, rel=1e-3)


def changed(what):
    """Statistics with one fault."""
    arrays = statistics()
    mu, sigma = arrays["mu"], arrays["sigma"]
    largest = np.linalg.eigvalsh(sigma)[-1]
    one_nan, one_apart = sigma.copy(), sigma.copy()
    one_nan[3, 3], one_apart[2, 20] = np.nan, sigma[2, 20] + 0.01 * largest
    faults = {
        "apart": {"sigma": one_apart},
        "a triangle": {"sigma": np.tril(sigma)},
        "negative": {"sigma": -sigma},
        "less than zero": {"sigma": sigma - 1e-3 * largest * np.eye(D)},
        "not square": {"sigma": sigma[:, :-1]},
        "of another size": {"sigma": sigma[:-1, :-1]},
        "one row": {"sigma": sigma[0]},
        "the variances": {"sigma": np.diag(sigma)},
        "stacked": {"sigma": sigma[None]},
        "a number": {"sigma": np.float64(1)},
        "mu of two dimensions": {"mu": mu[None]},
        "nothing": {"mu": mu[:0], "sigma": sigma[:0, :0]},
        "NaN": {"sigma": one_nan},
        "NaN in mu": {"mu": np.where(mu == mu[0], np.nan, mu)},
        "infinity": {"sigma": np.where(sigma == sigma.max(), np.inf, sigma)},
        "beyond float64": {"sigma": sigma.astype("g") * np.longdouble("1e400")},
        "complex": {"sigma": sigma.astype(complex)},
        "complex mu": {"mu": mu.astype("c8")},
        "words": {"sigma": sigma.astype("U")},
        "truth": {"mu": mu > 0},
        "objects": {"sigma": sigma.astype(object)},
        "no images": {"count": 0},
        "one image": {"count": 1},
        "fewer than none": {"count": -5},
        "half an image": {"count": 2.5},
        "NaN images": {"count": np.nan},
        "many counts": {"count": np.array([50, 50])},
        "a word for a count": {"count": "many"},
        "of a set of no images": {"mu": np.full(D, np.nan), "sigma": np.full((D, D), np.nan), "count": 0},
    }
    return {name: arrays | fault for name, fault in faults.items()}[what]


@pytest.mark.parametrize(
    ("what", "text"),
    {
        "apart": "not symmetric",
        "a triangle": "not symmetric",
        "negative": "not positive semi-definite",
        "less than zero": "not positive semi-definite",
        "not square": f"({D}, {D - 1})",
        "of another size": f"({D - 1}, {D - 1})",
        "one row": f"sigma ({D},)",
        "the variances": f"sigma ({D},)",
        "stacked": f"(1, {D}, {D})",
        "a number": "sigma ()",
        "mu of two dimensions": f"mu (1, {D})",
        "nothing": "mu (0,)",
        "NaN": "sigma",
        "NaN in mu": "mu",
        "infinity": "sigma",
        "beyond float64": "sigma",
        "complex": "complex128",
        "complex mu": "complex64",
        "words": "<U",
        "truth": "bool",
        "objects": "object",
        "no images": "0 images",
        "one image": "1 images",
        "fewer than none": "-5 images",
        "half an image": "2.5 images",
        "NaN images": "nan images",
        "many counts": "[50 50]",
        "a word for a count": "count",
        "of a set of no images": "NaN",
    }.items(),
)
def test_what_are_no_statistics_is_one_line(tmp_path, what, text):
    assert text in refused(save(tmp_path, **changed(what)))


def test_statistics_of_other_features_are_told_by_both_numbers(tmp_path):
    said = refused(save(tmp_path, mu=np.zeros(D + 1), sigma=np.eye(D + 1)))
    assert str(D + 1) in said and str(D) in said


def test_a_file_that_is_no_npz_is_one_line(tmp_path):
    whole = Path(save(tmp_path, **statistics())).read_bytes()
    damaged = bytearray(whole)
    damaged[len(whole) // 2] ^= 1
    np.save(tmp_path / "a.npy", np.zeros(3))
    for content in (b"", b"PK\x03\x04", whole[: len(whole) // 2], bytes(damaged), (tmp_path / "a.npy").read_bytes()):
        (tmp_path / "theirs.npz").write_bytes(content)
        assert "cannot be read as an npz" in refused(str(tmp_path / "theirs.npz"))
    assert "no sigma" in refused(save(tmp_path, mu=np.zeros(3), mean=np.zeros(3)))


def test_no_memory_is_taken_for_what_a_header_claims(tmp_path):
    header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (1000000, 1000000), }"
    header += b" " * (-(len(header) + 11) % 64) + b"\n"
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        for name in ("mu", "sigma"):
            archive.writestr(f"{name}.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header)
    assert "(1000000, 1000000)" in refused(str(tmp_path / "a.npz"))


def test_the_covariance_is_looked_at_before_any_image(tmp_path, monkeypatch):
    def extract(*args):
        raise AssertionError("an image was measured")

    monkeypatch.setattr(reference.Extractor, "extract", extract)
    refused(save(tmp_path, **changed("negative")))
