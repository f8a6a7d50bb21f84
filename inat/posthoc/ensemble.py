"""Makes one prediction file of several, without their models."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
import pandas as pd
from jaxtyping import Int64

from inat.config.schema import EnsembleRule, WeightSearch
from inat.core.errors import InputError, unknown_name
from inat.core.priors import uniform_prior
from inat.core.progress import first_few, progress_bar
from inat.core.threads import in_order, usable_processors
from inat.posthoc.ensemble_fit_table import read_fit_table
from inat.posthoc.ensemble_fitting import Fit, Gain, cross_fitted, fit
from inat.posthoc.ensemble_members import Member, align, pool
from inat.predictions.file import (
    PredictionFile,
    read_prediction,
    refuse_place,
    store,
    write_prediction,
)
from inat.predictions.meta import EnsembleFit, PredictionMeta, Role, worst_roles
from inat.predictions.same_model import told_of_fit

CHUNK_BYTES = 4_000_000
"""Of float32 logits of one member: what a thread works on stays in the processor's cache."""


@dataclass(frozen=True, eq=False)
class FitPhotos:
    """The held-out photos that temperatures and weights were chosen on."""

    members: list[Member]
    ids: Int64[np.ndarray, "photos"]
    gain: Gain

    def __str__(self) -> str:
        first = self.members[0].prediction
        return f"{len(self.ids)} photos ({first.meta.split} of {first.path} ...)"

    def facts(self) -> EnsembleFit:
        return EnsembleFit(
            predictions=[str(member.prediction.path) for member in self.members],
            n_photos=len(self.ids),
            ids_sha256=hashlib.sha256(np.sort(self.ids).tobytes()).hexdigest(),
            mean_class_accuracy=self.gain.accuracy,
            best_member=self.gain.best_member + 1,
            best_member_accuracy=self.gain.best_accuracy,
            difference=self.gain.difference,
        )


def ensemble(
    predictions: Sequence[Path | str | PredictionFile],
    out: Path | str,
    *,
    how: EnsembleRule = "mean_logprob",
    weights: str | Sequence[float] = "equal",
    search: WeightSearch = "greedy",
    fit: Sequence[Path | str | PredictionFile] | None = None,
    from_prior: Path | str | None = None,
    overwrite: bool = False,
) -> PredictionFile:
    """Averages the predictions of several models.

    Members are moved to the uniform prior first. With `fit` a temperature is fitted for each, and
    the gain is reported on photos that it was not chosen on. The result is a new prediction file,
    its photos in the first member's order; its `notes` give each member's weight, the gain, and
    which predictions of `fit` are not the member's own.

    Args:
        predictions: two or more prediction files of the same photos.
        out: the new prediction file.
        how: mean_logprob (mean of log-probabilities), mean_prob (of probabilities) or rank (of
            ranks; those from the 100th on count alike).
        weights: equal, search, or a number per member: 0.5,0.3,0.2.
        search: for weights search: greedy (picks with replacement by mean class accuracy; Caruana
            et al. 2004) or convex (least class-mean log loss).
        fit: predictions of held-out photos, one per member in the members' order (holdout or
            out-of-fold); temperatures, and weights that are searched, are chosen on them.
        from_prior: the prior that logits carry whose file does not know it: uniform, counts, or a
            CSV.
        overwrite: replace what is at `out`.

    Raises:
        InputError: members that disagree in photos, species, competition or in what they were
            trained on; photos to fit on that were trained on or have no label; a prior that is
            not known; `out` exists.
    """
    out = Path(out)
    opened = [*map(read_prediction, predictions)]
    for option, name, valid in (("--how", how, EnsembleRule), ("--search", search, WeightSearch)):
        if name not in get_args(valid):
            raise InputError(unknown_name(option, name, get_args(valid)))
    if search == "convex" and how == "rank":
        raise InputError(
            "--search convex minimises a log loss, which --how rank has none of; "
            "use --search greedy"
        )
    if len(opened) < 2:
        raise InputError(f"an ensemble has two members or more, and {len(opened)} was given")
    given = _given_weights(weights, len(opened))
    if given is None and fit is None:
        raise InputError(
            "--weights search chooses on held-out photos; give each member's prediction of them, "
            "in the same order: --fit PRED ..."
        )
    fitted_on = [] if fit is None else [*map(read_prediction, fit)]
    refuse_place(out, [*opened, *fitted_on], "ensemble", overwrite=overwrite)
    known = [prediction.logits_prior is not None for prediction in [*opened, *fitted_on]]
    if from_prior is not None and all(known):
        raise InputError(
            f"--from-prior {from_prior}: which prior the logits carry is known of every member; "
            "leave it away"
        )
    members = align(opened, from_prior)
    chosen, photos = Fit([1.0] * len(members), given or []), None
    choices = {}
    if fit is not None:
        chosen, photos = _fitted(how, members, fitted_on, given, search, from_prior)
        if how != "rank":
            choices["temperatures"] = f"class-mean log loss on {photos}"
    if given is None:
        by = "mean class accuracy" if search == "greedy" else "class-mean log loss"
        choices["weights"] = f"{by} ({search}) on {photos}"
    _write(out, how, members, chosen, photos, choices)
    return read_prediction(out).with_notes(_notes(members, chosen, photos))


