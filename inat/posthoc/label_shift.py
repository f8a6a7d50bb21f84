"""Label shift: the class prior of photos without labels, estimated from their logits alone.

Notation: f_j(x) the calibrated probability of class j, pi the prior that f is calibrated to, p the
prior that is looked for. The species' photos are assumed to look as before and only their shares
to have moved, so that f_j(x) / pi_j = p(x | j) / p(x) holds under any prior: these *likelihood
ratios* are all that EM reads. Everything is float64.

Sources: EM, Saerens et al. 2002 (doi 10.1162/089976602753284446); its smoothing by a Dirichlet
prior (MAP), Sulc and Matas 2019 (arXiv 1805.08235); calibration first, Alexandari et al. 2020
(arXiv 1901.06852).
"""

from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from jaxtyping import Float, Float64, Int64

from inat.core.priors import Prior, temper, total_variation
from inat.posthoc.bbse import BbseCheck, check_by_bbse, hard_predictions
from inat.posthoc.calibration import Calibration, calibrate, mean_probability, row_blocks

DENSE_RATIOS = 20_000_000
"""Up to so many likelihood ratios, all of them are kept."""

RATIO_FLOOR = 1e-3
"""Of more, those up to this are dropped. A class loses at most that share of an EM step; the
chance of which photos there are moves it by 1 / sqrt(its photos), a hundred times as much."""

MAX_RATIOS = 50_000_000
"""Ratios that are kept at most, 12 bytes each; where there are more, the floor is raised."""

PSEUDO_COUNTS = (1e4, 1e3, 100.0, 30.0, 10.0, 3.0, 1.0, 0.3, 0.0)
"""Strengths of the smoothing that are tried, strongest first, in photos a class; 0: plain EM."""

N_RESAMPLES = 20

Ratios: TypeAlias = Any
"""float64 `[images, classes]`, an array or a scipy.sparse.csr_array; scipy states no types."""


@dataclass(frozen=True, eq=False)
class LabelShift:
    """An estimated prior with the evidence for it."""

    prior: Prior  # the estimate, EM's
    source: Prior  # that the calibrated logits carry
    calibration: Calibration
    pseudo_counts: float  # of the smoothing, photos a class; 0: plain EM
    gain: float  # over no shift, on photos it was not made from: nats of log-likelihood per photo
    n_iterations: int
    converged: bool
    shift: float  # total variation between estimate and source
    # Total variation of estimate less source with the choice of photos and of held-out ones.
    spread: float
    check: BbseCheck | None  # None without held-out photos

    @property
    def is_stable(self) -> bool:
        """Whether the photos bear out a shift: it explains photos that it was not made from
        better than none, and is more than twice what the choice of photos does to it."""
        return self.gain > 0 and self.shift > 2 * self.spread

    def warnings(self, n_photos: int) -> list[str]:
        said = []
        if not self.converged:
            said.append(f"EM still moves after {self.n_iterations} steps; the estimate is rough")
        if not self.is_stable:
            said.append(
                f"the estimate is unstable, the {n_photos:,} photos bear out no shift: moved "
                f"{self.shift:.1%}, by their choice alone ±{self.spread:.1%}, gain on photos left "
                f"out {self.gain:.3f} nats"
            )
        if self.check is not None and not self.check.agrees:
            said.append(
                f"EM and BBSE disagree: EM's prior leaves {self.check.unexplained:.1%} of the "
                "predicted species unexplained, where a pure shift of the species' shares leaves "
                f"at most {self.check.by_chance:.1%}; these photos may look other than the "
                "held-out ones, or the model knows the tail too badly to be calibrated"
            )
        return said


