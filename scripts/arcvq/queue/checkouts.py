"""Checkouts of the commits that jobs began with: what is changed in the code later does not reach them."""

import os
import platform
import re
import shutil
import subprocess
from collections.abc import Iterable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import arcvq
from arcvq.cli.configs import CONFIGS, config_names

# What a training's numbers, or its checkpoints, depend on.
_PACKAGES = ("arcvq", "torch", "torchvision", "diffusers", "accelerate", "transformers", "numpy", "safetensors")

# A checkout's folder is named by its commit.
_NAME = re.compile("[0-9a-f]{12}")
# Where a new file belongs to the code, though it is in no commit.
_CODE = ("scripts", "tokenizer", "priors", "pipelines", "configs")


def find_project() -> Path | None:
    """Return the git checkout from which this package runs; None where it is installed without one."""
    project = Path(arcvq.__file__).resolve().parents[2]
    if not (project / "pyproject.toml").is_file():
        return None
    try:
        return project if Path(_git(project, "rev-parse", "--show-toplevel").strip()).resolve() == project else None
    except OSError:  # no repository, or no git
        return None


def installed_versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that a job computes with."""
    versions = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            versions[package] = version(package)
        except PackageNotFoundError:  # arcvq itself, where it runs from a checkout by PYTHONPATH
            continue
    return versions


class Checkouts:
    """Checkouts of a project's commits, each a git worktree in a folder.

    Args:
        project: the git checkout of the present code.
        folder: where the checkouts are.
    """

    def __init__(self, project: Path, folder: Path):
        self._project = project
        self._folder = folder.absolute()

    def head(self) -> str:
        """Return the present commit."""
        return _git(self._project, "rev-parse", "HEAD").strip()

    def changed_files(self) -> list[str]:
        """List the tracked files with changes that are in no commit, and new files of the code."""
        changed = _git(self._project, "diff", "HEAD", "--name-only")
        new = _git(self._project, "ls-files", "--others", "--exclude-standard", "--", *_CODE)
        return f"{changed}{new}".split("\n")[:-1]

    def open(self, commit: str) -> Path:
        """Return the checkout of a commit; make it, or make it anew where it is not whole.

        Raises:
            OSError: git cannot make it.
        """
        checkout = self._path(commit)
        if not self._is_whole(checkout, commit):
            if not self._has(commit):
                raise OSError(
                    f"commit {commit[:12]} is no longer in {self._project}; fetch it, or go on with the present one "
                    "by --renew"
                )
            self._remove(checkout)
            checkout.parent.mkdir(parents=True, exist_ok=True)
            # --force: git still knows of a checkout whose folder was removed by hand.
            try:
                _git(self._project, "worktree", "add", "--quiet", "--force", "--detach", str(checkout), commit)
            except OSError as error:  # git does not say that a disk is full
                free = shutil.disk_usage(self._folder).free / 1e6
                raise OSError(f"{error}; {free:.0f} MB are free in {self._folder}") from error
        return checkout

    def keep(self, commits: Iterable[str]) -> None:
        """Remove the checkouts of all other commits."""
        kept = {self._path(commit) for commit in commits}
        for checkout in self._folder.glob("*"):
            # What else is in there, where --state is a folder with other things, is the user's.
            if checkout not in kept and _NAME.fullmatch(checkout.name):
                self._remove(checkout)

    def packages(self, checkout: Path) -> list[str]:
        """List where a process of this checkout looks for packages: there, and where PYTHONPATH leads elsewhere."""
        own = {self._project, self._project / "scripts"}
        others = [path for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
        return [str(checkout), str(checkout / "scripts"), *(path for path in others if Path(path).resolve() not in own)]

    def with_its_configs(self, words: Sequence[str], checkout: Path) -> list[str]:
        """Replace the project's configs in a command by those of a checkout.

        A config that the checkout lacks, as one that is in no commit, stays where it is.
        """
        found, before = [], ""
        for word in words:
            flag, equals, name = word.partition("=")
            if flag == "--config" and equals:
                word = f"--config={self._config(name, checkout)}"
            elif before == "--config":
                word = self._config(word, checkout)
            found.append(word)
            before = word
        return found

    def _config(self, name: str, checkout: Path) -> str:
        """Find the config of a checkout."""
        file = Path(name).expanduser()
        if not file.exists():  # a name: the job's own code looks it up in its checkout
            known = name.removeprefix("./").removeprefix("configs/").removesuffix(".yaml") + ".yaml"
            only_here = known in config_names() and not (checkout / "configs" / known).is_file()
            return str(CONFIGS / known) if only_here else name
        file = file.resolve()
        inside = checkout / file.relative_to(self._project) if file.is_relative_to(self._project) else file
        return str(inside if inside.is_file() else file)

    def _has(self, commit: str) -> bool:
        try:
            return bool(_git(self._project, "rev-parse", "--verify", f"{commit}^{{commit}}"))
        except OSError:
            return False

    def _path(self, commit: str) -> Path:
        return self._folder / commit[:12]

    def _is_whole(self, checkout: Path, commit: str) -> bool:
        """Tell whether a checkout is complete and as its commit has it."""
        if not (checkout / ".git").is_file():
            return False
        try:
            head = _git(checkout, "rev-parse", "HEAD").strip()
            return head == commit and not _git(checkout, "status", "--porcelain", "--untracked-files=no")
        except OSError:
            return False

    def _remove(self, checkout: Path) -> None:
        """Remove a checkout, whole or not."""
        if not checkout.exists():
            return
        try:
            _git(self._project, "worktree", "remove", "--force", str(checkout))
        except OSError:  # a half one, of which git knows nothing
            shutil.rmtree(checkout)


def _git(at: Path, *words: str) -> str:
    """Run git in a folder and return what it says. Raises OSError with its error."""
    # Where a hook of git starts this, its variables name the repository of the hook.
    variables = {name: value for name, value in os.environ.items() if not name.startswith("GIT_")}
    command = ["git", "-C", str(at), *words]
    done = subprocess.run(command, capture_output=True, text=True, env=variables, stdin=subprocess.DEVNULL)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or [f"status {done.returncode}"]
        # The first error is the cause, as a full disk, and the last one what came of it.
        reason = next((line for line in lines if line.startswith(("error: ", "fatal: "))), lines[-1])
        raise OSError(f"git {words[0]} failed in {at}: {reason}")
    return done.stdout
