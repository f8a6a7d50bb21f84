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


@pytest.mark.parametrize("source", [GOOGLE, NUMPY], ids=["Google", "NumPy"])
def test_the_explained_parameters_are_read_in_both_styles_of_docstrings(source: str) -> None:
    (function,) = ast.parse(source).body
    assert isinstance(function, ast.FunctionDef)
    assert structure.explained(function) == {"a", "b"}
