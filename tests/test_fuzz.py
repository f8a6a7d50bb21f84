"""Damaged files of every kind: nothing but the documented error comes out of a reader, which
returns and takes little memory, be the file a pipe, 100 GB of zeros or gigabytes packed small.

200 inputs a kind of file here; `make fuzz` gives each 10,000, and again as many by atheris, which
looks at which lines an input reaches.
"""

from pathlib import Path

import pytest
from damage import PIPE, Content, ending, huge, memory_below, now_and_then, with_replaced
from fuzz_targets import AS_THEY_ARE, BOMBS, TARGETS
from hypothesis import HealthCheck, event, example, given, settings
from hypothesis import strategies as st

from inat.core.errors import InatError
from inat.photos.decode import BadPhoto

FEWEST = 120


@pytest.mark.parametrize("kind", TARGETS)
def test_a_damaged_file_gives_the_documented_error_or_none(kind: str, tmp_path: Path) -> None:
    is_long = settings.default.max_examples >= FEWEST
    cases, once, read = [], [], {}
    for target in TARGETS[kind]:
        name = target.__name__
        (tmp_path / name).mkdir()
        contents, read[name] = target(tmp_path / name)
        bombs = BOMBS[target](tmp_path / name) if target in BOMBS else []
        if target not in AS_THEY_ARE:
            contents = with_replaced(contents)
            once += [(name, PIPE), (name, huge(b""))]
        once += [(name, bomb) for bomb in bombs]
        if bombs and is_long:
            contents = now_and_then(st.sampled_from(bombs), contents, 50)
        cases.append(st.tuples(st.just(name), contents))

    @settings(
        max_examples=max(FEWEST, settings.default.max_examples),
        derandomize=not is_long,  # `make test` gives the same each time
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(st.one_of(cases))
    def holds(case: tuple[str, Content]) -> None:
        name, content = case
        try:
            with ending(120):
                read[name](content)
        except (InatError, BadPhoto) as error:
            assert str(error)
            event(f"{name}: {type(error).__name__}")
        else:
            event(f"{name}: accepted")

    for case in once:
        holds = example(case)(holds)
    with memory_below(2**30):
        holds()
