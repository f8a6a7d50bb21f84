"""meta.json of a prediction file: what its logits are, and how they were made."""

from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import msgspec
import numpy as np
import pandas as pd
from msgspec import field
from msgspec.structs import replace

from inat.core.errors import InputError
from inat.core.files import read_json, write_json
from inat.core.intervals import Interval

FORMAT = 1
MOST_LEVELS = 20
"""Of ensembles of ensembles."""

LOG_PRESENCE = "log presence"
"""`logits` of a geo prior's prediction; a classifier's has none."""

# No path contains a zero byte, and opening one that does is an error.
_Text = Annotated[str, msgspec.Meta(pattern=r"\A[^\0]*\Z")]


class Role(StrEnum):
    """What a model has seen of a photo, the worst for an honest score last."""

    UNSEEN = "unseen"
    HELD_OUT = "held out"
    CHOSEN_ON = "chosen on"
    TRAINED_ON = "trained on"

    @property
    def rank(self) -> int:
        """0 for unseen to 3 for trained on."""
        return [*Role].index(self)


def worst_roles(*roles: np.ndarray) -> np.ndarray:
    """The worst role of each photo among those that several models give it, as texts."""
    names = [role.value for role in Role]
    ranks = np.max([pd.Categorical(each.tolist(), names).codes for each in roles], axis=0)
    worst: np.ndarray = np.array(names, object)[ranks]
    return worst


class ShiftCheck(msgspec.Struct):
    """What BBSE finds of an estimated prior; see `inat.posthoc.bbse`."""

    unexplained: float
    by_chance: float


