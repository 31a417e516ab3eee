"""Read how much processor time a container or a batch system grants."""

from math import inf
from pathlib import Path


def cpu_quota(groups: Path = Path("/proc/self/cgroup"), mounted: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the processors' time per time that this process's control groups grant, infinity without a limit.

    Args:
        groups: file that lists the process's groups, one a line: `number:controllers:path`.
        mounted: where the groups' files are; version 1 has a folder for each controller there.
    """
    if not groups.is_file():  # not Linux
        return inf
    quotas = []
    for line in groups.read_text().splitlines():
        _, controllers, path = line.split(":", 2)
        if controllers and "cpu" not in controllers.split(","):
            continue
        root = mounted / "cpu" if controllers else mounted
        group = root / path.lstrip("/")  # a container may not see its own group, but a group above it
        quotas += [_quota(folder) for folder in (group, *group.parents) if folder.is_relative_to(root)]
    return min(quotas, default=inf)


def _quota(folder: Path) -> float:
    """Read the limit of one group, of either version."""
    both = folder / "cpu.max"
    quota, period = folder / "cpu.cfs_quota_us", folder / "cpu.cfs_period_us"
    if both.is_file():
        granted, length = both.read_text().split()
    elif quota.is_file() and period.is_file():
        granted, length = quota.read_text().strip(), period.read_text().strip()
    else:
        return inf
    return inf if granted in ("max", "-1") else int(granted) / int(length)
