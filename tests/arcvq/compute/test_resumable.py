"""Chunks of a long measurement: none is lost, none is computed twice, and they are read in order."""

import pytest
import torch
from torch import nn

from arcvq.compute.resumable import ResumableMap, copy_sharing_weights


def squares(asked, fail_at=None):
    """Makes the function that measures a range; `asked` lists the ranges in which it was called."""

    def measure(chunk):
        if fail_at is not None and fail_at in chunk:
            raise ValueError(f"image {fail_at} is broken")
        asked.append(chunk)
        return {"squares": torch.tensor([float(index * index) for index in chunk])}

    return lambda: measure


def test_every_image_is_measured_once_and_read_in_order(tmp_path):
    asked = []
    chunks = ResumableMap(tmp_path, "squares", {"seed": 0}, images=23, size=5)
    chunks.compute(squares(asked))
    assert sorted(index for chunk in asked for index in chunk) == list(range(23))
    assert chunks.column("squares").tolist() == [index**2 for index in range(23)]
    assert chunks.column("cubes") is None
    assert [len(values["squares"]) for values in chunks.read()] == [5, 5, 5, 5, 3]


def test_what_is_there_is_not_computed_again(tmp_path):
    chunks = ResumableMap(tmp_path, "squares", {"seed": 0}, images=20, size=5)
    with pytest.raises(ValueError, match="image 12 is broken"):
        chunks.compute(squares([], fail_at=12))
    there = {file.name for file in chunks.folder.glob("*.safetensors")}
    assert "00000010-00000015.safetensors" not in there
    asked = []
    chunks.compute(squares(asked))
    assert {f"{chunk.start:08d}-{chunk.stop:08d}.safetensors" for chunk in asked}.isdisjoint(there)
    assert chunks.column("squares").tolist() == [index**2 for index in range(20)]
    chunks.compute(squares(asked := []))
    assert asked == []


@pytest.mark.parametrize("verify", [True, False])
def test_a_chunk_that_was_cut_off_is_computed_again(tmp_path, verify):
    chunks = ResumableMap(tmp_path, "squares", {"seed": 0}, images=10, size=5)
    chunks.compute(squares([]))
    file = chunks.folder / "00000005-00000010.safetensors"
    for content in (b"", file.read_bytes()[:-3]):
        file.write_bytes(content)
        asked = []
        chunks.compute(squares(asked), verify)
        assert asked == [range(5, 10)]
        assert chunks.column("squares").tolist() == [index**2 for index in range(10)]


def test_damaged_values_are_computed_again_and_said(tmp_path, capsys):
    chunks = ResumableMap(tmp_path, "squares", {"seed": 0}, images=10, size=5)
    chunks.compute(squares([]))
    content = chunks.files[1].read_bytes()
    for place in (1, 7, 20):
        changed = bytearray(content)
        changed[-place] ^= 1
        chunks.files[1].write_bytes(changed)
        capsys.readouterr()
        asked = []
        chunks.compute(squares(asked))
        assert asked == [range(5, 10)] and chunks.files[1].read_bytes() == content
        assert f"warning: damaged, computed again: {chunks.files[1]}, of 1 such files" in capsys.readouterr().err


def test_without_verification_no_value_is_read(tmp_path, monkeypatch):
    chunks = ResumableMap(tmp_path, "squares", {"seed": 0}, images=10, size=5)
    chunks.compute(squares([]))
    content = bytearray(chunks.files[1].read_bytes())
    content[-1] ^= 1
    chunks.files[1].write_bytes(content)

    with monkeypatch.context() as patch:
        patch.setattr(ResumableMap, "_origin", None)  # hashes the values
        chunks.compute(squares(asked := []), verify=False)
    assert asked == []

    chunks.compute(squares(asked), verify=True)
    assert asked == [range(5, 10)]


@pytest.mark.parametrize("verify", [True, False])
def test_a_chunk_of_another_measurement_is_not_taken_for_ones_own(tmp_path, verify):
    ours, others = (ResumableMap(tmp_path, "squares", {"seed": seed}, images=10, size=5) for seed in (0, 1))
    for chunks in (ours, others):
        chunks.compute(squares([]))
    first, second = ours.files
    for foreign in (others.files[0], second):  # of other settings, of other images
        first.write_bytes(foreign.read_bytes())
        asked = []
        ours.compute(squares(asked), verify)
        assert asked == [range(5)]
        assert ours.column("squares").tolist() == [index**2 for index in range(10)]


def test_other_settings_and_other_chunks_are_another_folder(tmp_path):
    first = ResumableMap(tmp_path, "squares", {"seed": 0}, images=10, size=5)
    first.compute(squares([]))
    for other in (
        ResumableMap(tmp_path, "squares", {"seed": 1}, images=10, size=5),
        ResumableMap(tmp_path, "squares", {"seed": 0}, images=10, size=2),
    ):
        asked = []
        other.compute(squares(asked))
        assert len(asked) == len(other.ranges())
    longer = ResumableMap(tmp_path, "squares", {"seed": 0}, images=15, size=5)  # more images: only what is new
    asked = []
    longer.compute(squares(asked))
    assert asked == [range(10, 15)]


def test_removing_leaves_the_other_measurements(tmp_path):
    first, second = (ResumableMap(tmp_path, "squares", {"seed": seed}, images=4, size=2) for seed in (0, 1))
    for chunks in (first, second):
        chunks.compute(squares([]))
    first.remove()
    assert not first.folder.exists()
    assert second.column("squares").tolist() == [0, 1, 4, 9]


def test_each_thread_has_models_of_its_own_that_share_the_weights():
    module = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    copy = copy_sharing_weights(module, module)
    assert copy is not module and copy[0] is not module[0]
    for ours, theirs in zip(copy.state_dict().values(), module.state_dict().values(), strict=True):
        assert ours.data_ptr() == theirs.data_ptr()


def test_the_threads_compile_under_the_callers_limits(tmp_path):
    """Each thread compiles for itself, which takes more graphs than PyTorch's own limit allows."""
    found = []

    def measure(chunk):
        found.append(torch._dynamo.config.recompile_limit)
        return {"indices": torch.tensor(chunk)}

    with torch._dynamo.config.patch(recompile_limit=77):
        ResumableMap(tmp_path, "limits", {}, images=6, size=2).compute(lambda: measure)
    assert found == [77, 77, 77]
