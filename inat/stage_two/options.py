"""What a stage two can be asked for, and what is refused before anything is computed."""

from dataclasses import dataclass
from typing import get_args

from inat.config.schema import StageTwoMethod
from inat.core.errors import InputError, unknown_name
from inat.geo import training as geo_prior
from inat.geo.training import GeoRecipe
from inat.stage_two.head_training import HeadRecipe

TRAINED_HEADS = {"crt": 30, "lws": 5}
"""The methods that train a head, with their published epochs on iNat-2018."""

BATCH_SIZE = 512
LR_PER_256 = 0.1
WEIGHT_DECAY = 1e-4
"""Of crt and lws, as published."""

MOST_VIEWS = 100


@dataclass(frozen=True, kw_only=True)
class Options:
    method: str
    epochs: int | None
    epoch_size: int | None
    batch_size: int | None
    lr_per_256: float | None
    weight_decay: float | None
    tau: float | None
    feature_views: int
    live: bool
    seed: int | None

    def __post_init__(self) -> None:
        if self.method not in get_args(StageTwoMethod):
            raise InputError(unknown_name("--method", self.method, get_args(StageTwoMethod)))
        heads, trained = "crt and lws", "crt, lws and geo_prior"
        for name, given, owners in (
            ("--epochs", self.epochs is not None, trained),
            ("--batch-size", self.batch_size is not None, trained),
            ("--lr-per-256", self.lr_per_256 is not None, trained),
            ("--epoch-size", self.epoch_size is not None, heads),
            ("--weight-decay", self.weight_decay is not None, heads),
            ("--live", self.live, heads),
            ("--tau", self.tau is not None, "tau_norm"),
        ):
            if given and self.method not in owners.replace(",", "").split():
                raise InputError(f"{name} is for {owners}; {self.method} has none")
        if self.tau is not None and not 0 <= self.tau <= 10:
            raise InputError(f"--tau {self.tau:g} is not within 0 and 10")
        for name, value in (
            ("--epochs", self.epochs),
            ("--epoch-size", self.epoch_size),
            ("--batch-size", self.batch_size),
        ):
            if value is not None and value < 1:
                raise InputError(f"{name}: {value} is less than 1; give 1 or more")
        if not 1 <= self.feature_views <= MOST_VIEWS:
            raise InputError(
                f"--feature-views: {self.feature_views} is not within 1 and {MOST_VIEWS}"
            )
        if self.lr_per_256 is not None and not self.lr_per_256 > 0:
            raise InputError(f"--lr-per-256: {self.lr_per_256} is not above 0")
        if self.weight_decay is not None and self.weight_decay < 0:
            raise InputError(f"--weight-decay: {self.weight_decay} is less than 0")

    def recipe(self, n_photos: int, run_seed: int) -> HeadRecipe:
        epoch_size = self.epoch_size or n_photos
        batch_size = min(self.batch_size or BATCH_SIZE, epoch_size)
        return HeadRecipe(
            epochs=self.epochs or TRAINED_HEADS[self.method],
            epoch_size=epoch_size,
            batch_size=batch_size,
            learning_rate=(self.lr_per_256 or LR_PER_256) * batch_size / 256,
            weight_decay=WEIGHT_DECAY if self.weight_decay is None else self.weight_decay,
            seed=run_seed if self.seed is None else self.seed,
        )

    def geo_recipe(self, run_seed: int) -> GeoRecipe:
        batch_size = self.batch_size or geo_prior.BATCH_SIZE
        return GeoRecipe(
            epochs=self.epochs or geo_prior.EPOCHS,
            batch_size=batch_size,
            learning_rate=(self.lr_per_256 or geo_prior.LR_PER_256) * batch_size / 256,
            seed=run_seed if self.seed is None else self.seed,
        )
