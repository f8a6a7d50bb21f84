"""What the choice of temperatures and weights needs of the members' held-out predictions.

Of each photo only the likeliest classes are kept, so that a search over weights reads no file
again and 8,142 classes fit into memory; probabilities are still those over all classes.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from jaxtyping import Bool, Float, Float32, Float64, Int64

from inat.core.metrics import class_means, mean_of
from inat.core.progress import progress_bar
from inat.core.threads import in_order, usable_processors
from inat.posthoc.ensemble_members import Member, finish, minus_rank

TEMPERATURES: Float64[np.ndarray, "temperatures"] = 2.0 ** (np.arange(-8, 17) / 8)
"""From 0.5, which sharpens, to 4; 9 % from one to the next."""

SHORTLIST = 64
"""Classes kept of a photo: those to which any member gives most, and the true one."""

CHUNK_BYTES = 4_000_000


@dataclass(frozen=True, eq=False)
class FitTable:
    """The members' guesses on photos whose species are known."""

    how: str  # the rule of the ensemble
    labels: Int64[np.ndarray, "photos"]
    n_classes: int
    shortlist: Int64[np.ndarray, "photos listed"]  # labels of the likeliest classes, ascending
    values: Float32[np.ndarray, "members photos listed"]  # their logits, or minus their ranks
    # Log of the sum over all classes of exp(logit / temperature), at each of TEMPERATURES; zeros
    # for ranks.
    log_z: Float32[np.ndarray, "members photos temperatures"]

    @property
    def is_true(self) -> Bool[np.ndarray, "photos listed"]:
        return self.shortlist == self.labels[:, None]

    def select(self, rows: Int64[np.ndarray, "some"]) -> "FitTable":
        return replace(
            self,
            labels=self.labels[rows],
            shortlist=self.shortlist[rows],
            values=self.values[:, rows],
            log_z=self.log_z[:, rows],
        )

    def parts(self, temperatures: Sequence[float]) -> Float32[np.ndarray, "members photos listed"]:
        """What the rule takes the weighted mean of: log-probabilities, probabilities or ranks."""
        if self.how == "rank":
            return self.values
        place = np.searchsorted(TEMPERATURES, temperatures)
        log_z = self.log_z[np.arange(len(place)), :, place]
        by_member = np.array(temperatures, np.float32)[:, None, None]
        parts: Float32[np.ndarray, "members photos listed"] = self.values / by_member
        parts -= log_z[:, :, None]
        return np.exp(parts, out=parts) if self.how == "mean_prob" else parts

    def hits(self, mean_part: Float[np.ndarray, "photos listed"]) -> Bool[np.ndarray, "photos"]:
        """Whether the true class has the highest score; ties go to the lower label."""
        best = np.take_along_axis(self.shortlist, mean_part.argmax(axis=1)[:, None], axis=1)
        return best[:, 0] == self.labels

    def accuracy(self, mean_part: Float[np.ndarray, "photos listed"]) -> float:
        """Mean class accuracy of the ensemble that has this mean part."""
        return self.class_mean(self.hits(mean_part))

    def log_loss(self, mean_part: Float[np.ndarray, "photos listed"]) -> float:
        """Class-mean log loss of the true class among those listed."""
        scores = finish(self.how, mean_part.copy())
        scores -= scores.max(axis=1, keepdims=True)
        log_sum = np.log(np.exp(scores).sum(axis=1))
        return self.class_mean(log_sum - scores[self.is_true])

    def class_mean(self, values: Float[np.ndarray, "photos"] | Bool[np.ndarray, "photos"]) -> float:
        """Mean over the species that have photos of the mean over a species' photos."""
        means = class_means(values, self.labels, self.n_classes)
        mean = mean_of(means, np.ones(self.n_classes, bool))
        assert mean is not None
        return mean


def read_fit_table(how: str, members: Sequence[Member]) -> FitTable:
    """Reads the members' predictions of photos whose species are known, once."""
    labels = members[0].labels
    n_classes = members[0].prediction.n_classes
    chunks = list(members[0].prediction.chunks(CHUNK_BYTES))

    def read(chunk: slice) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        return _shorten(how, [member.logits(chunk) for member in members], labels[chunk])

    found = []
    with progress_bar("fit", len(labels), "photos") as bar:
        for piece in in_order(read, chunks, usable_processors()):
            found.append(piece)
            bar.advance(len(piece[0]))
    shortlists, values, log_zs = zip(*found, strict=True)
    return FitTable(
        how=how,
        labels=labels,
        n_classes=n_classes,
        shortlist=np.concatenate(shortlists),
        values=np.concatenate(values, axis=1),
        log_z=np.concatenate(log_zs, axis=1),
    )


def _shorten(
    how: str,
    member_logits: list[Float32[np.ndarray, "photos classes"]],
    labels: Int64[np.ndarray, "photos"],
) -> tuple[
    Int64[np.ndarray, "photos listed"],
    Float32[np.ndarray, "members photos listed"],
    Float32[np.ndarray, "members photos temperatures"],
]:
    n_photos, n_classes = member_logits[0].shape
    likeliest = np.full((n_photos, n_classes), -np.inf, np.float32)
    work = np.empty_like(likeliest)
    log_z = np.zeros((len(member_logits), n_photos, len(TEMPERATURES)), np.float32)
    for place, logits in enumerate(member_logits):
        if how == "rank":
            logits[:] = minus_rank(logits)
            np.maximum(likeliest, logits, out=likeliest)
            continue
        logits -= logits.max(axis=1, keepdims=True)
        for at, temperature in enumerate(TEMPERATURES.astype(np.float32)):
            np.divide(logits, temperature, out=work)
            log_z[place, :, at] = np.log(np.exp(work, out=work).sum(axis=1))
        at_1 = log_z[place, :, np.searchsorted(TEMPERATURES, 1.0)]
        np.maximum(likeliest, logits - at_1[:, None], out=likeliest)
    # The likeliest and the true class, ascending, so that argmax gives ties to the lower label.
    n_listed = min(SHORTLIST, n_classes)
    likeliest[np.arange(n_photos), labels] = np.inf
    shortlist = np.sort(np.argpartition(likeliest, -n_listed, axis=1)[:, -n_listed:], axis=1)
    values = [np.take_along_axis(logits, shortlist, axis=1) for logits in member_logits]
    return shortlist, np.stack(values), log_z
