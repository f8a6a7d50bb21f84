"""Adds the log presence of a geo prior to a prediction's logits, without a model.

The product rule of Mac Aodha et al. 2019, arXiv 1906.05272, eq. 1: photo and place speak
independently of one another of the species, so their probabilities are multiplied.
"""

from pathlib import Path

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float64, Int64
from msgspec.structs import replace

from inat.core.errors import InputError
from inat.core.priors import log_softmax
from inat.predictions.file import (
    PredictionFile,
    read_prediction,
    refuse_place,
    rows_of_photos,
    store,
    write_prediction,
)
from inat.predictions.meta import Adjustment, worst_roles


def add_log_presence(
    prediction: PredictionFile, geo: Path | str | PredictionFile, out: Path, *, overwrite: bool
) -> PredictionFile:
    """Writes logits + log presence; a photo without a place keeps its own logits.

    Presence is taken for the likelihood of place and date, so that `logits_prior` stays. It is more
    than that: a geo prior draws more photos of a common species, and answers higher for it. How
    much of a prior it brings on these photos is measured (`presence_power`), printed and recorded.
    """
    geo = read_prediction(geo)
    refuse_place(out, [prediction, geo], "adjust", overwrite=overwrite)
    _refuse_wrong_kinds(prediction, geo)
    rows_of = rows_of_photos(geo, prediction)
    placed: Bool[np.ndarray, images] = np.zeros(len(prediction), bool)
    shares = np.zeros(prediction.n_classes)
    # Of the two roles that a photo has, one for each model, the worse is that of their product.
    roles = worst_roles(prediction.roles, geo.roles[rows_of])
    meta = replace(prediction.meta, chosen=prediction.meta.chosen | geo.meta.chosen)
    with write_prediction(
        out,
        ids=prediction.ids,
        labels=prediction.labels,
        species=prediction.species,
        photos=prediction.photos.assign(role=pd.Series(roles, dtype="str")),
        meta=meta,
        dtype=prediction.logits.dtype,
        chosen_keys=[prediction.chosen_keys, geo.chosen_keys],
    ) as rows:
        for chunk in prediction.chunks():
            presence = geo.read(rows_of[chunk])
            placed[chunk] = np.ptp(presence, axis=1) > 0
            shares += np.exp(log_softmax(presence[placed[chunk]])).sum(axis=0, dtype=np.float64)
            rows[chunk] = store(prediction.read(chunk) + presence, rows.dtype)
        power = presence_power(shares, prediction.train_counts)
        step = Adjustment(
            of=str(prediction.path),
            geo=str(geo.path),
            geo_checkpoint_sha256=geo.meta.checkpoint_sha256,
            n_without_place=int((~placed).sum()),
            presence_power=power,
        )
        meta.adjusted = [*meta.adjusted, step]
    note = f"{(~placed).sum():,} of {len(placed):,} photos have no place and keep their own logits"
    if power is None:
        return read_prediction(out).with_notes([note])
    notes = [
        note,
        f"presence grows as the {power:.2f}th power of a species' training photos on the photos "
        "with a place; where these are balanced, that much of a class prior was added, which "
        "logits_prior does not count",
    ]
    return read_prediction(out).with_notes(notes)


def presence_power(
    shares: Float64[np.ndarray, "classes"], train_counts: Int64[np.ndarray, "classes"]
) -> float | None:
    """b of the least-squares line log share = a + b log n over the species, of `shares` that are
    sums over photos; None where no photo has a place or all species have the same n."""
    known = (shares > 0) & (train_counts > 0)
    log_n = np.log(train_counts[known])
    if not known.any() or np.ptp(log_n) == 0:
        return None
    slope = np.cov(log_n, np.log(shares[known]), bias=True)[0, 1] / log_n.var()
    return round(float(slope), 3)


def _refuse_wrong_kinds(prediction: PredictionFile, geo: PredictionFile) -> None:
    if not geo.meta.is_log_presence:
        raise InputError(
            f"{geo.path}: is no prediction of a geo prior (inat stage-two RUN --method geo_prior, "
            "then inat predict)"
        )
    if prediction.meta.is_log_presence:
        raise InputError(
            f"{prediction.path}: is of a geo prior itself; give a prediction of photos, and the "
            "geo prior's with --geo"
        )
    if any(member.knows_places for member in prediction.meta.members):
        raise InputError(
            f"{prediction.path}: a geo prior was added to a member already, and a second would "
            "count the places twice; make the ensemble of members without one"
        )
    if prediction.meta.knows_places:
        raise InputError(
            f"{prediction.path}: a geo prior was added already, and a second would count the "
            "places twice; adjust the prediction that it was made from"
        )
