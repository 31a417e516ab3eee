"""Under a name lies the old content or all of the new one, whatever goes wrong in between."""

import os
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torch import zeros

from arcvq.compute.atomic_files import atomic_file, atomic_folder


def contents(folder):
    """The bytes of every file below a folder, hidden ones included."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def write_file(path, text):
    with atomic_file(path) as unfinished:
        unfinished.write_text(text)


def write_folder(path, **texts):
    with atomic_folder(path) as unfinished:
        for name, text in texts.items():
            (unfinished / name).write_text(text)


def test_a_file_is_written_and_replaced(tmp_path):
    write_file(tmp_path / "a.json", "first, and long")
    write_file(tmp_path / "a.json", "second")

    assert contents(tmp_path) == {"a.json": b"second"}


def test_a_folder_is_replaced_as_a_whole(tmp_path):
    write_folder(tmp_path / "new" / "a", kept="first", dropped="first")
    write_folder(tmp_path / "new" / "a", kept="second")

    assert contents(tmp_path) == {"new/a/kept": b"second"}


@pytest.mark.parametrize("error", [ValueError, KeyboardInterrupt])
def test_an_error_in_the_body_leaves_the_old_content_alone(tmp_path, error):
    write_file(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", file="old")
    before = contents(tmp_path)

    with pytest.raises(error), atomic_file(tmp_path / "file") as unfinished:
        unfinished.write_text("half of the n")
        raise error
    with pytest.raises(error), atomic_folder(tmp_path / "folder") as unfinished:
        (unfinished / "file").write_text("half of the n")
        raise error

    assert contents(tmp_path) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["file", "folder"]


def test_what_a_body_has_not_finished_is_not_seen_under_the_name(tmp_path):
    with atomic_file(tmp_path / "file") as unfinished:
        unfinished.write_text("new")
        assert not (tmp_path / "file").exists()
    with atomic_folder(tmp_path / "folder") as unfinished:
        (unfinished / "file").write_text("new")
        assert not (tmp_path / "folder").exists()

    assert contents(tmp_path) == {"file": b"new", "folder/file": b"new"}


@pytest.mark.parametrize("failing", ["file", "folder", "replaced folder"])
def test_a_rename_that_fails_leaves_the_old_content(tmp_path, monkeypatch, failing):
    name = failing.rpartition(" ")[2]
    write_file(tmp_path / "file", "old")
    write_folder(tmp_path / "folder", file="old")
    before, replace = contents(tmp_path), os.replace
    moved_from = f".{name}.tmp" if failing != "folder" else "folder"

    def refused(source, target):
        if Path(source).name == moved_from:
            raise OSError(5, "Input/output error")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(OSError, match="Input/output"):
        write_file(tmp_path / "file", "new") if name == "file" else write_folder(tmp_path / "folder", file="new")

    assert contents(tmp_path) == before


@pytest.mark.parametrize("renames", [0, 1, 2])
def test_a_kill_at_any_rename_loses_neither_the_old_nor_the_new_folder(tmp_path, renames):
    """The process ends at the first, at the second rename or after both, and the next write goes through."""
    write_folder(tmp_path / "folder", file="old")
    if pid := os.fork():
        os.waitpid(pid, 0)
    else:
        replace, left = os.replace, iter(range(renames))
        os.replace = lambda *paths: replace(*paths) if next(left, None) is not None else os._exit(1)
        write_folder(tmp_path / "folder", file="new")
        os._exit(0)

    places = {0: "folder", 1: ".folder.old", 2: "folder"}
    assert (tmp_path / places[renames] / "file").read_text() == ("new" if renames == 2 else "old")
    write_folder(tmp_path / "folder", file="newest")
    assert (tmp_path / "folder" / "file").read_text() == "newest"


def test_a_file_that_a_kill_has_left_is_written_over(tmp_path):
    (tmp_path / ".file.tmp").write_text("much longer than what comes after it")
    write_file(tmp_path / "file", "new")

    assert contents(tmp_path) == {"file": b"new"}


def test_two_writers_of_a_shared_file_do_not_mix(tmp_path):
    with atomic_file(tmp_path / "file", shared=True) as first:
        with atomic_file(tmp_path / "file", shared=True) as second:
            first.write_text("one of the two")
            second.write_text("two")
        assert contents(tmp_path)["file"] == b"two"

    assert contents(tmp_path) == {"file": b"one of the two"}


@pytest.mark.parametrize("mask", [0o022, 0o027, 0o077])
def test_the_umask_says_who_may_read_also_where_a_library_does_not(tmp_path, mask):
    before = os.umask(mask)
    try:
        with atomic_file(tmp_path / "file") as unfinished:
            save_file({"a": zeros(2)}, unfinished)  # gives its files to the owner alone
        with atomic_folder(tmp_path / "folder") as unfinished:
            save_file({"a": zeros(2)}, unfinished / "weights")
            (unfinished / "text").write_text("")
    finally:
        os.umask(before)

    modes = {name: (tmp_path / name).stat().st_mode & 0o777 for name in ("file", "folder/weights", "folder/text")}
    assert set(modes.values()) == {0o666 & ~mask}
    assert (tmp_path / "folder").stat().st_mode & 0o777 == 0o777 & ~mask


@pytest.mark.posix
def test_all_is_on_the_disk_before_the_rename_and_the_rename_at_the_end(tmp_path, monkeypatch):
    order, fsync, replace = [], os.fsync, os.replace

    def synced(descriptor):
        order.append(str(Path(f"/proc/self/fd/{descriptor}").readlink()).removeprefix(str(tmp_path)))
        fsync(descriptor)

    def renamed(source, target):
        order.append("renamed")
        replace(source, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(os, "replace", renamed)
    write_file(tmp_path / "file", "new")
    assert order == ["/.file.tmp", "renamed", ""]
    order.clear()
    with atomic_folder(tmp_path / "folder") as unfinished:
        (unfinished / "inner").mkdir()
        (unfinished / "inner" / "file").write_text("new")
    place = order.index("renamed")
    assert set(order[:place]) == {"/.folder.tmp", "/.folder.tmp/inner", "/.folder.tmp/inner/file"}
    assert order[place + 1 :] == [""]
