"""Fixtures that all tests share."""

from pathlib import Path

import jaxtyping
import pytest
from hypothesis import settings

# Before anything of inat is imported.
jaxtyping.install_import_hook("inat", "checking.checked")

from worlds import make_world  # noqa: E402

settings.register_profile("long", max_examples=10_000)


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of four species with 30, 8, 3 and 2 training photos; not to be written to."""
    return make_world(tmp_path_factory.mktemp("world"))
