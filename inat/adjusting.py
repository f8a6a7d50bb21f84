"""Moves the prior of a prediction file's logits, without a model."""

from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float64

from inat.errors import InputError
from inat.prediction_file import (
    PredictionFile,
    read_prediction,
    refuse_place,
    store,
    write_prediction,
)
from inat.priors import (
    Prior,
    count_prior,
    is_uniform,
    read_prior,
    target_shift,
    tau_shift,
    temper,
    uniform_prior,
)
from inat.product_rule import add_log_presence


def adjust(
    prediction: Path | str | PredictionFile,
    out: Path | str,
    *,
    tau: float | None = None,
    target: Path | str | None = None,
    from_prior: Path | str | None = None,
    geo: Path | str | PredictionFile | None = None,
    overwrite: bool = False,
) -> tuple[PredictionFile, list[str]]:
    """Writes a prediction file whose logits carry another class prior, or a geo prior too.

    Args:
        prediction: the prediction file to start from; it is left as it is.
        out: the new prediction file.
        tau: subtract tau log(prior that the logits carry); 1 makes it uniform (Menon et al.
            2021, eq. 9).
        target: uniform, or a CSV `category_id,prior`: the prior to move to.
        from_prior: what the logits carry, where the file does not know: uniform, counts (of
            the train split), or a CSV.
        geo: what `predict` made of the same photos with a geo prior: its log presence is added,
            and the class prior stays (Mac Aodha et al. 2019). It goes alone; tau and target
            before or after it give the same.
        overwrite: replace what stands at `out`.

    Returns:
        The new file, and sentences about what the adjustment did.

    Raises:
        InputError: not one of tau, target and geo; an unknown prior without `from_prior`; `out`
            exists; a geo prior's prediction of other photos or species.
    """
    if not isinstance(prediction, PredictionFile):
        prediction = read_prediction(prediction)
    out = Path(out)
    if geo is not None and not (tau is target is from_prior is None):
        raise InputError("--geo goes alone; adjust once more for --tau or --target")
    if geo is None and (tau is None) == (target is None):
        raise InputError("adjust takes one of --tau T, --target uniform|FILE and --geo GEO_PRED")
    if geo is not None and not isinstance(geo, PredictionFile):
        geo = read_prediction(geo)
    refuse_place(out, [prediction, *([geo] if geo else [])], "adjust", overwrite=overwrite)
    if geo is not None:
        return add_log_presence(prediction, geo, out)
    prior = carried_prior(prediction, from_prior)
    shift, left, what = _shift(prediction, prior, tau, target)
    notes = []
    if np.ptp(shift) < 1e-6:
        notes.append(
            "this changes nothing: the logits carry a uniform prior already"
            if is_uniform(prior)
            else "this changes nothing: the shift is the same for all species"
        )
    meta: dict[str, Any] = dict(prediction.meta)
    meta["logits_prior"] = left.tolist()
    meta["adjusted"] = [*meta.get("adjusted", []), {"of": str(prediction.path), **what}]
    with write_prediction(
        out,
        ids=prediction.ids,
        labels=prediction.labels,
        species=prediction.species,
        photos=prediction.photos,
        meta=meta,
        dtype=prediction.logits.dtype,
    ) as rows:
        for chunk in prediction.chunks():
            rows[chunk] = store(prediction.logits[chunk].astype(np.float32) + shift, rows.dtype)
    return read_prediction(out), notes


def carried_prior(prediction: PredictionFile, from_prior: Path | str | None) -> Prior:
    """The prior that a prediction's logits carry, or the one to assume where it does not know.

    Args:
        prediction: the prediction file.
        from_prior: uniform, counts, or a CSV; None: what the file says.

    Raises:
        InputError: neither says it, they disagree, or a species' prior is 0.
    """
    known = prediction.logits_prior
    if from_prior is not None:
        assumed = (
            count_prior(prediction.train_counts)
            if str(from_prior) == "counts"
            else _named_prior(prediction, from_prior)
        )
        if not (assumed > 0).all():
            raise InputError(
                f"--from-prior {from_prior}: the prior of {(assumed <= 0).sum()} species is 0, "
                "which cannot be taken off; give every species a prior above 0"
            )
        if known is not None and not np.allclose(known, assumed, rtol=1e-4):
            raise InputError(
                f"{prediction.path}: which prior its logits carry is known, and --from-prior "
                f"{from_prior} is another: that would correct twice, or wrongly; leave it away"
            )
        return assumed
    if known is None:
        raise InputError(
            f"{prediction.path}: which prior its logits carry is not known; "
            "say what to assume: --from-prior uniform|counts|FILE"
        )
    if not (known > 0).all():
        raise InputError(
            f"{prediction.path}: its logits carry a prior of 0 for {(known <= 0).sum()} species, "
            "which cannot be taken off; adjust the prediction that it was made from"
        )
    return known


def _named_prior(prediction: PredictionFile, name: Path | str) -> Prior:
    if str(name) == "uniform":
        return uniform_prior(prediction.n_classes)
    return read_prior(Path(name), prediction.category_ids)


def _shift(
    prediction: PredictionFile, prior: Prior, tau: float | None, target: Path | str | None
) -> tuple[Float64[np.ndarray, "classes"], Prior, dict[str, Any]]:
    if target is not None:
        wanted = _named_prior(prediction, target)
        return target_shift(prior, wanted), wanted, {"target": str(target)}
    assert tau is not None
    if not 0 <= tau <= 10:
        raise InputError(f"--tau {tau:g} is not within 0 and 10; 1 takes the whole prior off")
    return tau_shift(prior, tau), temper(prior, 1 - tau), {"tau": tau}
