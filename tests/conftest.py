"""Fixtures that all tests share."""

import gc
import importlib
from collections.abc import Iterator
from pathlib import Path

import jaxtyping
import pytest
from checking import jaxtyped_arrays
from hypothesis import settings

settings.register_profile("long", max_examples=10_000)

KIT = Path(__file__).parents[1] / "inat"
HEAVY = ("timm", "accelerate", "albumentations", "cyclopts", "pandas", "scipy.stats", "sklearn")


def pytest_configure(config: pytest.Config) -> None:
    """Has all signatures of the kit checked, in the processes that run tests."""
    if config.getoption("numprocesses", None) and not hasattr(config, "workerinput"):
        return  # xdist's controller runs none
    # First, since what is imported while the hook is at work is compiled anew in every process.
    for package in HEAVY:
        importlib.import_module(package)
    # A training ends with a full collection, which would walk through all of these each time.
    gc.freeze()
    # Bits depend on it; the processes that tests start have one thread too.
    importlib.import_module("torch").set_num_threads(1)
    # What speaks of arrays; mypy reads the rest.
    jaxtyping.jaxtyped = jaxtyped_arrays  # the name by which the hook asks for it
    modules = [
        path
        for path in KIT.rglob("*.py")
        if any(word in path.read_text() for word in ("jaxtyping", "import shapes", ", shapes\n"))
    ]
    names = [".".join(path.relative_to(KIT.parent).with_suffix("").parts) for path in modules]
    jaxtyping.install_import_hook(names, "checking.checked")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of four species with 30, 8, 3 and 2 training photos; not to be written to."""
    from worlds import make_world  # imports the kit

    return make_world(tmp_path_factory.mktemp("world"))


@pytest.fixture
def unchecked() -> Iterator[None]:
    """Without the check of signatures, which draws the elements that it looks at from `random`."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)
