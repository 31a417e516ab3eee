"""Tests run offline, on one thread, from a fixed seed, and leave nothing in the user's caches."""

import multiprocessing
import os
import signal
import tempfile

_CACHE = tempfile.TemporaryDirectory(prefix="arcvq-tests-")
# How many threads a script computes with, and what it prints of an error, are its own rules', not this shell's.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "ARCVQ_TRACEBACK"):
    os.environ.pop(variable, None)
# All are read once, when the libraries are imported.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # the workers' processes share the cores: none is to spin
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["HF_DATASETS_CACHE"] = _CACHE.name

import numpy as np  # noqa: E402
import pytest  # noqa: E402
import torch  # noqa: E402
from accelerate.state import AcceleratorState  # noqa: E402

from pipelines.metrics.digits import digit_classifier  # noqa: E402

torch.set_num_threads(1)


def pytest_configure(config):
    """Keeps all tests on the CPU, and those processes that they start, but for `-m gpu`.

    Runs, evaluations and samplings take the GPU where there is one, and these tests hold tensors of the CPU.
    """
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""  # the driver reads it when the first call comes
        os.environ["ACCELERATE_USE_CPU"] = "true"  # there are accelerators of other makers


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="there is no GPU; with one, run pytest -m gpu"))
        if os.name == "nt" and item.get_closest_marker("posix"):
            item.add_marker(pytest.mark.skip(reason="Windows does not have, or refuses, what this does"))


def end_loaders():
    """Ends the processes of loaders that an error has left behind: torch waits for each up to ten seconds."""
    left = [child for child in multiprocessing.active_children() if child.daemon]
    if not left:
        return
    if os.name != "nt":
        handler = signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's would complain that they were killed
    for child in left:
        child.kill()
        child.join()
    if os.name != "nt":
        signal.signal(signal.SIGCHLD, handler)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call():
    try:
        return (yield)
    finally:
        end_loaders()  # before any collection of garbage finds the loaders and waits for their processes


@pytest.fixture(autouse=True)
def fixed_seed():
    torch.manual_seed(0)
    np.random.seed(0)  # noqa: NPY002 (other libraries read the global state)
    yield
    torch.set_num_threads(1)  # a script that a test has called takes all cores, and kernels round by their threads
    AcceleratorState._reset_state(reset_partial_state=True)  # it keeps the precision of the first training
    torch._dynamo.reset()  # or what one test has compiled counts towards another's limit of recompilations


@pytest.fixture(scope="session")
def has_bfloat16():
    """Whether the processor computes in bfloat16; another one converts in between, and rounds otherwise."""
    return torch.ops.mkldnn._is_mkldnn_bf16_supported()


@pytest.fixture(scope="session")
def classifier_cache(tmp_path_factory):
    """A folder with the trained digit classifier, the same one for all workers, to be copied to where a script looks.

    A test of what the classifier is trains its own.
    """
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "classifier"
    digit_classifier(folder)
    return folder
