"""What a prediction says of each photo: one pass over the logits, a few numbers a photo kept."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float32, Int64

from inat.core.metrics import hits_at, top_k
from inat.core.priors import log_softmax
from inat.predictions.file import PredictionFile

N_GUESSES = 5


@dataclass(frozen=True, eq=False)
class Outcomes:
    """The outcome of each photo, in the order of the prediction's rows; probabilities are the
    softmax of the logits as stored, with the prior they carry."""

    ids: Int64[np.ndarray, "images"]
    labels: Int64[np.ndarray, "images"]
    # The five likeliest species (or all), best first; ties go to the lower label.
    guesses: Int64[np.ndarray, "images k"]
    confidence: Float32[np.ndarray, "images"]  # probability of the first guess
    true_probability: Float32[np.ndarray, "images"]  # of the true species

    def __len__(self) -> int:
        return len(self.ids)

    @property
    def guessed(self) -> Int64[np.ndarray, "images"]:
        return self.guesses[:, 0]

    @property
    def hits(self) -> Bool[np.ndarray, "images"]:
        return self.hits_at(1)

    def hits_at(self, k: int) -> Bool[np.ndarray, "images"]:
        """Whether the true species is among the first k guesses; k is at most 5."""
        return hits_at(self.guesses, self.labels, k)


def look_at(prediction: PredictionFile, labels: Int64[np.ndarray, "images"]) -> Outcomes:
    """The outcomes of a prediction, read in chunks; an InputError if a logit is not finite."""
    guesses, confidence, true_probability = [], [], []
    for rows in prediction.chunks():
        logits = prediction.read(rows)
        found = top_k(logits, N_GUESSES)
        log_probability = log_softmax(logits)
        asked = np.column_stack([found[:, 0], labels[rows]])
        asked_probability = np.exp(np.take_along_axis(log_probability, asked, axis=1))
        guesses.append(found)
        confidence.append(asked_probability[:, 0])
        true_probability.append(asked_probability[:, 1])
    return Outcomes(
        ids=prediction.ids,
        labels=labels,
        guesses=np.concatenate(guesses),
        confidence=np.concatenate(confidence),
        true_probability=np.concatenate(true_probability),
    )
