"""The versions that make installs: each one plain, and within the bounds that pyproject.toml gives to users."""

import re
import tomllib

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from places import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
INSTALLED = [Requirement(text) for text in (*PROJECT["dependencies"], *EXTRAS["dev"])]
EVERY = [*INSTALLED, *(Requirement(text) for text in EXTRAS["benchmark"])]


@pytest.fixture(scope="module")
def locked():
    """Versions by name."""
    lines = [line for line in (ROOT / ".ci/constraints.txt").read_text().splitlines() if not line.startswith("#")]
    # Neither a place on some machine nor a build for some device.
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+==[0-9a-z.]+", line) for line in lines)
    found = dict(line.split("==") for line in lines)
    return {canonicalize_name(name): version for name, version in found.items()}


@pytest.mark.parametrize("requirement", INSTALLED, ids=str)
def test_the_locked_version_is_within_the_bounds(locked, requirement):
    assert requirement.specifier.contains(locked[canonicalize_name(requirement.name)])


@pytest.mark.parametrize("requirement", EVERY, ids=str)
def test_a_dependency_has_a_lower_and_an_upper_bound(requirement):
    assert sorted(bound.operator for bound in requirement.specifier) == ["<", ">="]


def test_only_the_dependencies_of_dependencies_are_locked_beside_them(locked):
    assert "arcvq" not in locked and "pip" not in locked
