"""Checkpoints that are whole or not there, and the newest intact one among damaged ones."""

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import nn

from arcvq.checkpoints import checkpoint as checkpoints
from arcvq.checkpoints import manifest
from arcvq.checkpoints.checkpoint import RunState, load_checkpoint, newest_intact, save_checkpoint
from arcvq.checkpoints.manifest import Progress


@pytest.fixture
def accelerator():
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True)
    module = nn.Linear(3, 2)
    accelerator.prepare(module, torch.optim.AdamW(module.parameters()))
    yield accelerator
    AcceleratorState._reset_state(reset_partial_state=True)


def save(accelerator, folder, step, keep=2):
    progress = Progress(step, 1, 1, accelerator.distributed_type.value, {"seen": step})
    averages, own = {"weight": torch.full((3,), float(step))}, {"sums": {"loss": torch.tensor(step / 7)}}
    save_checkpoint(accelerator, folder, RunState(progress, averages, own), keep)


def names(folder):
    return sorted(path.name for path in (folder / "checkpoints").iterdir())


def test_the_newest_are_kept_and_say_what_they_hold(accelerator, tmp_path):
    for step in (5, 10, 20):
        save(accelerator, tmp_path, step)
    assert names(tmp_path) == ["step-10", "step-20"]
    newest = newest_intact(accelerator, tmp_path)
    assert newest.name == "step-20"
    state = load_checkpoint(accelerator, newest, averaged=True)
    assert state.averages["weight"].tolist() == [20.0] * 3
    assert (state.progress.step, state.progress.processes, state.progress.counts) == (20, 1, {"seen": 20})
    assert state.own == {"sums": {"loss": torch.tensor(20 / 7)}}


FILES = ["model.safetensors", "optimizer.bin", "random_states_0.pkl", "ema.safetensors", "own_0.safetensors"]
FILES += ["progress.json"]


@pytest.mark.parametrize("file", FILES)
@pytest.mark.parametrize("damage", ["flipped", "cut", "gone", "longer"])
def test_any_damage_to_any_file_is_seen_and_named(accelerator, tmp_path, file, damage, capsys):
    for step in (1, 2):
        save(accelerator, tmp_path, step)
    path = tmp_path / "checkpoints/step-2" / file
    content = path.read_bytes()
    if damage == "gone":
        path.unlink()
    elif damage == "flipped":
        middle = len(content) // 2
        path.write_bytes(content[:middle] + bytes([content[middle] ^ 1]) + content[middle + 1 :])
    else:
        path.write_bytes(content[:-1] if damage == "cut" else content + b"\0")
    assert newest_intact(accelerator, tmp_path).name == "step-1"
    said = capsys.readouterr().err
    assert said.startswith("warning: ") and "step-2 is damaged (" in said and file in said and said.count("\n") == 1
    assert names(tmp_path) == [".damaged-step-2", "step-1"]


def test_no_flipped_bit_of_the_list_itself_goes_unseen(accelerator, tmp_path):
    save(accelerator, tmp_path, 1)
    checkpoint = tmp_path / "checkpoints/step-1"
    content = (checkpoint / "progress.json").read_bytes()
    stored = json.loads(content)
    for place in range(0, len(content)):
        for bit in (0, 5):
            changed = bytearray(content)
            changed[place] ^= 1 << bit
            (checkpoint / "progress.json").write_bytes(changed)
            whole = not checkpoints.missing_file(checkpoint)
            # White space between its parts means nothing.
            assert not whole or json.loads(bytes(changed)) == stored, bytes(changed)[place - 9 : place + 9]


@pytest.mark.parametrize(
    "content", ["", "{}", "[]", "null", '{"step": 3}', "{", '{"step": 2, "files": 5}', b"\xff", "[" * 200_000]
)
def test_one_without_its_list_is_none(accelerator, tmp_path, content, capsys):
    for step in (1, 2):
        save(accelerator, tmp_path, step)
    progress = tmp_path / "checkpoints/step-2/progress.json"
    progress.write_bytes(content if isinstance(content, bytes) else content.encode())
    assert newest_intact(accelerator, tmp_path).name == "step-1"
    assert "step-2 is damaged (progress.json" in capsys.readouterr().err
    save(accelerator, tmp_path, 3, keep=1)  # the damaged one does not count as one that is kept
    assert names(tmp_path) == ["step-3"]


def test_an_unfinished_one_is_named_passed_over_and_swept_away(accelerator, tmp_path, capsys):
    save(accelerator, tmp_path, 1)
    left = tmp_path / "checkpoints/.step-2"
    left.mkdir()
    (left / "model.safetensors").write_bytes(b"half")
    assert newest_intact(accelerator, tmp_path).name == "step-1"
    assert f"{left} was not finished" in capsys.readouterr().err
    save(accelerator, tmp_path, 2)
    assert names(tmp_path) == ["step-1", "step-2"]


def test_with_all_damaged_the_run_begins_anew_and_says_so(accelerator, tmp_path, capsys):
    save(accelerator, tmp_path, 1)
    (tmp_path / "checkpoints/step-1/optimizer.bin").unlink()
    (tmp_path / "checkpoints/step-7").write_text("a file")
    assert newest_intact(accelerator, tmp_path) is None
    assert "the run begins anew" in capsys.readouterr().err


