"""Damaged files of every kind: nothing but the documented error comes out of a reader.

200 inputs a target here; `make fuzz` gives each 10,000.
"""

from pathlib import Path

import pytest
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, event, given, settings

from inat.data.photos import BadPhoto
from inat.errors import InatError

FEWEST = 200


@pytest.mark.parametrize("name", TARGETS)
def test_a_damaged_file_gives_the_documented_error_or_none(name: str, tmp_path: Path) -> None:
    contents, read = TARGETS[name](tmp_path)

    @settings(
        max_examples=max(FEWEST, settings.default.max_examples),
        deadline=None,
        database=None,
        derandomize=settings.default.max_examples < FEWEST,  # `make test` gives the same each time
        suppress_health_check=list(HealthCheck),
    )
    @given(contents)
    def holds(content: bytes) -> None:
        try:
            read(content)
        except (InatError, BadPhoto) as error:
            assert str(error)
            event(type(error).__name__)
        else:
            event("accepted")

    holds()
