"""A pytest plugin: the project's own code finds what it would find on Windows. It needs Linux's /proc.

    PYTHONPATH=tests/helpers python -m pytest -p like_windows tests/arcvq/runs

Python's library and other packages go on as before. Taken away are fcntl, resource, os.fork, the affinity of a process
and the signals that Windows has not; `sys.platform` is win32, and msvcrt locks. For everybody, a file that this process
has open or mapped can be neither renamed, replaced nor removed, a rename never replaces, and links and names that
Windows refuses are errors.
"""

# pathlib calls the functions that are replaced here.
# ruff: noqa: PTH100, PTH112, PTH113, PTH115, PTH118, PTH208
import builtins
import errno
import importlib
import io
import os
import re
import shutil
import sys
import types
from pathlib import Path

import pytest

OWN = ("arcvq", "tokenizer", "priors", "pipelines")
GONE = {
    "os": ("fork", "forkpty", "sched_getaffinity", "getuid", "geteuid", "getpgid", "killpg", "mkfifo", "statvfs"),
    "signal": ("SIGUSR1", "SIGUSR2", "SIGKILL", "SIGCHLD", "SIGHUP", "SIGALRM", "SIGSTOP", "SIGXFSZ", "alarm"),
    "sys": (),
}
OTHER = {"os": {"name": "nt"}, "signal": {}, "sys": {"platform": "win32"}}
MISSING = ("fcntl", "resource", "pwd", "grp", "termios", "pty")
_REFUSED = re.compile(r'[<>:"|?*\x00-\x1f]|[. ]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.IGNORECASE)
_UNCHECKED = ("/proc/", "/dev/", "/sys/", sys.prefix, sys.base_prefix)


class _Module(types.ModuleType):
    """A module of Python's library as Windows has it."""

    def __init__(self, real):
        super().__init__(real.__name__)
        self.__dict__["_real"] = real

    def __getattr__(self, name):
        real = self.__dict__["_real"]
        if name in GONE[real.__name__]:
            raise AttributeError(f"module {real.__name__!r} has no attribute {name!r} on Windows")
        return OTHER[real.__name__].get(name) or getattr(real, name)

    def __setattr__(self, name, value):
        setattr(self.__dict__["_real"], name, value)  # sys.stdout, for one


_MODULES = {name: _Module(importlib.import_module(name)) for name in GONE}


def _import(name, globals=None, locals=None, fromlist=(), level=0):
    importer = ((globals or {}).get("__name__") or "").partition(".")[0]
    if importer in OWN and level == 0:
        if name in MISSING:
            raise ImportError(f"No module named {name!r} on Windows")
        if name in _MODULES:
            return _MODULES[name]
    return _real_import(name, globals, locals, fromlist, level)


def _locking(descriptor, mode, size):
    """Lock bytes from the file's position on; Windows says EACCES where another process holds them."""
    import fcntl

    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB, size, os.lseek(descriptor, 0, os.SEEK_CUR))
    except BlockingIOError as error:
        raise PermissionError(errno.EACCES, "Permission denied") from error


def check_name(path):
    """Raise OSError if Windows has no such name."""
    try:
        text = os.path.abspath(os.fsdecode(path))
    except TypeError:  # a descriptor
        return
    if not text.startswith(_UNCHECKED):
        for part in Path(text).parts[1:]:
            if _REFUSED.search(part):
                raise OSError(errno.EINVAL, "[WinError 123] The filename is incorrect", text)


def opened_below(path):
    """Return a file at or below the path that this process has open or mapped; None if there is none."""
    parent, name = os.path.split(os.path.abspath(path))
    wanted = os.path.join(os.path.realpath(parent), name)  # not the target of a link
    held = [line.split(maxsplit=5)[5].strip() for line in _lines("/proc/self/maps") if line.count("/")]
    for descriptor in os.listdir("/proc/self/fd"):
        try:
            held.append(os.readlink(f"/proc/self/fd/{descriptor}"))
        except OSError:  # listdir's own
            continue
    for name in held:
        if (name == wanted or name.startswith(f"{wanted}/")) and os.path.isfile(name):
            return name
    return None


def _lines(file):
    with _real_open(file) as opened:
        return opened.readlines()


def refuse_opened(path):
    """Raise PermissionError if this process has the file open, or one below the folder."""
    if (held := opened_below(path)) is not None:
        raise PermissionError(errno.EACCES, "[WinError 32] The process cannot access the file, which is open", held)


def _open(file, mode="r", *args, **kwargs):
    if set(mode) & set("wax+"):
        check_name(file)
    return _real_open(file, mode, *args, **kwargs)


def _moving(real, replaces):
    def move(source, target, **kwargs):
        check_name(target)
        refuse_opened(source)
        if os.path.lexists(target):
            if not replaces:
                raise FileExistsError(errno.EEXIST, "[WinError 183] The target exists", os.fsdecode(target))
            if os.path.isdir(target):
                raise PermissionError(errno.EACCES, "[WinError 5] A folder cannot be replaced", os.fsdecode(target))
            refuse_opened(target)
        return real(source, target, **kwargs)

    return move


def _symlink(source, target, *args, **kwargs):
    raise OSError(errno.EPERM, "[WinError 1314] A required privilege is not held by the client", os.fsdecode(target))


def _checked(real, check):
    def call(path, *args, **kwargs):
        check(path)
        return real(path, *args, **kwargs)

    return call


def pytest_collection_modifyitems(items):
    """Leave out the tests that Windows leaves out."""
    for item in items:
        if item.get_closest_marker("posix"):
            item.add_marker(pytest.mark.skip(reason="Windows does not have, or refuses, what this does"))


_real_import, _real_open = builtins.__import__, builtins.open

if already := [name for name in sys.modules if name.partition(".")[0] in OWN]:
    raise ImportError(f"{already[0]} was imported before this plugin: name the plugin with -p")
if not Path("/proc/self/maps").exists():
    raise ImportError("this plugin finds the open files in Linux's /proc")
sys.modules["msvcrt"] = types.SimpleNamespace(locking=_locking, LK_NBLCK=2)
builtins.__import__ = _import
builtins.open = io.open = _open
os.replace, os.rename = _moving(os.replace, True), _moving(os.rename, False)
os.remove, os.unlink = _checked(os.remove, refuse_opened), _checked(os.unlink, refuse_opened)
os.symlink = _symlink
os.mkdir = _checked(os.mkdir, check_name)
shutil._use_fd_functions = False  # or it would remove through descriptors, and never come by here