def test_a_write_that_fails_leaves_what_was_there(accelerator, tmp_path, monkeypatch):
    save(accelerator, tmp_path, 1)
    for name, error in (
        ("save_file", OSError(28, "No space left on device")),
        ("write_manifest", OSError(5, "I/O error")),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(checkpoints, name, lambda *args, error=error: (_ for _ in ()).throw(error))
            with pytest.raises(OSError, match=rf"step 2 cannot be written .*{error.strerror}.*goes on from step-1"):
                save(accelerator, tmp_path, 2, keep=1)
        assert names(tmp_path) == ["step-1"]
        assert newest_intact(accelerator, tmp_path).name == "step-1"


@pytest.mark.posix
def test_it_is_renamed_only_when_all_of_it_is_on_the_disk(accelerator, tmp_path, monkeypatch):
    order, fsync, rename = [], os.fsync, checkpoints.Path.rename

    def synced(descriptor):
        order.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).rpartition("checkpoints")[2])
        fsync(descriptor)

    def renamed(self, target):
        order.append(f"{self.name} -> {target.name}")
        return rename(self, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(checkpoints.Path, "rename", renamed)
    save(accelerator, tmp_path, 7)
    place = order.index(".step-7 -> step-7")
    files = {f"/.step-7/{path.name}" for path in (tmp_path / "checkpoints/step-7").iterdir()}
    assert files | {"/.step-7"} == set(order[:place]) and order[place + 1 :] == [""]


def test_one_of_another_way_to_share_a_model_is_refused(accelerator, tmp_path):
    save(accelerator, tmp_path, 1)
    file = tmp_path / "checkpoints/step-1/progress.json"
    content = json.loads(file.read_text()) | {"distribution": "FSDP"}
    del content["sha256"]
    file.write_text(json.dumps(content | {"sha256": manifest._hash(content)}))
    with pytest.raises(ValueError, match="distributed by FSDP, this run's is by NO; launch it as before"):
        load_checkpoint(accelerator, tmp_path / "checkpoints/step-1", averaged=False)


def test_a_number_of_processes_that_changes_is_told(capsys):
    before = Progress(5, processes=2, threads=4, distribution="NO")
    checkpoints.note_processes(before, 2, 4)
    assert not capsys.readouterr().out
    checkpoints.note_processes(before, 1, 4)
    said = capsys.readouterr().out
    assert "processes so far: 2, now: 1" in said and "threads" not in said
    checkpoints.note_processes(before, 2, 8)
    said = capsys.readouterr().out
    assert "so far: 4, now: 8" in said and "--run.threads 4" in said and "processes so far" not in said


def test_one_of_another_version_is_refused_in_words(accelerator, tmp_path):
    save(accelerator, tmp_path, 1)
    file = tmp_path / "checkpoints/step-1/progress.json"
    content = json.loads(file.read_text())
    del content["sha256"], content["threads"]
    file.write_text(json.dumps(content | {"sha256": manifest._hash(content)}))
    with pytest.raises(ValueError, match=r"its progress\.json has no threads; go on with that version"):
        load_checkpoint(accelerator, newest_intact(accelerator, tmp_path), averaged=False)


def test_a_list_that_is_no_file_or_lies_in_a_bad_sector_is_damage(accelerator, tmp_path, monkeypatch, capsys):
    for step in (1, 2):
        save(accelerator, tmp_path, step)
    (tmp_path / "checkpoints/step-2/progress.json").unlink()
    (tmp_path / "checkpoints/step-2/progress.json").mkdir()
    assert newest_intact(accelerator, tmp_path).name == "step-1"
    assert "step-2 is damaged (Is a directory: progress.json)" in capsys.readouterr().err
    save(accelerator, tmp_path, 2)
    opened = Path.open

    def break_file(name, number):
        def unreadable(self, *args, **kwargs):
            if "step-2" in str(self) and self.name == name:
                raise OSError(number, os.strerror(number), str(self))
            return opened(self, *args, **kwargs)

        monkeypatch.setattr(Path, "open", unreadable)

    for name in ("model.safetensors", "progress.json"):
        break_file(name, errno.EACCES)  # it may be whole
        with pytest.raises(PermissionError):
            newest_intact(accelerator, tmp_path)
    break_file("model.safetensors", errno.EIO)
    assert newest_intact(accelerator, tmp_path).name == "step-1"
    assert "step-2 is damaged (Input/output error: model.safetensors)" in capsys.readouterr().err


@pytest.mark.posix
def test_a_link_to_a_checkpoint_elsewhere_is_removed_and_not_what_it_leads_to(accelerator, tmp_path):
    save(accelerator, tmp_path, 1)
    (tmp_path / "checkpoints/step-1").rename(tmp_path / "elsewhere")
    (tmp_path / "checkpoints/step-1").symlink_to(tmp_path / "elsewhere")
    assert newest_intact(accelerator, tmp_path).name == "step-1"
    save(accelerator, tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-2"] and (tmp_path / "elsewhere/progress.json").exists()


def test_an_old_one_that_cannot_be_deleted_ends_nothing(accelerator, tmp_path, monkeypatch, capsys):
    save(accelerator, tmp_path, 1)

    def refuse(path):
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(checkpoints, "_remove", refuse)
    save(accelerator, tmp_path, 2, keep=1)
    assert names(tmp_path) == ["step-1", "step-2"] and newest_intact(accelerator, tmp_path).name == "step-2"
    assert "step-1 cannot be deleted: Permission denied" in capsys.readouterr().err


def test_another_spelling_of_a_step_is_none(accelerator, tmp_path):
    save(accelerator, tmp_path, 1)
    shutil.copytree(tmp_path / "checkpoints/step-1", tmp_path / "checkpoints/step-01")
    assert [path.name for path in checkpoints.checkpoints(tmp_path)] == ["step-1"]