def estimate_label_shift(
    logits: Float[np.ndarray, "images classes"],
    base: Prior,
    *,
    source: Prior | None = None,
    held_out: tuple[Float[np.ndarray, "held classes"], Int64[np.ndarray, "held"]] | None = None,
    seed: int = 0,
) -> LabelShift:
    """The class prior of photos without labels, at least two.

    Args:
        base: shares of the training photos, above 0; the smoothing draws towards a power of them.
        source: the prior that the logits carry; with `held_out` it is measured there instead.
        held_out: logits and labels of photos of the same model that were not trained on, for
            calibration, the source prior and BBSE. None: the logits are taken as calibrated.
    """
    calibration = Calibration(1.0, np.zeros(len(base)))
    if held_out is not None:
        calibration = calibrate(*held_out)
        source = mean_probability(held_out[0], calibration)
    assert source is not None
    ratios = likelihood_ratios(logits, calibration, source)
    pseudo_counts, gain = choose_pseudo_counts(ratios, base, seed=seed)
    found = em(ratios, base, pseudo_counts * temper(base, fit_power(ratios, base)))
    prior = found.priors[:, 0]
    again = resampled_priors(ratios, prior, base, pseudo_counts, seed=seed)
    unmoved = np.repeat(prior[:, None], N_RESAMPLES, axis=1)
    spread, check = float(total_variation(again, unmoved).mean()), None
    if held_out is not None:
        halves = shifts_by_halves(logits, held_out, prior, base, pseudo_counts, seed=seed)
        # Two halves differ twice as much as the whole from another whole's expectation.
        spread = float(np.hypot(spread, total_variation(*halves) / 2))
        predicted = hard_predictions(held_out[0], calibration, source)
        check = check_by_bbse(
            prior, (predicted, held_out[1]), hard_predictions(logits, calibration, source)
        )
    return LabelShift(
        prior=prior,
        source=source,
        calibration=calibration,
        pseudo_counts=pseudo_counts / len(base),
        gain=gain,
        n_iterations=found.n_iterations,
        converged=found.converged,
        shift=float(total_variation(prior, source)),
        spread=spread,
        check=check,
    )


def likelihood_ratios(
    logits: Float[np.ndarray, "images classes"], calibration: Calibration, source: Prior
) -> Ratios:
    """f_j(x) / pi_j of every photo and class; 0 for a class whose source prior is 0: nothing is
    known."""
    inverse = np.divide(1, source, out=np.zeros_like(source), where=source > 0)
    if logits.size <= DENSE_RATIOS:
        return calibration.probabilities(logits) * inverse
    import scipy.sparse as sp  # here: slow to import, and no help needs it

    floor, n_kept = RATIO_FLOOR, 0
    kept: list[Ratios] = []
    for rows in row_blocks(*logits.shape):
        ratios = calibration.probabilities(logits[rows]) * inverse
        kept.append(sp.csr_array(np.where(ratios > floor, ratios, 0)))
        n_kept += kept[-1].nnz
        # A photo's mean ratio under the source prior is 1: none loses all of its own.
        while n_kept > MAX_RATIOS and floor < 0.1:
            floor *= 10
            kept = [block.multiply(block > floor).tocsr() for block in kept]
            n_kept = sum(block.nnz for block in kept)
    return sp.vstack(kept, format="csr")


class EmResult(NamedTuple):
    priors: Float64[np.ndarray, "classes columns"]  # a column an estimate
    n_iterations: int  # of the slowest
    converged: bool  # whether each one's last step moved less than the tolerance


def em(
    ratios: Ratios,
    start: Prior,
    pseudo_counts: Float64[np.ndarray, "classes"] | Float64[np.ndarray, "classes columns"],
    weights: Float64[np.ndarray, "images columns"] | None = None,
    *,
    tolerance: float = 1e-5,
    max_iterations: int = 2000,
) -> EmResult:
    """The prior of largest likelihood, or of largest posterior under a Dirichlet prior.

    A step is q(j | x) ~ p_j f_j(x) / pi_j and p_j = (a_j + sum_x q(j | x)) / (sum a + images)
    (Saerens et al. 2002, eq. 2.9, where a = 0; Sulc and Matas 2019 with a = alpha - 1). The
    likelihood is concave in the prior: the start matters for the time alone, as long as no class
    starts at 0, where it would stay.

    Args:
        pseudo_counts: a, photos that each class is given; one column per estimate.
        weights: how often each photo counts in each estimate; None: once.
        tolerance: an estimate rests when a step's total variation is below it.
    """
    pseudo = pseudo_counts if pseudo_counts.ndim == 2 else pseudo_counts[:, None]
    n_columns = pseudo.shape[1]
    weights = np.ones((ratios.shape[0], n_columns)) if weights is None else weights
    priors, moving = np.repeat(start[:, None], n_columns, axis=1), np.arange(n_columns)
    n_iterations = 0
    while moving.size and n_iterations < max_iterations:
        n_iterations += 1
        before = priors[:, moving]
        # Photos of each class in expectation: p_j sum_x R_j(x) / sum_k p_k R_k(x).
        mixture = ratios @ before
        # A photo can be one that no class with a share explains.
        share = np.divide(
            weights[:, moving], mixture, out=np.zeros_like(mixture), where=mixture > 0
        )
        expected = before * (ratios.T @ share) + pseudo[:, moving]
        priors[:, moving] = expected / expected.sum(axis=0)
        moving = moving[total_variation(priors[:, moving], before) >= tolerance]
    return EmResult(priors, n_iterations, not moving.size)


