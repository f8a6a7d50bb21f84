"""Adds the log presence of a geo prior to a prediction's logits, without a model.

The product rule of Mac Aodha et al. 2019, arXiv 1906.05272, eq. 1: photo and place speak
independently of one another of the species, so their probabilities are multiplied.
"""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float64, Int64

from inat.core.errors import InputError
from inat.core.priors import log_softmax
from inat.predictions.file import (
    LOG_PRESENCE,
    PredictionFile,
    read_prediction,
    refuse_other_photos,
    refuse_place,
    store,
    write_prediction,
)

SEVERITY = {"unseen": 0, "held out": 1, "chosen on": 2, "trained on": 3}
"""Of two roles that a photo has, one for each model, the graver is that of their product."""


def add_log_presence(
    prediction: PredictionFile, geo: Path | str | PredictionFile, out: Path, *, overwrite: bool
) -> tuple[PredictionFile, list[str]]:
    """Writes logits + log presence; a photo without a place keeps its own logits.

    Presence is taken for the likelihood of place and date, so that `logits_prior` stays what it
    was. It is more than that: a geo prior draws more photos of a common species, and answers higher
    for it. How much of a prior the presence brings on these photos is measured (`presence_power`),
    said and recorded.

    Returns:
        The new file, and sentences about the photos without a place and that prior.

    Raises:
        InputError: `geo` is no geo prior's, is of other photos or species; a geo prior is in
            `prediction` or in a member of it already; `out` exists.
    """
    if not isinstance(geo, PredictionFile):
        geo = read_prediction(geo)
    refuse_place(out, [prediction, geo], "adjust", overwrite=overwrite)
    _refuse_wrong_kinds(prediction, geo)
    rows_of = _rows(prediction, geo)
    placed: Bool[np.ndarray, images] = np.zeros(len(prediction), bool)
    shares = np.zeros(prediction.n_classes)
    roles = geo.photos["role"].to_numpy(object)[rows_of]
    meta: dict[str, Any] = dict(prediction.meta)
    meta["chosen"] = meta["chosen"] | geo.meta["chosen"]
    with write_prediction(
        out,
        ids=prediction.ids,
        labels=prediction.labels,
        species=prediction.species,
        photos=prediction.photos.assign(role=_graver(prediction.photos["role"].to_numpy(), roles)),
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
        step = {
            "of": str(prediction.path),
            "geo": str(geo.path),
            "geo_checkpoint_sha256": geo.meta.get("checkpoint_sha256"),
            "n_without_place": int((~placed).sum()),
            "presence_power": power,
        }
        meta["adjusted"] = [*meta.get("adjusted", []), step]
    note = f"{(~placed).sum():,} of {len(placed):,} photos have no place and keep their own logits"
    if power is None:
        return read_prediction(out), [note]
    return read_prediction(out), [
        note,
        f"presence grows as the {power:.2f}th power of a species' training photos on the photos "
        "with a place; where these are balanced, that much of a class prior was added, which "
        "logits_prior does not count",
    ]


def presence_power(
    shares: Float64[np.ndarray, "classes"], train_counts: Int64[np.ndarray, "classes"]
) -> float | None:
    """b of the least-squares line log share = a + b log n over the species.

    Args:
        shares: sums over photos of each species' share of the presence.
        train_counts: n.

    Returns:
        None where nothing tells it: no photo has a place, or all species have as many photos.
    """
    known = (shares > 0) & (train_counts > 0)
    log_n = np.log(train_counts[known])
    if not known.any() or np.ptp(log_n) == 0:
        return None
    slope = np.cov(log_n, np.log(shares[known]), bias=True)[0, 1] / log_n.var()
    return round(float(slope), 3)


def _refuse_wrong_kinds(prediction: PredictionFile, geo: PredictionFile) -> None:
    if geo.meta.get("logits") != LOG_PRESENCE:
        raise InputError(
            f"{geo.path}: is no prediction of a geo prior (inat stage-two RUN --method geo_prior, "
            "then inat predict)"
        )
    if prediction.meta.get("logits") == LOG_PRESENCE:
        raise InputError(
            f"{prediction.path}: is of a geo prior itself; give a prediction of photos, and the "
            "geo prior's with --geo"
        )
    if _knows_places(prediction.meta):
        raise InputError(
            f"{prediction.path}: a geo prior was added already, and a second would count the "
            "places twice; adjust the prediction that it was made from"
        )
    if any(map(_member_knows_places, prediction.meta.get("members", []))):
        raise InputError(
            f"{prediction.path}: a geo prior was added to a member already, and a second would "
            "count the places twice; make the ensemble of members without one"
        )


def _knows_places(meta: dict[str, Any]) -> bool:
    return any("geo" in step for step in meta.get("adjusted", []))


def _member_knows_places(meta: dict[str, Any]) -> bool:
    """Whether a geo prior was added to a member, or to one of those that it was made of."""
    return _knows_places(meta) or any(map(_member_knows_places, meta.get("members", [])))


def _rows(prediction: PredictionFile, geo: PredictionFile) -> Int64[np.ndarray, "images"]:
    """Where each of the prediction's photos stands in `geo`."""
    if not np.array_equal(prediction.category_ids, geo.category_ids):
        raise InputError(
            f"{geo.path}: its {geo.n_classes} species are not the {prediction.n_classes} of "
            f"{prediction.path}; give a geo prior of the same data set"
        )
    order = np.argsort(geo.ids)
    if not np.array_equal(geo.ids[order], np.sort(prediction.ids)):
        stray = np.setxor1d(prediction.ids, geo.ids)
        raise InputError(
            f"{geo.path}: its photos are not those of {prediction.path} ({len(stray)} stand in one "
            f"alone, the first is {stray[0]}); predict the same split with both"
        )
    refuse_other_photos(geo, prediction)
    rows: Int64[np.ndarray, images] = order[np.searchsorted(geo.ids[order], prediction.ids)]
    return rows


def _graver(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    is_first = [SEVERITY[a] >= SEVERITY[b] for a, b in zip(first, second, strict=True)]
    return np.where(is_first, first, second)
