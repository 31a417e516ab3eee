"""What stands beside a GPU that measures chunks: reading ahead, and storing what it has made."""

import threading

import pytest
import torch
from accelerate import PartialState

from arcvq.compute.chunk_workers import in_threads, on_gpu, read_ahead
from arcvq.compute.resumable import ResumableMap

CHUNKS = [range(start, start + 5) for start in range(0, 50, 5)]


@pytest.mark.parametrize("each", [in_threads, on_gpu])
@pytest.mark.parametrize("number", [0, 1, 2, 10])
def test_every_chunk_is_measured_once_with_what_was_read_for_it(each, number):
    stored = []
    done = list(
        each(
            CHUNKS[:number],
            lambda chunk, values: stored.append((chunk, values)),
            lambda: lambda chunk, numbers: sum(numbers) + chunk.start,
            read_ahead(list),
        )
    )
    assert sorted(stored, key=lambda item: item[0].start) == [(c, sum(c) + c.start) for c in CHUNKS[:number]]
    assert sorted(done, key=lambda chunk: chunk.start) == CHUNKS[:number]


def test_the_next_chunks_are_read_while_one_is_measured_and_not_all():
    read, ahead, threads = [], threading.Event(), torch.get_num_threads()

    def reading(chunk):
        read.append(chunk)
        if len(read) == threads + 2:
            ahead.set()
        return chunk

    inputs = read_ahead(reading)(CHUNKS)
    assert next(inputs) == (CHUNKS[0],)
    assert ahead.wait(10)
    inputs.close()
    assert sorted(read, key=lambda chunk: chunk.start) == CHUNKS[: threads + 2]


def test_a_chunk_is_stored_while_the_next_is_measured():
    next_began = threading.Event()

    def measure(chunk):
        if chunk == CHUNKS[1]:
            next_began.set()
        return chunk.start

    def store(chunk, values):
        assert chunk != CHUNKS[0] or next_began.wait(10)

    assert list(on_gpu(CHUNKS[:2], store, lambda: measure, lambda chunks: [()] * len(chunks))) == CHUNKS[:2]


@pytest.mark.parametrize("failing", ["read", "measure", "store"])
def test_an_error_ends_it_and_what_came_before_is_stored(failing):
    stored, threads = [], torch.get_num_threads()

    def fail(where, chunk):
        if where == failing and chunk == CHUNKS[3]:
            raise ValueError("image 15 is broken")
        return chunk

    def store(chunk, values):
        fail("store", chunk)
        stored.append(chunk)

    work = on_gpu(
        CHUNKS,
        store,
        lambda: lambda chunk, _: fail("measure", chunk),
        read_ahead(lambda chunk: fail("read", chunk)),
    )
    with pytest.raises(ValueError, match="image 15 is broken"):
        list(work)
    assert stored[:3] == CHUNKS[:3] and CHUNKS[3] not in stored and torch.get_num_threads() == threads


def test_finishing_and_its_errors_are_the_same_on_a_gpu(tmp_path, monkeypatch):
    def finish(chunk, values):
        if chunk.start == 10:
            raise ValueError("chunk 10 is not finite")
        return values | {"sum": values["numbers"].sum()[None]}

    def compute(images, name):
        chunks = ResumableMap(tmp_path / name, "sums", {}, images, 5)
        chunks.compute(
            lambda: lambda chunk, numbers: {"numbers": torch.tensor(numbers)}, True, read_ahead(list), finish
        )
        return chunks

    PartialState()
    expected = compute(10, "threads")
    monkeypatch.setitem(PartialState._shared_state, "device", torch.device("cuda"))
    found = compute(10, "gpu")
    assert [file.read_bytes() for file in found.files] == [file.read_bytes() for file in expected.files]
    assert found.column("sum").tolist() == [10, 35]
    with pytest.raises(ValueError, match="chunk 10 is not finite"):
        compute(15, "gpu")
