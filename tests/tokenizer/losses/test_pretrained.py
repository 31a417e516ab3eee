import hashlib
import http.client
import pickle
import urllib.error
from dataclasses import replace
from pathlib import Path

import pytest
import safetensors.torch
import torch

from tokenizer.losses.lpips import ALEXNET, SQUEEZENET, VGG16
from tokenizer.losses.pretrained import PretrainedFile, read_weights

URL = "https://example.org/files/test-weights.pth"
TENSORS = {"a.weight": torch.arange(6.0).view(2, 3), "b": torch.tensor([1, 2])}


def sha256(content):
    return hashlib.sha256(content).hexdigest()


def saved(value, path):
    torch.save(value, path)
    return path.read_bytes()


def published(content, **facts):
    return PretrainedFile("Test net", "weights.test", URL, (sha256(content),), **facts)


def refused(file, path=None, accept_sha256=None):
    """The message, which is one line that names the remedy."""
    with pytest.raises(ValueError) as error:
        read_weights(file, path, accept_sha256)
    message = str(error.value)
    assert "\n" not in message
    for part in ("Test net", str(path or file.default_path), f"download {URL}", "--weights.test PATH"):
        assert part in message
    return message


@pytest.fixture(autouse=True)
def torch_home(monkeypatch, tmp_path):
    """An empty hub folder, and no network."""

    def download(*args, **kwargs):
        raise urllib.error.URLError("no network")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    return tmp_path / "home"


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
def test_tensors_are_read_back_with_the_hash_of_the_file(tmp_path, suffix):
    path = tmp_path / f"w{suffix}"
    path.write_bytes(safetensors.torch.save(TENSORS) if suffix == ".safetensors" else saved(TENSORS, path))
    content = path.read_bytes()
    for file, accepted in ((published(content), None), (published(b""), sha256(content))):
        for given in (path, str(path)):
            tensors, digest = read_weights(file, given, accepted)
            assert digest == sha256(content)
            assert tensors.keys() == TENSORS.keys()
            assert all(torch.equal(tensors[name], TENSORS[name]) for name in TENSORS)


def test_a_published_file_is_taken_beside_an_accepted_hash_and_any_of_several_hashes_is_published(tmp_path):
    content = saved(TENSORS, tmp_path / "w.pth")
    assert read_weights(published(content), tmp_path / "w.pth", sha256(b"another"))[1] == sha256(content)
    several = replace(published(b"another"), sha256=(sha256(b"another"), sha256(content)))
    assert read_weights(several, tmp_path / "w.pth")[1] == sha256(content)


def test_a_missing_file_is_not_downloaded_where_a_path_is_given(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("downloads"))
    message = refused(published(b""), tmp_path / "absent.pth")
    assert "is not there" in message
    assert not (tmp_path / "absent.pth").exists()
    (tmp_path / "folder.pth").mkdir()
    assert "no Test net weights" in refused(published(b""), tmp_path / "folder.pth")


@pytest.mark.parametrize(
    "error",
    [
        urllib.error.URLError("no network"),
        RuntimeError('invalid hash value (expected "a", got "b")'),
        http.client.IncompleteRead(b"part", 100),
        OSError("no space left"),
    ],
)
def test_a_download_that_fails_is_one_line(torch_home, monkeypatch, error):
    def download(*args, **kwargs):
        raise error

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    message = refused(published(b""))
    assert str(torch_home / "hub" / "checkpoints" / "test-weights.pth") in message
    assert str(error) in message


def test_a_download_happens_once_into_torchs_hub_folder(torch_home, tmp_path, monkeypatch):
    content = saved(TENSORS, tmp_path / "w.pth")
    calls = []

    def download(url, path, hash_prefix, progress):
        calls.append((url, path, hash_prefix, progress))
        Path(path).write_bytes(content)

    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    place = torch_home / "hub" / "checkpoints" / "test-weights.pth"
    for _ in range(2):
        tensors, digest = read_weights(published(content))
        assert digest == sha256(content) and torch.equal(tensors["b"], TENSORS["b"])
    assert calls == [(URL, str(place), sha256(content), False)]
    named = published(content, name="other-name.pth")
    read_weights(named)
    assert calls[1:] == [(URL, str(place.with_name("other-name.pth")), sha256(content), False)]


def test_a_damaged_file_in_the_hub_folder_is_refused_and_stays(torch_home, monkeypatch):
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("downloads"))
    place = torch_home / "hub" / "checkpoints" / "test-weights.pth"
    place.parent.mkdir(parents=True)
    place.write_bytes(b"damaged")
    assert "truncated or another file" in refused(published(b"whole"))
    assert place.read_bytes() == b"damaged"


def test_truncated_and_other_files_are_refused_with_both_hashes(tmp_path):
    path = tmp_path / "w.pth"
    content = saved(TENSORS, path)
    other = saved({"a.weight": torch.zeros(2, 3)}, path)
    for wrong in (content[:-1], content[: len(content) // 2], b"", other):
        path.write_bytes(wrong)
        message = refused(published(content), path)
        assert "truncated or another file" in message
        assert sha256(wrong)[:16] in message and sha256(content)[:16] in message
        accepted = sha256(b"accepted")
        assert accepted[:16] in refused(published(content), path, accepted)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"<!doctype html><title>Sign in</title>", "an HTML page"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 98765\n", "98,765 bytes"),
        (b"Entry not found", "Entry not found"),
    ],
)
def test_a_page_or_pointer_under_the_name_of_weights_is_told_as_such(tmp_path, content, said):
    (tmp_path / "w.pth").write_bytes(content)
    assert said in refused(published(b"whole"), tmp_path / "w.pth")


class Payload:
    """Creates a file where it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


def test_pickled_classes_are_never_executed_though_their_hash_is_accepted(tmp_path):
    trace, path = tmp_path / "executed", tmp_path / "w.pth"
    payload = Payload(trace)
    contents = [pickle.dumps(payload, 2), saved(payload, path), saved({"a": torch.zeros(2), "b": payload}, path)]
    pickle.loads(contents[0])
    assert trace.exists()  # it would be executed
    trace.unlink()
    for content in contents:
        path.write_bytes(content)
        assert "cannot be read" in refused(published(b""), path, sha256(content))
        assert "cannot be read" in refused(published(content), path)
        assert not trace.exists()


def test_files_that_hold_no_tensors_by_name_are_refused(tmp_path):
    path = tmp_path / "w.pth"
    for value in ([torch.zeros(2)], torch.zeros(2), {"a": 1}, {"state_dict": {"a": torch.zeros(2)}}, None):
        content = saved(value, path)
        assert "hold no tensors by name" in refused(published(content), path)
    for suffix in (".pth", ".safetensors"):
        for content in (b"", b"neither of the two"):
            path = tmp_path / f"x{suffix}"
            path.write_bytes(content)
            assert "cannot be read" in refused(published(content), path)


def test_hashes_and_the_names_of_published_files_agree():
    for file in (ALEXNET, VGG16, SQUEEZENET):
        assert file.default_path.name.endswith(f"-{file.sha256[0][:8]}.pth")
        assert all(len(digest) == 64 for digest in file.sha256)