def _given_weights(weights: str | Sequence[float], n_members: int) -> list[float] | None:
    """The members' weights, summing to 1; None where they are to be searched."""
    if weights == "search":
        return None
    if weights == "equal":
        return [1 / n_members] * n_members
    text = weights if isinstance(weights, str) else ",".join(f"{weight:g}" for weight in weights)
    try:
        numbers = np.array([float(number) for number in text.split(",")])
    except ValueError:
        raise InputError(
            f"--weights {text}: neither equal nor search nor numbers such as 0.5,0.3,0.2"
        ) from None
    if len(numbers) != n_members:
        raise InputError(f"--weights {text}: {len(numbers)} numbers for {n_members} members")
    if not (np.isfinite(numbers).all() and (numbers >= 0).all() and numbers.sum() > 0):
        raise InputError(f"--weights {text}: weights must be numbers from 0 on, and not all 0")
    return (numbers / numbers.sum()).tolist()


def _fitted(
    how: str,
    members: list[Member],
    predictions: list[PredictionFile],
    weights: list[float] | None,
    search: str,
    from_prior: Path | str | None,
) -> tuple[Fit, FitPhotos]:
    if len(predictions) != len(members):
        raise InputError(
            f"--fit: {len(predictions)} predictions for {len(members)} members; "
            "give one a member, in the same order"
        )
    held_out = align(predictions, from_prior)
    _refuse_unfit(held_out, members)
    table = read_fit_table(how, held_out)
    gain = cross_fitted(table, weights, search)
    return fit(table, weights, search), FitPhotos(held_out, predictions[0].ids, gain)


def _refuse_unfit(held_out: list[Member], members: list[Member]) -> None:
    """Stops where something cannot be chosen on these photos, or not for these members."""
    first = held_out[0]
    expected = np.sort(members[0].prediction.category_ids)
    if not np.array_equal(np.sort(first.prediction.category_ids), expected):
        raise InputError(
            f"--fit {first.prediction.path}: its species are not those of "
            f"{members[0].prediction.path}; give predictions of runs on one data set"
        )
    runs = [member.prediction.meta.run for member in members]
    for place, (one, member) in enumerate(zip(held_out, members, strict=True)):
        path, meta = one.prediction.path, one.prediction.meta
        if (one.labels < 0).any():
            raise InputError(
                f"--fit {path}: {(one.labels < 0).sum()} of its photos have no label; give "
                "predictions of the held-out part, or out-of-fold ones"
            )
        seen = int((one.roles == Role.TRAINED_ON).sum())
        if seen:
            raise InputError(
                f"--fit {path}: {seen} of its {len(one.roles)} photos were trained on, and say "
                "nothing; give predictions of the held-out part, or out-of-fold ones"
            )
        run = meta.run
        if run != runs[place] and run in runs:
            raise InputError(
                f"--fit {path}: member {place + 1} is {member.prediction.path}, and this is of "
                f"{run}, another member's run; give them in the members' order"
            )
        digests = {m.checkpoint_sha256 for m in (meta, member.prediction.meta)} - {None}
        if run == runs[place] and len(digests) > 1:
            raise InputError(
                f"--fit {path}: it was predicted with other weights of {run} than "
                f"{member.prediction.path}; predict both with the same --checkpoint and --weights"
            )


