"""The code of each job: a checkout of the commit that it began with, or the installed package."""

from collections.abc import Sequence
from pathlib import Path

from arcvq.queue.checkouts import Checkouts, find_project, installed_versions
from arcvq.queue.queue_file import Job
from arcvq.queue.state import QueueState

# Names in one line.
_SHOWN = 5


class JobCode:
    """The code of a queue's jobs. A job that has not begun takes the commit of this moment.

    It says in a line each which changes are in no commit, and which packages have changed since a job began.

    Args:
        folder: of the queue's state.
        jobs: of the queue.
        state: of the queue, with an entry for each job.

    Raises:
        ValueError: a job began with a commit, and this package is in no git checkout.
        OSError: git cannot make a checkout.
    """

    def __init__(self, folder: Path, jobs: Sequence[Job], state: QueueState):
        self._jobs, self._state = jobs, state
        self._versions = installed_versions()
        project = find_project()
        self._checkouts = None if project is None else Checkouts(project, folder / "checkouts")
        self._commit = None if self._checkouts is None else self._checkouts.head()
        unfinished = [job.name for job in jobs if state.of(job.name).state != "done"]
        began = {name: state.of(name) for name in unfinished if state.of(name).has_begun and state.of(name).versions}
        if self._checkouts is None and (lost := [name for name, of in began.items() if of.commit is not None]):
            raise ValueError(
                f"job {lost[0]} began with commit {began[lost[0]].commit} of a git checkout; start the queue from one, "
                f"or take the installed package: --renew '[{', '.join(lost)}]'"
            )
        for name, of in began.items():
            if changed := self._changed(of.versions):
                print(f"note: since {name} began: {changed}; sums may be rounded otherwise")
        if len(began) < len(unfinished):
            self._announce()
        self.tidy()

    def begin(self, job: Job) -> tuple[list[str], list[str] | None]:
        """Note with what a job begins, if it does so now, and make its checkout.

        Returns:
            The words of its command, and where its process looks for packages first; None: where this one does.

        Raises:
            OSError: git cannot make the checkout.
        """
        of = self._state.of(job.name)
        if not of.versions:
            of.commit, of.versions = self._commit, self._versions
        if self._checkouts is None or of.commit is None:
            return list(job.words), None
        checkout = self._checkouts.open(of.commit)
        return self._checkouts.with_its_configs(job.words, checkout), self._checkouts.packages(checkout)

    def tidy(self) -> None:
        """Remove the checkouts that no unfinished job needs."""
        if self._checkouts is None:
            return
        unfinished = [of for job in self._jobs if (of := self._state.of(job.name)).state != "done"]
        self._checkouts.keep({of.commit if of.versions else self._commit for of in unfinished} - {None})

    def _announce(self) -> None:
        """Say what the jobs that begin now run."""
        if self._checkouts is None:
            version = self._versions.get("arcvq", "of an unknown version")
            print(f"note: this package is in no git checkout: jobs run arcvq {version} as it is")
            return
        self._checkouts.open(self._commit)  # now, as long as the commit is certainly there
        print(f"jobs that begin now run commit {self._commit[:12]}")
        if changed := self._checkouts.changed_files():
            more = f" and {len(changed) - _SHOWN} more" if len(changed) > _SHOWN else ""
            print(f"note: without the changes, in no commit, to {', '.join(changed[:_SHOWN])}{more}")

    def _changed(self, before: dict[str, str]) -> str:
        """Name the packages whose versions have changed."""
        now = self._versions
        names = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        return ", ".join(f"{name} was {before.get(name)} and is now {now.get(name)}" for name in names)
