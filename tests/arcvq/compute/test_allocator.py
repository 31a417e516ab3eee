import os
import subprocess
import sys

import pytest
from places import ROOT

SCRIPTS = ROOT / "scripts"
PROGRAM = """
import resource, sys
import torch
from arcvq.compute.allocator import keep_freed_memory
if sys.argv[1] == "keep":
    keep_freed_memory()
def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt
for i in range(40):
    if i == 30:
        before = faults()
    torch.ones(20_000_000)  # 80 MB
print(faults() - before)
"""


def page_faults(mode, **environment):
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("MALLOC_", "GLIBC_"))}
    command = [sys.executable, "-c", PROGRAM, mode]
    path = {"PYTHONPATH": f"{SCRIPTS}:{os.environ.get('PYTHONPATH', '')}"}
    done = subprocess.run(command, env=clean | path | environment, capture_output=True, text=True, check=True)
    return int(done.stdout)


@pytest.mark.robustness
@pytest.mark.skipif(sys.platform != "linux" or "glibc" not in os.confstr("CS_GNU_LIBC_VERSION"), reason="glibc alone")
def test_freed_memory_is_used_again_unless_the_user_has_set_malloc_up():
    default = page_faults("default")
    assert page_faults("keep") < default / 4  # how many there are is the machine's, whose pages may be large
    assert page_faults("keep", MALLOC_ARENA_MAX="4") > default / 2