class Adjustment(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One adjustment of a prediction's logits; each verb fills in its own fields.

    Attributes:
        of: the prediction that was adjusted.
        tau: of the logit adjustment.
        target: the class prior that the logits were moved to.
        fit: the prediction that tau was chosen on.
        never_held_out: category ids without a photo there.
        geo: the prediction of a geo prior that was added.
        geo_checkpoint_sha256: of that geo prior.
        n_without_place: photos that kept their own logits.
        presence_power: see `inat.posthoc.product_rule`.
        calibrated_on: the labelled prediction by which logits were calibrated before the prior
            was estimated.
        temperature: of that calibration.
        pseudo_counts: photos per species by which the estimate is smoothed.
        iterations: steps of EM.
        gain: log-likelihood per photo.
        shift: total variation between the prior before and after.
        spread: its standard deviation over bootstrap samples.
        not_held_out: category ids without a photo in `calibrated_on`.
        bbse: the second opinion on the estimate.
        warnings: what speaks against the estimate.
    """

    of: str = ""
    tau: float | None = None
    target: str | None = None
    fit: str | None = None
    never_held_out: list[int] | None = None
    geo: str | None = None
    geo_checkpoint_sha256: str | None = None
    n_without_place: int | None = None
    presence_power: float | None = None
    calibrated_on: str | None = None
    temperature: float | None = None
    pseudo_counts: float | None = None
    iterations: int | None = None
    gain: float | None = None
    shift: float | None = None
    spread: float | None = None
    not_held_out: list[int] | None = None
    bbse: ShiftCheck | None = None
    warnings: list[str] | None = None


class EnsembleFit(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The held-out photos that an ensemble's temperatures and weights were chosen on.

    Attributes:
        predictions: of the members, in their order.
        n_photos: how many photos.
        ids_sha256: of the sorted image ids.
        mean_class_accuracy: of the ensemble, each photo scored with what was chosen on others.
        best_member: counted from 1.
        best_member_accuracy: its mean class accuracy.
        difference: between the two, paired.
    """

    predictions: list[str] = []
    n_photos: int = 0
    ids_sha256: str = ""
    mean_class_accuracy: float | None = None
    best_member: int | None = None
    best_member_accuracy: float | None = None
    difference: Interval | None = None


class Origin(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How logits were made: a prediction's, a member's of an ensemble, or those of a fold's run.

    Attributes:
        competition: Kaggle name.
        split: that was predicted.
        run, checkpoint, checkpoint_epoch, checkpoint_sha256, weights, weights_source: of the
            network.
        config_digest: of the run's config; `config_digest_without_holdout` is the same for the
            runs of one config, whatever each held out.
        views, view_mean: test-time augmentation.
        precision: of the forward passes.
        logits: LOG_PRESENCE for a geo prior's.
        chosen: what was chosen on held-out photos, and how.
        adjusted: the history of adjustments, oldest first.
        how, fit, members: of an ensemble.
        prediction, weight, temperature: of an ensemble's member.
        folds: the runs behind an out-of-fold prediction.
        never_held_out: category ids without a photo in an out-of-fold prediction.
        data_root: of the photos.
        band_edges: of the shot bands; None: the default ones.
        versions: of the kit and the packages that decide its results.
        n_without_place, n_without_date: photos about which a geo prior knows less.
        bad_photos, recovered_photos: unreadable photos, and those read after a repair; None where
            no photo was read.
    """

    competition: str = ""
    split: str = ""
    prediction: _Text = ""
    weight: float | None = None
    temperature: float | None = None
    views: list[dict[str, Any]] | None = None
    view_mean: str | None = None
    logits: str = ""
    run: _Text = ""
    checkpoint: str = ""
    checkpoint_epoch: int | None = None
    checkpoint_sha256: str | None = None
    weights: str = ""
    weights_source: str = ""
    chosen: dict[str, str] = {}
    adjusted: list[Adjustment] = []
    how: str = ""
    fit: EnsembleFit | None = None
    members: list["Origin"] = []
    folds: list["Origin"] = []
    never_held_out: list[int] | None = None
    data_root: _Text = ""
    band_edges: tuple[int, int] | None = None
    config_digest: str | None = None
    config_digest_without_holdout: str | None = None
    versions: dict[str, str] = {}
    precision: str = ""
    n_without_place: int | None = None
    n_without_date: int | None = None
    bad_photos: list[str] | None = None
    recovered_photos: list[str] | None = None

    @property
    def is_log_presence(self) -> bool:
        """Whether the logits are a geo prior's log presence."""
        return self.logits == LOG_PRESENCE

    @property
    def knows_places(self) -> bool:
        """Whether a geo prior was added to the logits, or to a member's."""
        added = any(step.geo is not None for step in self.adjusted)
        return added or any(member.knows_places for member in self.members)

    @property
    def history(self) -> list[Adjustment]:
        """The adjustments without the names of files and what differs from split to split."""
        return [
            replace(step, of="", geo=None, n_without_place=None, presence_power=None)
            for step in self.adjusted
        ]

    @property
    def n_levels(self) -> int:
        """1, and 1 more for each level of ensembles below."""
        return 1 + max((member.n_levels for member in self.members), default=0)


class PredictionMeta(Origin, kw_only=True):
    """What meta.json of a prediction file says.

    Attributes:
        logits_prior: the class prior that the logits still carry; None where unknown.
    """

    competition: str
    split: str
    logits_prior: list[float] | None
    chosen: dict[str, str]
    # Not the factory `list`, which would omit the field where it is empty.
    adjusted: list[Adjustment] = field(default_factory=lambda: [])

    def as_member(self, prediction: Path, weight: float, temperature: float) -> Origin:
        """What an ensemble's meta.json says of this prediction."""
        facts = {name: getattr(self, name) for name in Origin.__struct_fields__}
        own = {"prediction": str(prediction), "weight": weight, "temperature": temperature}
        return Origin(**facts | own | {"bad_photos": None, "recovered_photos": None})


def read_meta(path: Path) -> PredictionMeta:
    """Reads meta.json.

    Raises:
        InputError: it is of another format, or a field is missing or of another type.
    """
    content = read_json(path)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise InputError(f"{path}: not of format {FORMAT}; predict again")
    try:
        meta = msgspec.convert(content, PredictionMeta)
        if meta.n_levels <= MOST_LEVELS:
            return meta
    except (msgspec.ValidationError, RecursionError) as error:
        raise InputError(f"{path}: {error}; predict again") from None
    raise InputError(f"{path}: members of members without end; predict again")


def write_meta(path: Path, meta: PredictionMeta) -> None:
    """Writes meta.json."""
    write_json(path, {"format": FORMAT, **msgspec.to_builtins(meta)})
