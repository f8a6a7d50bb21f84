"""The versions that `make` installs: known for every package, within the bounds of pyproject."""

import itertools
import tomllib
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

TOP = Path(__file__).parents[1]
CONSTRAINTS = TOP / ".ci" / "constraints.txt"
FOLLOW_TORCH = ("nvidia-", "cuda-", "triton")


def pins() -> dict[str, Version]:
    found = {}
    for line in CONSTRAINTS.read_text().splitlines():
        if line.startswith("#"):
            continue
        requirement = Requirement(line)
        (pin,) = requirement.specifier
        assert pin.operator == "==", line
        assert requirement.url is None, line
        found[canonicalize_name(requirement.name)] = Version(pin.version)
    return found


def direct() -> list[Requirement]:
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    extras = project["optional-dependencies"].values()
    return [Requirement(each) for each in itertools.chain(project["dependencies"], *extras)]


def test_every_direct_dependency_has_one_version_within_its_bounds() -> None:
    pinned = pins()
    for requirement in direct():
        version = pinned[canonicalize_name(requirement.name)]
        assert version in requirement.specifier, requirement


def test_no_version_is_local_or_of_what_follows_torch() -> None:
    for name, version in pins().items():
        assert version.local is None, name
        assert not name.startswith(FOLLOW_TORCH), name
