"""Damaged files of every kind: nothing but the documented error comes out of a reader.

200 inputs a kind of file here; `make fuzz` gives each 10,000, and again as many by atheris, which
looks at which lines an input reaches.
"""

from pathlib import Path

import pytest
from fuzz_targets import TARGETS
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st

from inat.data.photos import BadPhoto
from inat.errors import InatError

FEWEST = 200


@pytest.mark.parametrize("kind", TARGETS)
def test_a_damaged_file_gives_the_documented_error_or_none(kind: str, tmp_path: Path) -> None:
    cases, read = [], {}
    for target in TARGETS[kind]:
        name = target.__name__
        (tmp_path / name).mkdir()
        contents, read[name] = target(tmp_path / name)
        cases.append(st.tuples(st.just(name), contents))

    @settings(
        max_examples=max(FEWEST, settings.default.max_examples),
        derandomize=settings.default.max_examples < FEWEST,  # `make test` gives the same each time
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(cases))
    def holds(case: tuple[str, bytes]) -> None:
        name, content = case
        try:
            read[name](content)
        except (InatError, BadPhoto) as error:
            assert str(error)
            event(f"{name}: {type(error).__name__}")
        else:
            event(f"{name}: accepted")

    holds()
