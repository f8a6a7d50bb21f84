"""The difference of two models on the same photos, with two tests of whether there is one."""

from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Int64

from inat.core.intervals import Interval, gain_interval
from inat.core.metrics import class_means, mean_of

LEVEL = 0.05


@dataclass(frozen=True)
class Difference:
    """How much better the second prediction is, as a share.

    Attributes:
        first: the first prediction's accuracy.
        second: the second prediction's accuracy.
        gain: second - first, with its 95 % interval, paired (`gain_interval`).
        n_gained: photos that the second alone has right.
        n_lost: photos that the first alone has right.
        p_value: of McNemar's exact test: that of n_gained under a fair coin thrown
            n_gained + n_lost times, two-sided (McNemar 1947).
    """

    first: float
    second: float
    gain: Interval
    n_gained: int
    n_lost: int
    p_value: float

    @property
    def is_seen(self) -> bool:
        """Whether both tests see a difference: the interval leaves 0 out and p is below 0.05.

        A few photos that all moved one way make an interval that leaves 0 out; McNemar's test
        knows that three heads in a row are no proof.
        """
        return self.p_value < LEVEL and not self.gain.low <= 0 <= self.gain.high


def paired_difference(
    hits: Bool[np.ndarray, "images"],
    new_hits: Bool[np.ndarray, "images"],
    labels: Int64[np.ndarray, "images"],
    members: Bool[np.ndarray, "classes"],
    *,
    over_photos: bool = False,
) -> Difference | None:
    """The difference of two models' hits on the same photos; None where no member has a photo.

    Args:
        hits: of the first model.
        new_hits: of the second model, photo by photo the same.
        labels: true species of the photos.
        members: which species count.
        over_photos: mean over the photos of the members; else over the members of their means.
    """
    counted = members[labels]
    gain = gain_interval(
        hits, new_hits, labels, members, over="images" if over_photos else "classes"
    )
    if gain is None:
        return None
    first, second = (
        float(each[counted].mean())
        if over_photos
        else mean_of(class_means(each, labels, len(members)), members)
        for each in (hits, new_hits)
    )
    assert first is not None
    assert second is not None
    n_gained = int((new_hits & ~hits & counted).sum())
    n_lost = int((hits & ~new_hits & counted).sum())
    p_value = mcnemar(n_gained, n_lost)
    return Difference(first, second, gain, n_gained, n_lost, p_value)


def mcnemar(n_gained: int, n_lost: int) -> float:
    """The p-value of McNemar's exact test, from the photos that one of two models alone has right.

    1 where there are none.
    """
    from scipy.stats import binomtest  # here: slow to import

    n = n_gained + n_lost
    return float(binomtest(n_gained, n).pvalue) if n else 1.0
