"""The kit's shape, as `python tests/structure.py` counts it."""

import ast

import pytest
import structure

GOOGLE = '''
def f(a, b):
    """X.

    Args:
        a: one.
        b: two, of which
            c: no.

    Raises:
        d: never.
    """
'''
NUMPY = '''
def f(a, b):
    """X.

    Parameters
    ----------
    a
        one.
    b
        two.
    """
'''


def test_no_option_is_documented_twice() -> None:
    assert structure.options_documented_twice() == []


def test_no_fact_of_a_run_or_a_prediction_is_asked_for_by_a_string() -> None:
    assert structure.facts_by_string() == []


def test_modules_are_in_rooms_and_none_of_these_outgrows_the_others() -> None:
    lines = structure.lines_by_room()
    assert len(structure.root_modules()) <= 5
    assert max(lines.values()) <= 0.15 * sum(lines.values())


def test_few_functions_are_private_and_used_once() -> None:
    assert structure.share_used_once() <= 0.15


def test_a_training_step_is_read_in_few_lines_and_files() -> None:
    for case, most in {"simple": (120, 2), "full": (350, 6)}.items():
        functions = structure.STEP[case]
        assert structure.lines_to_read(functions) <= most[0]
        assert len(functions) <= most[1]


@pytest.mark.parametrize("source", [GOOGLE, NUMPY], ids=["Google", "NumPy"])
def test_the_explained_parameters_are_read_in_both_styles_of_docstrings(source: str) -> None:
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert structure.explained(function) == {"a", "b"}
