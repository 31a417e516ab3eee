"""How many threads a process takes, and why."""

import pytest
import torch

from arcvq.compute import threads


@pytest.fixture
def machine(monkeypatch):
    """Makes this a machine of so many cores."""

    def of(cores, cuda=False, **variables):
        for name in ("LOCAL_WORLD_SIZE", "OMP_NUM_THREADS", "ACCELERATE_MIXED_PRECISION"):
            monkeypatch.delenv(name, raising=False)
        for name, value in variables.items():
            monkeypatch.setenv(name, value)
        monkeypatch.setattr(threads, "usable_cores", lambda: cores)
        monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
        torch.set_num_threads(1)  # as OMP_NUM_THREADS=1 has it
        return cores

    return of


def chosen(**options):
    said = threads.choose_threads(**options)
    assert said.startswith(f"threads: {torch.get_num_threads()} (")
    return torch.get_num_threads()


def test_the_cores_are_divided_among_the_processes_of_the_machine(machine):
    assert [machine(12, LOCAL_WORLD_SIZE=str(processes)) // chosen() for processes in (1, 2, 3, 4)] == [1, 2, 3, 4]
    machine(2, LOCAL_WORLD_SIZE="3")
    assert chosen() == 1


def test_the_launchers_single_thread_is_not_the_users(machine):
    launched = {"OMP_NUM_THREADS": "1", "ACCELERATE_MIXED_PRECISION": "no"}
    for cuda in (False, True):
        machine(4, cuda, **launched)
        assert chosen() == 4
        machine(4, cuda, OMP_NUM_THREADS="1")
        assert chosen() == 1


def test_beside_a_gpu_there_is_work_for_some_threads_only(machine):
    machine(64, cuda=True)
    assert chosen() == threads.MOST_BESIDE_GPU
    machine(64)
    assert chosen() == 64
    machine(64, cuda=True)
    assert chosen(asked=40) == 40


def test_an_option_goes_before_the_environment_and_that_before_a_checkpoint(machine):
    machine(4)
    assert chosen(before=3) == 3 and chosen(asked=5, before=3) == 5
    machine(4, OMP_NUM_THREADS="1")
    assert chosen(before=3) == 1 and chosen(asked=2, before=3) == 2


def test_a_checkpoints_number_needs_as_many_cores(machine):
    machine(4)
    assert chosen(before=4) == 4 and chosen(before=5) == 4
    machine(4, LOCAL_WORLD_SIZE="2")
    assert chosen(before=4) == 2


def test_usable_are_the_cores_that_affinity_and_quota_leave(monkeypatch):
    monkeypatch.setattr(threads.psutil, "cpu_count", lambda logical: 16)
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda pid: set(range(10)), raising=False)
    for quota, cores in ((float("inf"), 10), (20.0, 10), (6.5, 6), (0.3, 1)):
        monkeypatch.setattr(threads, "cpu_quota", lambda quota=quota: quota)
        assert threads.usable_cores() == cores
