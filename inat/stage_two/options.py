"""What a stage two can be asked for, and what is refused before anything is computed."""

from dataclasses import dataclass
from typing import get_args

from inat.config import StageTwoMethod
from inat.errors import InputError, unknown_name
from inat.stage_two import crt, lws
from inat.stage_two.head_training import HeadRecipe

TRAINED = {"crt": crt.EPOCHS, "lws": lws.EPOCHS}
"""The methods that train, with their published epochs."""

MOST_VIEWS = 100


@dataclass(frozen=True, kw_only=True)
class Options:
    """What a stage two was asked for; see `train_stage_two`."""

    method: str
    epochs: int | None
    epoch_size: int | None
    batch_size: int
    lr_per_256: float
    weight_decay: float
    tau: float | None
    feature_views: int
    live: bool
    seed: int | None

    def __post_init__(self) -> None:
        if self.method not in get_args(StageTwoMethod):
            raise InputError(unknown_name("--method", self.method, get_args(StageTwoMethod)))
        training = {
            "--epochs": self.epochs is not None,
            "--epoch-size": self.epoch_size is not None,
            "--live": self.live,
        }
        for name, given in training.items():
            if given and self.method not in TRAINED:
                raise InputError(
                    f"{name} is for crt and lws, which train; {self.method} computes its head"
                )
        if self.tau is not None and self.method != "tau_norm":
            raise InputError(f"--tau is for tau_norm; {self.method} has none")
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
        if not self.lr_per_256 > 0:
            raise InputError(f"--lr-per-256: {self.lr_per_256} is not above 0")
        if self.weight_decay < 0:
            raise InputError(f"--weight-decay: {self.weight_decay} is less than 0")

    def recipe(self, n_photos: int, run_seed: int) -> HeadRecipe:
        """The training of a head on `n_photos` photos of a run of that seed."""
        epoch_size = self.epoch_size or n_photos
        batch_size = min(self.batch_size, epoch_size)
        return HeadRecipe(
            epochs=self.epochs or TRAINED[self.method],
            epoch_size=epoch_size,
            batch_size=batch_size,
            learning_rate=self.lr_per_256 * batch_size / 256,
            weight_decay=self.weight_decay,
            seed=run_seed if self.seed is None else self.seed,
        )
