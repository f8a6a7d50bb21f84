"""Prints how much of the oracle's gain an estimated prior recovers, on worlds of known shift.

The oracle knows the target's prior; its gain is its accuracy less that under the source prior, of
the same calibrated logits, on 10,000 other photos of the target. Given are medians over 5 seeds,
and of the share that EM recovers the least and the most as well. EM is `estimate_label_shift`,
plain EM the same without its smoothing. Counted are the seeds in which the estimate was called
unstable and those in which EM and BBSE were said to disagree. Where nothing has shifted there is
no gain to recover.

python tests/benchmarks/label_shift_table.py
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/shift_worlds.py

from shift_worlds import ShiftWorld, accuracy

from inat.posthoc.label_shift import em, estimate_label_shift, likelihood_ratios

N_SEEDS = 5
N_OTHERS = 10_000
SHIFTS = ("none", "uniform", "reversed", "dirichlet")
WORLDS = (  # held-out photos, target photos
    ("exact posteriors", ShiftWorld(5, 3, 2000), 1000, 1000),
    ("overconfident, biased", ShiftWorld(20, 5, 2000, overconfidence=1.6, bias_spread=0.5),
     2000, 2000),
    ("overconfident, biased", ShiftWorld(50, 6, 2000, overconfidence=1.6, bias_spread=0.5),
     3000, 2000),
    ("learned tail", ShiftWorld(300, 12, 500, 200, overconfidence=1.3, learned=True), 4000, 1500),
    ("learned tail", ShiftWorld(1000, 16, 500, 200, overconfidence=1.3, learned=True),
     15_000, 3000),
)  # fmt: skip


@dataclass(frozen=True)
class Outcome:
    """One seed: accuracies, and what was warned of."""

    source: float
    oracle: float
    em: float
    plain: float
    unstable: bool
    disagree: bool

    def recovered(self, accuracy: float) -> float:
        """Share of the oracle's gain."""
        return (accuracy - self.source) / (self.oracle - self.source)


def run(world: ShiftWorld, shift: str, n_held: int, n_target: int) -> Outcome:
    held_out = world.held_out(n_held)
    target = world.target(shift)
    logits = world.photos(world.draw(target, n_target))
    found = estimate_label_shift(logits, world.source, held_out=held_out)
    ratios = likelihood_ratios(logits, found.calibration, found.source)
    plain = em(ratios, found.source, np.zeros(world.n_classes)).priors[:, 0]
    others = world.draw(target, N_OTHERS)
    calibrated = found.calibration.logits(world.photos(others))
    assert found.check is not None

    def score(prior: np.ndarray) -> float:
        return accuracy(calibrated, found.source, prior, others)

    return Outcome(
        source=score(found.source),
        oracle=score(target),
        em=score(found.prior),
        plain=score(plain),
        unstable=not found.is_stable,
        disagree=not found.check.agrees,
    )


def row(world: ShiftWorld, shift: str, n_held: int, n_target: int) -> list[str]:
    outcomes = [run(replace(world, seed=seed), shift, n_held, n_target) for seed in range(N_SEEDS)]
    cells = [shift]
    for field in ("source", "oracle", "em", "plain"):
        cells.append(f"{100 * np.median([getattr(o, field) for o in outcomes]):.1f}")
    if shift == "none":
        cells += ["–", "–"]
    else:
        shares = [100 * o.recovered(o.em) for o in outcomes]
        cells.append(f"{np.median(shares):.0f} ({min(shares):.0f}..{max(shares):.0f})")
        cells.append(f"{np.median([100 * o.recovered(o.plain) for o in outcomes]):.0f}")
    return [*cells, str(sum(o.unstable for o in outcomes)), str(sum(o.disagree for o in outcomes))]


def main() -> None:
    """Prints each row as it is found."""
    heads = ("shift", "source", "oracle", "EM", "plain EM", "EM recovers, %", "plain, %",
             "unstable", "disagree")  # fmt: skip
    for title, world, n_held, n_target in WORLDS:
        print(
            f"{world.n_classes} species, {title}; {n_held:,} held-out photos, {n_target:,} target"
        )
        print_row(heads)
        for shift in SHIFTS:
            print_row(row(world, shift, n_held, n_target))


def print_row(cells: Sequence[str]) -> None:
    widths = (10, 7, 7, 7, 9, 17, 9, 9, 9)
    print(*(cell.rjust(width) for cell, width in zip(cells, widths, strict=True)), flush=True)


if __name__ == "__main__":
    main()
