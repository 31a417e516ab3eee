import os
import subprocess
import sys

import pytest
import torch
from places import HELPERS
from processes_worker import train

from arcvq.faults import forked_process

WORKER = HELPERS / "processes_worker.py"


def results(folder, world, codes, gather="global"):
    """What each of `world` processes stored, trained together; one process runs here."""
    if world == 1:
        train(folder, 0, 1, codes, gather)
    else:
        command = [sys.executable, str(WORKER), str(folder)]
        workers = [
            forked_process.PreloadedProcess([*command, *map(str, (rank, world, codes)), gather], folder)
            for rank in range(world)
        ]
        for worker in workers:
            assert worker.wait(240) == 0, worker.output()
    return [torch.load(folder / f"{world}-{rank}.pt", weights_only=True) for rank in range(world)]


# 7 codes make unequal shares; of 2 codes, one of three processes gets none.
@pytest.mark.parametrize(
    ("world", "codes"), [(2, 7), *(pytest.param(3, codes, marks=pytest.mark.slow) for codes in (2, 7))]
)
def test_processes_with_equal_global_batch_train_as_one(tmp_path, world, codes):
    (expected,) = results(tmp_path, 1, codes)
    for found in results(tmp_path, world, codes):
        assert found.keys() == expected.keys()
        for name, value in expected.items():
            if name.startswith("loss"):
                torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
            elif name.startswith("gradient"):
                assert (found[name] - value).norm() <= 1e-5 * value.norm()
            elif name.startswith("weight"):
                assert (found[name] - value).norm() <= 1e-4 * value.norm()
        assert torch.equal(found["counts"], expected["counts"])


def test_with_gather_local_each_process_has_its_own_arc_loss(tmp_path):
    (expected,) = results(tmp_path, 1, 7)
    found = results(tmp_path, 2, 7, gather="local")[0]
    torch.testing.assert_close(found["loss codebook"], expected["loss codebook"], rtol=1e-6, atol=1e-7)
    assert abs(found["loss arc"] - expected["loss arc"]) > 0.01


ENDS = """
import atexit
import os
import sys
from arcvq.cli.script import run_script
from torch import distributed

class Kept:
    def __del__(self, write=os.write):
        write(1, b"finalized\\n")

kept = Kept()

def main():
    atexit.register(lambda: print("initialized:", distributed.is_initialized()))
    distributed.init_process_group("gloo", init_method="file://meet", rank=0, world_size=1)
    if sys.argv[1:]:
        sys.exit(int(sys.argv[1]))

run_script(main)
"""


@pytest.mark.parametrize("status", [0, 143])
def test_a_script_of_several_parts_from_the_others_and_ends_without_finalization(tmp_path, status):
    """Or the threads of the exchange may abort it: one in three trainings of two processes ended with status 1."""
    (tmp_path / "ends.py").write_text(ENDS.replace("file://", f"file://{tmp_path}/"))
    command = [sys.executable, str(tmp_path / "ends.py"), *([str(status)] if status else [])]
    done = subprocess.run(
        command, env=os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}, capture_output=True, text=True
    )
    assert done.returncode == status and done.stdout == "initialized: False\n", (done.stdout, done.stderr)