def _write(
    out: Path,
    how: str,
    members: list[Member],
    chosen: Fit,
    photos: FitPhotos | None,
    choices: dict[str, str],
) -> None:
    first = members[0].prediction
    chosen_keys = [member.prediction.chosen_keys for member in members]
    chosen_on = np.empty(0, np.int64)
    if photos is not None and choices:
        chosen_on = photos.members[0].prediction.photos["key"].to_numpy()
        chosen_keys += [chosen_on, *(one.prediction.chosen_keys for one in photos.members)]
    is_chosen_on = np.isin(first.photos["key"], chosen_on)
    of_choice = np.where(is_chosen_on, Role.CHOSEN_ON, Role.UNSEEN)
    roles = worst_roles(of_choice, *(member.roles for member in members))
    with write_prediction(
        out,
        ids=first.ids,
        labels=np.max([member.labels for member in members], axis=0),
        species=first.species,
        photos=first.photos.assign(role=pd.Series(roles, dtype="str")),
        meta=_meta(how, members, chosen, photos, choices),
        dtype=np.result_type(*(member.prediction.logits.dtype for member in members)),
        chosen_keys=chosen_keys,
    ) as rows:
        _fill(rows, how, members, chosen)


def _fill(rows: np.ndarray, how: str, members: list[Member], chosen: Fit) -> None:
    counted = [place for place, weight in enumerate(chosen.weights) if weight > 0]
    weights = [chosen.weights[place] for place in counted]
    temperatures = [chosen.temperatures[place] for place in counted]

    def work(chunk: slice) -> int:
        logits = (members[place].logits(chunk) for place in counted)
        scores = store(pool(how, logits, weights, temperatures), rows.dtype)
        rows[chunk] = scores
        return len(scores)

    chunks = members[0].prediction.chunks(CHUNK_BYTES)
    with progress_bar("ensemble", len(rows), "photos") as bar:
        for n_done in in_order(work, chunks, usable_processors()):
            bar.advance(n_done)


def _meta(
    how: str, members: list[Member], chosen: Fit, photos: FitPhotos | None, choices: dict[str, str]
) -> PredictionMeta:
    first = members[0].prediction.meta
    inherited = {
        f"{what} of member {number}": by
        for number, member in enumerate(members, 1)
        for what, by in member.prediction.meta.chosen.items()
    }
    return PredictionMeta(
        competition=first.competition,
        split=first.split,
        data_root=first.data_root,
        band_edges=first.band_edges,
        versions=first.versions,
        # Ranks are no log-probabilities: no formula says what prior they carry.
        logits_prior=None if how == "rank" else uniform_prior(len(members[0].shift)).tolist(),
        how=how,
        members=[
            member.prediction.meta.as_member(member.prediction.path, weight, temperature)
            for member, weight, temperature in zip(
                members, chosen.weights, chosen.temperatures, strict=True
            )
        ],
        fit=None if photos is None else photos.facts(),
        chosen=inherited | choices,
    )


def _notes(members: list[Member], chosen: Fit, photos: FitPhotos | None) -> list[str]:
    notes = [
        f"weight {weight:.3f}  temperature {temperature:.2f}  {member.prediction.path}"
        for member, weight, temperature in zip(
            members, chosen.weights, chosen.temperatures, strict=True
        )
    ]
    if photos is None:
        return notes
    gain, species = photos.gain, photos.members[0].prediction.species
    best = members[gain.best_member].prediction.path
    notes.append(
        f"on {photos}, each scored with what was chosen on the others: mean class accuracy "
        f"{100 * gain.accuracy:.1f} %, best member {100 * gain.best_accuracy:.1f} % ({best}): "
        f"{gain.difference.points()} (paired)"
    )
    for place, (member, held_out) in enumerate(zip(members, photos.members, strict=True), 1):
        made = held_out.prediction  # by another model, or with other views?
        if told := told_of_fit(member.prediction.meta, made.meta, str(made.path)):
            notes.append(f"member {place} was fitted on {told}")
    never = np.setdiff1d(np.arange(len(species)), photos.members[0].prediction.labels)
    if len(never):
        names = first_few(species["name"].iloc[never].tolist())
        notes.append(
            f"{len(never)} of {len(species)} species have no photo there, and no say: {names}"
        )
    return notes
