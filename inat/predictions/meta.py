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
from inat.core.files import read_json, to_plain, write_json
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
        return [*Role].index(self)


def worst_roles(*roles: np.ndarray) -> np.ndarray:
    """The worst role of each photo among those that several models give it, as texts."""
    names = [role.value for role in Role]
    ranks = np.max([pd.Categorical(each.tolist(), names).codes for each in roles], axis=0)
    worst: np.ndarray = np.array(names, object)[ranks]
    return worst


class ShiftCheck(msgspec.Struct):
    """See `inat.posthoc.bbse`."""

    unexplained: float
    by_chance: float


class Adjustment(msgspec.Struct, kw_only=True, omit_defaults=True):
    """One adjustment of a prediction's logits; each verb fills in its own fields."""

    of: str = ""  # the prediction that was adjusted
    tau: float | None = None  # of the logit adjustment
    target: str | None = None  # the class prior that the logits were moved to
    fit: str | None = None  # the prediction that tau was chosen on
    never_held_out: list[int] | None = None  # category ids without a photo there
    geo: str | None = None  # the prediction of a geo prior that was added
    geo_checkpoint_sha256: str | None = None  # of that geo prior
    n_without_place: int | None = None  # photos that kept their own logits
    presence_power: float | None = None  # see `inat.posthoc.product_rule`
    # the labelled prediction by which logits were calibrated before the prior was estimated
    calibrated_on: str | None = None
    temperature: float | None = None  # of that calibration
    pseudo_counts: float | None = None  # photos per species by which the estimate is smoothed
    iterations: int | None = None  # steps of EM
    gain: float | None = None  # log-likelihood per photo
    shift: float | None = None  # total variation between the prior before and after
    spread: float | None = None  # its standard deviation over bootstrap samples
    not_held_out: list[int] | None = None  # category ids without a photo in `calibrated_on`
    bbse: ShiftCheck | None = None  # the second opinion on the estimate
    warnings: list[str] | None = None  # what speaks against the estimate


class EnsembleFit(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The held-out photos that an ensemble's temperatures and weights were chosen on."""

    predictions: list[str] = []  # of the members, in their order
    n_photos: int = 0
    ids_sha256: str = ""  # of the sorted image ids
    mean_class_accuracy: float | None = None  # of the ensemble, chosen on other photos
    best_member: int | None = None  # counted from 1
    best_member_accuracy: float | None = None  # its mean class accuracy
    difference: Interval | None = None  # between the two, paired


class Origin(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How logits were made: a prediction's, a member's of an ensemble, or those of a fold's run."""

    competition: str = ""  # Kaggle name
    split: str = ""  # that was predicted
    prediction: _Text = ""  # of an ensemble's member, as are its weight and temperature
    weight: float | None = None
    temperature: float | None = None
    views: list[dict[str, Any]] | None = None  # test-time augmentation
    view_mean: str | None = None
    logits: str = ""  # LOG_PRESENCE for a geo prior's
    run: _Text = ""  # of the network, as are the next five
    checkpoint: str = ""
    checkpoint_epoch: int | None = None
    checkpoint_sha256: str | None = None
    weights: str = ""
    weights_source: str = ""
    chosen: dict[str, str] = {}  # what was chosen on held-out photos, and how
    adjusted: list[Adjustment] = []  # the history of adjustments, oldest first
    how: str = ""  # of an ensemble, as are fit and members
    fit: EnsembleFit | None = None
    members: list["Origin"] = []
    folds: list["Origin"] = []  # the runs behind an out-of-fold prediction
    never_held_out: list[int] | None = None  # category ids without a photo out of fold
    data_root: _Text = ""  # of the photos
    band_edges: tuple[int, int] | None = None  # of the shot bands; None: the default ones
    # of the run's config; `config_digest_without_holdout` is the same for the runs of one config,
    # whatever each held out
    config_digest: str | None = None
    config_digest_without_holdout: str | None = None
    versions: dict[str, str] = {}  # of the kit and the packages that decide its results
    precision: str = ""  # of the forward passes
    n_without_place: int | None = None  # photos about which a geo prior knows less
    n_without_date: int | None = None
    bad_photos: list[str] | None = None  # unreadable; None where no photo was read
    recovered_photos: list[str] | None = None  # read after a repair

    @property
    def is_log_presence(self) -> bool:
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
    competition: str
    split: str
    # the class prior that the logits still carry; None where unknown
    logits_prior: list[float] | None
    chosen: dict[str, str]
    # Not the factory `list`, which would omit the field where it is empty.
    adjusted: list[Adjustment] = field(default_factory=lambda: [])

    def as_member(self, prediction: Path, weight: float, temperature: float) -> Origin:
        facts = {name: getattr(self, name) for name in Origin.__struct_fields__}
        own = {"prediction": str(prediction), "weight": weight, "temperature": temperature}
        return Origin(**facts | own | {"bad_photos": None, "recovered_photos": None})


def read_meta(path: Path) -> PredictionMeta:
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
    write_json(path, {"format": FORMAT, **to_plain(meta)})
