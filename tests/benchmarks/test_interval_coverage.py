"""How often the 95 % intervals hold the truth, in every world of interval_table.py."""

import math

import interval_table
import pytest


def test_intervals_hold_the_truth_in_every_world(capsys: pytest.CaptureFixture[str]) -> None:
    with capsys.disabled():
        print()
        of_means, of_f1 = interval_table.main(interval_table.N_EXPERIMENTS)
    for least, found in ((0.93, of_means), (0.9, of_f1)):
        for each in found:
            chance = 3 * math.sqrt(least * (1 - least) / each.n_experiments)
            assert each.covered >= least - chance
