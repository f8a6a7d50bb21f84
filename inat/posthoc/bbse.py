"""Black box shift estimation (BBSE): what hard predictions and a confusion matrix say of a shift.

C_ij = P(predicted i, true j) on held-out photos, mu_i the share of the target's photos that are
predicted i. Where only the species' shares p have moved, mu = C w with w_j = p_j / pi_j (Lipton et
al. 2018, arXiv 1802.03916). EM's estimate must solve that equation too, as far as chance allows.
Everything is float64.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float, Float64, Int64

from inat.core.priors import Prior
from inat.posthoc.calibration import Calibration, row_blocks


@dataclass(frozen=True)
class BbseCheck:
    """How far an estimated prior is from solving BBSE's equation: `unexplained` is by how much C w
    exceeds mu, summed over the classes where it does; `by_chance` what it hardly ever exceeds where
    only the species' shares have moved (its mean under the errors of C and mu, and four standard
    deviations)."""

    unexplained: float
    by_chance: float

    @property
    def agrees(self) -> bool:
        """Whether the other estimate explains the hard predictions as far as chance allows."""
        return self.unexplained <= self.by_chance


def hard_predictions(
    logits: Float[np.ndarray, "images classes"], calibration: Calibration, source: Prior
) -> Int64[np.ndarray, "images"]:
    """The class of largest likelihood ratio f_j(x) / pi_j. BBSE works with any classifier; the most
    probable class is never a tail species, whose row of the confusion matrix would be empty."""
    with np.errstate(divide="ignore"):
        shift = np.where(source > 0, -np.log(source), -np.inf)
    return np.concatenate(
        [
            (calibration.logits(logits[rows]) + shift).argmax(axis=1)
            for rows in row_blocks(*logits.shape)
        ]
    )


def confusion_matrix(
    predicted: Int64[np.ndarray, "images"], labels: Int64[np.ndarray, "images"], n_classes: int
) -> Any:
    """C_ij = P(predicted i, true j), a sparse array `[classes, classes]` that sums to 1."""
    from scipy.sparse import csr_array  # here: slow to import

    shares = np.full(len(labels), 1 / len(labels))
    return csr_array((shares, (predicted, labels)), shape=(n_classes, n_classes))


def explained_shares(
    confusion: Any, prior: Prior, n_held: int
) -> tuple[Float64[np.ndarray, "classes"], Float64[np.ndarray, "classes"]]:
    """C w under `prior`, summed over the held-out classes j, and its sampling variance: of n_j
    held-out photos the share c_ij is predicted i, with variance c_ij (1 - c_ij) / (n_j - 1); c_ij
    for one photo."""
    from scipy.sparse import diags_array  # here: slow to import

    held: Float64[np.ndarray, classes] = np.asarray(confusion.sum(axis=0)).ravel()
    inverse = np.divide(1, held, out=np.zeros_like(held), where=held > 0)
    given = confusion @ diags_array(inverse)
    counts = np.rint(held * n_held)
    per_photo = prior**2 / np.maximum(counts - 1, 1)
    return given @ prior, given @ per_photo - given.power(2) @ (per_photo * (counts > 1))


def check_by_bbse(
    prior: Prior,
    held: tuple[Int64[np.ndarray, "held"], Int64[np.ndarray, "held"]],
    predicted: Int64[np.ndarray, "images"],
) -> BbseCheck:
    """Checks an estimate of the target's prior by the hard predictions and labels of the held-out
    photos and the hard predictions of the target's."""
    n_held, n_target, n_classes = len(held[1]), len(predicted), len(prior)
    mu = np.bincount(predicted, minlength=n_classes) / n_target
    explained, variance = explained_shares(confusion_matrix(*held, n_classes), prior, n_held)
    error = np.sqrt(np.maximum(variance, 0) + mu * (1 - mu) / n_target)
    # Half the sum of |x|, each x ~ N(0, s^2): |x| has mean s sqrt(2 / pi) and variance
    # s^2 (1 - 2 / pi). Three deviations are exceeded now and then by a pure shift towards species
    # of a few held-out photos, whose errors are far from normal.
    mean, deviation = np.sqrt(2 / np.pi) * error.sum(), np.sqrt((1 - 2 / np.pi) * (error**2).sum())
    return BbseCheck(
        # What is predicted of the classes that are not held out nobody knows: it can only add to
        # mu. Where all are, this is the total variation between mu and C w.
        unexplained=float(np.maximum(explained - mu, 0).sum()),
        by_chance=float(mean + 4 * deviation) / 2,
    )
