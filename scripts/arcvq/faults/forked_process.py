"""Run scripts in processes forked from a server that has imported the heavy modules once.

A start takes a tenth of a second instead of ten, for tests that start, or kill, a script very often. Such a process has
its own memory, files, environment and signals; only its imports differ from those of a normal process.
"""

import contextlib
import multiprocessing
import os
import runpy
import socket
import subprocess
import sys
import tempfile
from functools import cache
from multiprocessing import forkserver
from pathlib import Path

import torch

MODULES = [
    "arcvq.training.tokenizer",
    "arcvq.training.ldm",
    "arcvq.training.pixelcnn",
    "arcvq.planning.train_or_plan",
    "arcvq.evaluation.command",
    "arcvq.sampling.command",
    "arcvq.quickstart",
]


class PreloadedProcess:
    """A running script, with the interface of subprocess.Popen."""

    def __init__(self, command: list[str], cwd: Path, env: dict[str, str] | None = None):
        python, script, *arguments = command
        assert python == sys.executable
        context = multiprocessing.get_context("forkserver")
        # Python 3.11's server skips modules that it does not find, and searches only the environment's path.
        before = os.environ.get("PYTHONPATH")
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        try:
            context.set_forkserver_preload(MODULES)  # counts for the first process; later ones share its server
            forkserver.ensure_running()
        finally:
            del os.environ["PYTHONPATH"]
            os.environ |= {} if before is None else {"PYTHONPATH": before}
        self._output = [tempfile.NamedTemporaryFile(dir=_outputs().name, delete=False) for _ in range(2)]  # noqa: SIM115
        names = [file.name for file in self._output]
        environment = dict(os.environ if env is None else env)
        self._process = context.Process(target=_run, args=(script, arguments, str(cwd), environment, *names))
        self._process.start()
        self.args = command

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def returncode(self) -> int | None:
        return self._process.exitcode

    def poll(self) -> int | None:
        return self.returncode

    def send_signal(self, signal: int) -> None:
        if self.returncode is None:
            os.kill(self._process.pid, signal)

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        if self.returncode is None:
            self._process.kill()
            raise subprocess.TimeoutExpired(self.args, timeout)
        return self.returncode

    def output(self) -> tuple[str, str]:
        """Return the text written to stdout and stderr."""
        return tuple(Path(file.name).read_text() for file in self._output)


@cache
def _outputs() -> tempfile.TemporaryDirectory:
    """Create the folder of the processes' output, which is removed when this process ends."""
    return tempfile.TemporaryDirectory(prefix="arcvq-forked-")


def start(
    command: list[str], cwd: Path, processes: int = 1, env: dict[str, str] | None = None
) -> list[PreloadedProcess]:
    """Start a script in one process, or in several that work together as under `accelerate launch`."""
    if processes == 1:
        return [PreloadedProcess(command, cwd, env)]
    with contextlib.closing(socket.socket()) as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    count, variables = str(processes), dict(os.environ if env is None else env)
    variables |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "WORLD_SIZE": count, "LOCAL_WORLD_SIZE": count}
    ranks = map(str, range(processes))
    return [PreloadedProcess(command, cwd, variables | {"RANK": rank, "LOCAL_RANK": rank}) for rank in ranks]


def run(
    command: list[str], cwd: Path, timeout: float = 300, processes: int = 1, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess:
    """Run a script as subprocess.run does with captured text.

    Of several processes it returns the first status that is not 0, and the texts of all.
    """
    started = start(command, cwd, processes, env)
    codes = [process.wait(timeout) for process in started]
    texts = ("".join(of) for of in zip(*(process.output() for process in started), strict=True))
    return subprocess.CompletedProcess(command, next(filter(None, codes), 0), *texts)


def _run(script: str, arguments: list[str], cwd: str, environment: dict[str, str], out: str, err: str) -> None:
    """Set up the new process, and run the script in it."""
    cold = [name for name in MODULES if name not in sys.modules]
    assert not cold, f"the server has not imported {', '.join(cold)}"
    for stream, name in ((1, out), (2, err)):
        descriptor = os.open(name, os.O_WRONLY | os.O_APPEND)
        os.dup2(descriptor, stream)
    # The server's own streams are buffered differently.
    sys.stdout, sys.stderr = (os.fdopen(stream, "w", buffering=1, closefd=False) for stream in (1, 2))
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    multiprocessing.set_start_method(None, force=True)  # the system's default, not the server's
    if "OMP_NUM_THREADS" in environment:  # torch read the server's value when it was imported there
        torch.set_num_threads(int(environment["OMP_NUM_THREADS"]))
    if script == "-m":
        module, *arguments = arguments
        sys.argv = [module, *arguments]
        runpy.run_module(module, run_name="__main__", alter_sys=True)
    else:
        sys.argv = [script, *arguments]
        runpy.run_path(script, run_name="__main__")