def log_likelihood(
    ratios: Ratios, priors: Float64[np.ndarray, "classes columns"]
) -> Float64[np.ndarray, "images columns"]:
    """log p(x) of each photo under each prior, over that under the source prior."""
    return np.log(np.maximum(ratios @ priors, np.finfo(np.float64).tiny))


def fit_power(
    ratios: Ratios, base: Prior, weights: Float64[np.ndarray, "images"] | None = None
) -> float:
    """The power of `base`, from -2 to 2, under which the photos are likeliest: 1 the training
    shares, 0 uniform, -1 the tail turned round. One number where EM has one per class, so few
    photos suffice. (power - 1)^2 / 2 nats count for no shift, which outweighs only a handful of
    photos."""
    weights = np.ones(ratios.shape[0]) if weights is None else weights

    def loss(power: float) -> float:
        gains = log_likelihood(ratios, temper(base, power)[:, None])[:, 0]
        return float((power - 1) ** 2 / 2 - weights @ gains)

    from scipy.optimize import minimize_scalar  # here: slow to import, and no help needs it

    return float(minimize_scalar(loss, bounds=(-2, 2), method="bounded").x)


def choose_pseudo_counts(ratios: Ratios, base: Prior, *, seed: int = 0) -> tuple[float, float]:
    """How many pseudo-photos (of all classes together) let one half of the photos explain the
    other, and the mean gain over no shift, in nats of log-likelihood per photo.

    Plain EM has a free number per class: with a handful of photos per species it fits their chance,
    sets species to 0, and loses accuracy where nothing has shifted. So the shares are drawn towards
    a power of `base` (`fit_power`), as strongly as two-fold cross-validation on the photos' own
    likelihood, which needs no labels, allows: the strongest that is within one standard error of
    the best (Breiman et al. 1984, the 1-SE rule). Between species that look alike the likelihood is
    so flat that the best alone is often a photo's chance.
    """
    n_images, n_classes = ratios.shape
    in_one = np.random.default_rng(seed).permutation(n_images) < n_images // 2
    strengths = n_classes * np.array(PSEUDO_COUNTS)
    gains = np.empty((n_images, len(strengths)))
    for seen in (in_one, ~in_one):
        known, centre = ratios[seen], temper(base, fit_power(ratios[seen], base))
        # The likelihood is flat where EM comes to rest: this near, it has its value.
        priors = em(known, centre, centre[:, None] * strengths, tolerance=1e-4).priors
        gains[~seen] = log_likelihood(ratios[~seen], priors)
    chosen = strongest_within_error(gains)
    return float(strengths[chosen]), float(gains[:, chosen].mean())


def strongest_within_error(gains: Float64[np.ndarray, "images strengths"]) -> int:
    """The first column whose mean is below the best one's by one standard error at most, that of
    their paired difference."""
    behind = gains[:, [gains.mean(axis=0).argmax()]] - gains
    error = behind.std(axis=0) / np.sqrt(len(gains))
    return int((behind.mean(axis=0) <= error).argmax())


def resampled_priors(
    ratios: Ratios, prior: Prior, base: Prior, pseudo_counts: float, *, seed: int = 0
) -> Float64[np.ndarray, "classes resamples"]:
    """The EM estimates, from `prior`, of `N_RESAMPLES` bootstrap samples, each with its own
    `fit_power`."""
    n_images = ratios.shape[0]
    rng = np.random.default_rng(seed)
    shares = np.full(n_images, 1 / n_images)
    weights = rng.multinomial(n_images, shares, size=N_RESAMPLES).T.astype(np.float64)
    centres = [temper(base, fit_power(ratios, base, column)) for column in weights.T]
    return em(ratios, prior, pseudo_counts * np.array(centres).T, weights).priors


def shifts_by_halves(
    logits: Float[np.ndarray, "images classes"],
    held_out: tuple[Float[np.ndarray, "held classes"], Int64[np.ndarray, "held"]],
    prior: Prior,
    base: Prior,
    pseudo_counts: float,
    *,
    seed: int = 0,
) -> tuple[Float64[np.ndarray, "classes"], Float64[np.ndarray, "classes"]]:
    """Estimate less source, with each half of the held-out photos; the rest as in
    `resampled_priors`."""
    order = np.random.default_rng(seed).permutation(len(held_out[1]))
    shifts = []
    for half in (order[::2], order[1::2]):
        calibration = calibrate(held_out[0][half], held_out[1][half])
        source = mean_probability(held_out[0][half], calibration)
        ratios = likelihood_ratios(logits, calibration, source)
        centre = temper(base, fit_power(ratios, base))
        shifts.append(em(ratios, prior, pseudo_counts * centre).priors[:, 0] - source)
    return shifts[0], shifts[1]
