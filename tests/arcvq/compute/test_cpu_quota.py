"""What control groups grant, read from folders as Linux has them."""

from math import inf

import pytest

from arcvq.compute.cpu_quota import cpu_quota


@pytest.fixture
def quota(tmp_path):
    """Reads the quota of a process in the given groups, where the given files exist."""

    def read(groups, **files):
        (tmp_path / "groups").write_text("".join(f"{group}\n" for group in groups))
        for name, text in files.items():
            file = tmp_path / "mounted" / name.replace("__", "/").replace("cpu_", "cpu.")
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(f"{text}\n")
        return cpu_quota(tmp_path / "groups", tmp_path / "mounted")

    return read


def test_version_2(quota):
    assert quota(["0::/job/step"], job__step__cpu_max="150000 100000", job__cpu_max="max 100000") == 1.5


def test_the_tightest_group_above_counts(quota):
    assert quota(["0::/job/step"], job__step__cpu_max="800000 100000", job__cpu_max="400000 100000") == 4


def test_version_1(quota):
    files = {"cpu__box__cpu_cfs_quota_us": "250000", "cpu__box__cpu_cfs_period_us": "100000"}
    assert quota(["5:memory:/other", "4:cpu,cpuacct:/box", "0::/"], **files) == 2.5
    assert quota(["4:cpuset:/box"]) == inf
    assert quota(["4:cpu:/box"], cpu__box__cpu_cfs_quota_us="-1") == inf


def test_a_container_sees_its_own_group_as_the_root(quota):
    assert quota(["0::/docker/4f2a"], cpu_max="300000 100000") == 3


def test_no_limit(quota, tmp_path):
    assert quota(["0::/job"], job__cpu_max="max 100000") == inf
    assert quota([]) == inf
    assert cpu_quota(tmp_path / "none", tmp_path) == inf
