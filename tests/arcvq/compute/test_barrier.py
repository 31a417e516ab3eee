"""How long OpenMP's threads spin: what the library itself says it has read."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from arcvq.compute.barrier import SPIN_COUNT

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or "libgomp" not in Path("/proc/self/maps").read_text(),
    reason="torch's OpenMP is not GNU's",
)


def spin_count(*command, **variables):
    names = ("GOMP_SPINCOUNT", "OMP_WAIT_POLICY")
    environment = {name: value for name, value in os.environ.items() if name not in names} | variables
    environment["OMP_DISPLAY_ENV"] = "verbose"
    done = subprocess.run([sys.executable, *command], env=environment, capture_output=True, text=True, check=True)
    return {int(number) for number in re.findall(r"GOMP_SPINCOUNT = '(\d+)'", done.stderr)}


def test_a_command_loads_torch_after_it_has_said_how_to_wait():
    assert spin_count("-m", "arcvq", "sample", "--help") == {SPIN_COUNT}


def test_the_users_own_way_to_wait_stays():
    code = "from arcvq.compute.barrier import spin_briefly; spin_briefly(); import torch"
    assert spin_count("-c", code) == {SPIN_COUNT}
    assert spin_count("-c", code, GOMP_SPINCOUNT="77") == {77}
    passive = {"OMP_WAIT_POLICY": "passive"}
    assert spin_count("-c", code, **passive) == spin_count("-c", "import torch", **passive)


def test_a_process_that_has_torch_keeps_its_environment(monkeypatch):
    from arcvq.compute.barrier import spin_briefly

    assert torch.__name__ in sys.modules
    monkeypatch.delenv("OMP_WAIT_POLICY", raising=False)
    monkeypatch.delenv("GOMP_SPINCOUNT", raising=False)
    spin_briefly()
    assert "GOMP_SPINCOUNT" not in os.environ
