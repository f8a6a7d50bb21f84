"""Bias-corrected temperature scaling: probabilities that held-out photos bear out.

Source: Alexandari et al. 2020 (arXiv 1901.06852). Everything is float64.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, Float64, Int64

from inat.core.priors import Prior

BLOCK_ENTRIES = 2**20
"""Logits that are worked on at a time: some 8 MB, which stay in the processor's cache."""


@dataclass(frozen=True, eq=False)
class Calibration:
    """softmax(z / T + b), bias-corrected temperature scaling (Alexandari et al. 2020)."""

    temperature: float  # T
    bias: Float64[np.ndarray, "classes"]  # b
    # mean negative log-likelihood of the held-out photos with T = 1, b = 0, in nats
    nll_before: float = float("nan")
    nll: float = float("nan")  # the same with T and b

    def logits(
        self, logits: Float[np.ndarray, "images classes"]
    ) -> Float64[np.ndarray, "images classes"]:
        """z / T + b."""
        moved: Float64[np.ndarray, "images classes"] = logits.astype(np.float64)
        moved /= self.temperature
        moved += self.bias
        return moved

    def probabilities(
        self, logits: Float[np.ndarray, "images classes"]
    ) -> Float64[np.ndarray, "images classes"]:
        """softmax(z / T + b)."""
        return _softmax(self.logits(logits))[0]


def calibrate(
    logits: Float[np.ndarray, "images classes"],
    labels: Int64[np.ndarray, "images"],
    *,
    penalty: float = 1.0,
) -> Calibration:
    """T and b of least negative log-likelihood on labeled photos that were not trained on.

    The problem is convex in 1 / T and b. `penalty` / 2 times the squares of 1 / T - 1 and of b is
    added: with 1 the logits as they are weigh as much as about one photo per class, so that b stays
    finite for a species without a photo here. Shares estimated afterwards hardly depend on it: b_j
    scales f_j and pi_j alike.
    """
    n_images, n_classes = logits.shape
    counts = np.bincount(labels, minlength=n_classes)
    # About the curvature of each parameter, without which L-BFGS needs thrice the passes.
    scale = 1 / np.sqrt(np.append(counts, n_images) + penalty)

    def loss(scaled: Float64[np.ndarray, "_"]) -> tuple[float, Float64[np.ndarray, "_"]]:
        moved = scaled * scale
        nll, by_bias, by_slope = _nll(logits, labels, 1 + moved[-1], moved[:-1])
        gradient = (np.append(by_bias, by_slope) + penalty * moved) * scale
        return (nll + penalty / 2 * float(moved @ moved)) / n_images, gradient / n_images

    from scipy.optimize import minimize  # here: slow to import, and no help needs it

    found = minimize(
        loss,
        np.zeros(n_classes + 1),
        jac=True,
        method="L-BFGS-B",
        bounds=[(None, None)] * n_classes + [((0.01 - 1) / scale[-1], None)],
        options={"maxiter": 200, "ftol": 1e-8},
    )
    bias, slope = (found.x * scale)[:-1], 1 + float((found.x * scale)[-1])
    before = _nll(logits, labels, 1.0, np.zeros(n_classes))[0]
    after = _nll(logits, labels, slope, bias)[0]
    return Calibration(1 / slope, bias, before / n_images, after / n_images)


def _nll(
    logits: Float[np.ndarray, "images classes"],
    labels: Int64[np.ndarray, "images"],
    slope: float,
    bias: Float64[np.ndarray, "classes"],
) -> tuple[float, Float64[np.ndarray, "classes"], float]:
    """Negative log-likelihood of softmax(slope z + b), summed, and its derivatives by b, slope."""
    total, by_slope = 0.0, 0.0
    by_bias = -np.bincount(labels, minlength=len(bias)).astype(np.float64)
    for rows in row_blocks(*logits.shape):
        z = logits[rows].astype(np.float64)
        true = np.arange(len(z)), labels[rows]
        moved = slope * z + bias
        at_label = moved[true]
        probabilities, log_total = _softmax(moved)
        total += float((log_total - at_label).sum())
        by_bias += probabilities.sum(axis=0)
        by_slope += float(np.vdot(probabilities, z) - z[true].sum())
    return total, by_bias, by_slope


def _softmax(
    logits: Float64[np.ndarray, "images classes"],
) -> tuple[Float64[np.ndarray, "images classes"], Float64[np.ndarray, "images"]]:
    """Probabilities, in the place of the logits, and the logarithm of their normaliser."""
    best = logits.max(axis=1)
    logits -= best[:, None]
    np.exp(logits, out=logits)
    total = logits.sum(axis=1)
    logits /= total[:, None]
    return logits, best + np.log(total)


def mean_probability(
    logits: Float[np.ndarray, "images classes"], calibration: Calibration
) -> Prior:
    """The mean of the calibrated probabilities over the held-out photos: it and not the training
    prior is the denominator of EM (Alexandari et al. 2020)."""
    blocks = (calibration.probabilities(logits[rows]) for rows in row_blocks(*logits.shape))
    return np.sum([block.sum(axis=0) for block in blocks], axis=0) / len(logits)


def row_blocks(n_images: int, n_classes: int) -> Iterator[slice]:
    """Slices of the images, `BLOCK_ENTRIES` logits each."""
    step = max(1, BLOCK_ENTRIES // n_classes)
    for begin in range(0, n_images, step):
        yield slice(begin, begin + step)
