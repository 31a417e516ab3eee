"""Where bf16 is slow, and that a training says so."""

import platform

import pytest
import torch
from small_runs import run, training

from arcvq.compute.bf16 import slow_bf16


@pytest.fixture
def machine(monkeypatch):
    """Makes this a processor of such an architecture and capability."""

    def of(architecture, capability):
        monkeypatch.setattr(platform, "machine", lambda: architecture)
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)

    return of


@pytest.mark.parametrize(
    ("architecture", "capability", "precision", "device", "slow"),
    [
        ("x86_64", "AVX2", "bf16", "cpu", True),
        ("AMD64", "DEFAULT", "bf16", "cpu", True),
        ("x86_64", "AVX512", "bf16", "cpu", False),
        ("arm64", "DEFAULT", "bf16", "cpu", False),
        ("x86_64", "AVX2", "bf16", "cuda", False),
        ("x86_64", "AVX2", "no", "cpu", False),
    ],
)
def test_bf16_is_slow_on_x86_without_avx512(machine, architecture, capability, precision, device, slow):
    machine(architecture, capability)
    assert (slow_bf16(precision, torch.device(device)) is not None) == slow


def test_a_training_says_that_bf16_is_slow_here(machine, tmp_path):
    machine("x86_64", "AVX2")
    command = training("tokenizer", "runs", 1, "--run.mixed_precision")
    assert "(AVX2)" in run(*command, "bf16", cwd=tmp_path).stdout
    assert "(AVX2)" not in run(*command, "no", "--run.name", "other", cwd=tmp_path).stdout
