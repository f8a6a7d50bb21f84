"""Predicts with the runs of all folds: each a split, or together every photo by the run that had
held it out."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Int64
from msgspec.structs import replace

from inat.core.errors import InputError
from inat.core.priors import Prior, drawn_shift, normalised
from inat.core.progress import first_few, say
from inat.predictions.file import PredictionFile, read_prediction, store, write_prediction
from inat.predictions.meta import Origin, PredictionMeta, read_meta
from inat.predictions.processes import this_process, wait_until_none
from inat.predictions.verbs import predict
from inat.runs.folds import FoldRuns, open_folds

OUT_OF_FOLD = "oof"
"""The split of a folder of fold runs that is all photos, each by the run that had held it out."""


def predict_folds(
    folds: FoldRuns | Path | str, split: str = "test", **options: Any
) -> list[PredictionFile]:
    """Predicts a split with the run of each fold, into FOLDS/fold_i/predictions/NAME.

    Args:
        folds: a folder that `inat train --folds` made.
        split: test, val, train, or holdout (what each run held out).
        options: the others of `inat.predict`.

    Raises:
        InputError: no fold runs; anything that `inat.predict` refuses.
        WorldError: a photo cannot be read.
    """
    return [predict(run, split, **options) for run in open_folds(folds).runs]


def predict_out_of_fold(
    folds: FoldRuns | Path | str,
    *,
    name: str | None = None,
    overwrite: bool = False,
    **options: Any,
) -> PredictionFile:
    """Predicts each photo of train with the run that had held it out, in one prediction file.

    The logits of all folds are moved to one prior, the geometric mean of what the folds carry:
    that of a mean of their log-probabilities. Where what a fold carries is not known, they stay
    as they are and so does what is known. Rows ascend by image id. A species of one photo is
    never held out and has no row; meta.json lists such species in `never_held_out`.

    Args:
        folds: a folder that `inat train --folds` made.
        name: of the prediction in FOLDS/predictions; None: oof. The parts lie in
            FOLDS/fold_i/predictions, as NAME or holdout.
        overwrite: replace predictions of that name that were made with other settings.
        options: the others of `inat.predict`.

    Raises:
        InputError: no fold runs; anything that `inat.predict` refuses.
        WorldError: a photo cannot be read.
    """
    opened = open_folds(folds)
    parts = [
        predict(run, "holdout", name=name, overwrite=overwrite, **options) for run in opened.runs
    ]
    path = opened.prediction(name or OUT_OF_FOLD)
    meta = _meta(opened, parts)
    is_there = (path / "meta.json").is_file
    if this_process(options.get("rank"), options.get("world_size")).rank != 0:
        left = ["what rank 0 makes of all folds"]
        wait_until_none(
            lambda: [] if is_there() and _difference(path, meta) is None else left, str(path)
        )
    elif overwrite or not is_there():
        _join(path, parts, meta)
    elif name_of_other := _difference(path, meta):
        raise InputError(
            f"{path}: there is a prediction with another {name_of_other}; give another --name, or "
            "--overwrite"
        )
    joined = read_prediction(path)
    if names := joined.absent_species["name"].tolist():
        say(f"{joined.path}: species never held out: {len(names)} ({first_few(names)})")
    return joined


def _difference(path: Path, meta: PredictionMeta) -> str | None:
    """What a joined prediction that is there already has otherwise than the one asked for."""
    there = read_meta(path / "meta.json")
    digests = [[fold.checkpoint_sha256 for fold in one.folds] for one in (there, meta)]
    if digests[0] != digests[1]:
        return "checkpoint"
    names = ("split", "checkpoint", "chosen", "data_root", "views", "view_mean")
    return next((name for name in names if getattr(there, name) != getattr(meta, name)), None)


def _join(path: Path, parts: list[PredictionFile], meta: PredictionMeta) -> None:
    ids = np.concatenate([part.ids for part in parts])
    order = np.argsort(ids)
    place: Int64[np.ndarray, images] = np.empty_like(order)
    place[order] = np.arange(len(order))
    labels = np.concatenate([part.labels for part in parts])[order]
    photos = pd.concat([part.photos for part in parts], ignore_index=True)
    with write_prediction(
        path,
        ids=ids[order],
        labels=labels,
        species=parts[0].species,
        photos=photos.iloc[order].reset_index(drop=True),
        meta=meta,
        dtype=parts[0].logits.dtype,
        chosen_keys=[part.chosen_keys for part in parts],
    ) as rows:
        begin = 0
        for part in parts:
            carried, shift = part.logits_prior, np.zeros(1)
            if carried is not None and meta.logits_prior is not None:
                shift = drawn_shift(carried, np.array(meta.logits_prior))
            for chunk in part.chunks():
                moved = store(part.read(chunk) + shift, rows.dtype)
                rows[place[begin:][chunk]] = moved
            begin += len(part)


def _meta(folds: FoldRuns, parts: list[PredictionFile]) -> PredictionMeta:
    metas = [part.meta for part in parts]
    prior = _common_prior([part.logits_prior for part in parts])
    labels = np.concatenate([part.labels for part in parts])
    held_out = np.bincount(labels, minlength=parts[0].n_classes)
    return replace(
        metas[0],
        split=OUT_OF_FOLD,
        logits_prior=None if prior is None else prior.tolist(),
        chosen={what: how for meta in metas for what, how in meta.chosen.items()},
        run=str(folds.path),
        checkpoint_epoch=None,
        checkpoint_sha256=None,
        config_digest=None,
        folds=[
            Origin(
                run=meta.run,
                checkpoint_epoch=meta.checkpoint_epoch,
                checkpoint_sha256=meta.checkpoint_sha256,
                config_digest=meta.config_digest,
            )
            for meta in metas
        ],
        never_held_out=parts[0].category_ids[held_out == 0].tolist(),
        bad_photos=[event for meta in metas for event in meta.bad_photos or []],
        recovered_photos=[event for meta in metas for event in meta.recovered_photos or []],
    )


def _common_prior(priors: list[Prior | None]) -> Prior | None:
    from scipy.stats import gmean  # here: slow to import, and every training would wait for it

    known = [prior for prior in priors if prior is not None]
    return normalised(gmean(np.stack(known))) if len(known) == len(priors) else None
