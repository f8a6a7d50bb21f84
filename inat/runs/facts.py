"""What a run knows about its network (model.json) and its checkpoints (state.json)."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import msgspec
import numpy as np

from inat.core.errors import InputError
from inat.core.files import parse_json, read_file, to_plain, write_json

MOST_PIXELS = 4096
"""Of a side that a network was trained at."""


class StageTwoFacts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """How `inat stage-two` made a run; None for what its method does not have."""

    method: str  # crt, lws, tau_norm, ncm or geo_prior
    run: str  # path of the run that it was made from
    checkpoint: str | None = None  # of that run, where its network is kept, as the next two
    checkpoint_sha256: str | None = None
    weights: str | None = None
    epochs: int | None = None  # this and all up to seed: see `train_stage_two`
    epoch_size: int | None = None
    batch_size: int | None = None
    lr_per_256: float | None = None
    weight_decay: float | None = None
    tau: float | None = None
    feature_views: int | None = None
    live: bool | None = None
    seed: int | None = None
    learning_rate: float | None = None  # of the first step
    n_photos: int | None = None  # that a geo prior was trained on
    n_without_place: int | None = None  # photos that a geo prior left out
    bad_photos: list[str] | None = None  # unreadable photos that were left out


class SoupMember(msgspec.Struct, kw_only=True):
    """A run that was offered to a soup."""

    run: str  # its path
    used: bool  # whether its weights are in the mean
    checkpoint: str
    checkpoint_sha256: str
    weights: str


class SoupFacts(msgspec.Struct):
    how: str  # uniform or greedy
    runs: list[SoupMember]  # those that were offered, in their order


class RunFacts(msgspec.Struct, kw_only=True, omit_defaults=True):
    """What all checkpoints of a run have in common; what differs is in their `WeightsFacts`."""

    backbone: str = ""  # timm's name
    mean: tuple[float, float, float]  # of the pixels, per channel, as is std
    std: tuple[float, float, float]
    weights_source: str  # where the pretrained weights came from
    precision: str  # that the run was trained in
    device: str  # type of the device that it was trained on
    world_size: int | None = None  # number of its training processes
    # photos per process and forward pass; None in older runs
    process_batch: Annotated[int, msgspec.Meta(ge=1)] | None = None
    trained: str  # fingerprint of the photos that it was trained on
    category_ids: list[int]  # category id of each label
    loss_prior_sha256: str | None = None  # of the losses' prior files; None: none
    stage_two: StageTwoFacts | None = None  # of a run that `inat stage-two` made
    soup: SoupFacts | None = None  # of a run that `inat soup` made


@dataclass(frozen=True, kw_only=True)
class WeightsFacts:
    """What a checkpoint states about its own weights, in its state.json.

    It lies beside the weights and under their checksums, so the two always belong together: the
    stages of a training differ in all of it.
    """

    stage: int = 1  # of the training, counted from 1
    # in pixels, that the network was trained at; None: what the config says
    image_size: Annotated[int, msgspec.Meta(ge=1, le=MOST_PIXELS)] | None = None
    draws_prior: list[float] | None = None  # None where it changes during training
    logits_prior: list[float] | None = None  # None where it is not known
    chosen: dict[str, str] = field(default_factory=dict)  # on held-out photos: what, and by what


class CheckpointFacts(msgspec.Struct):
    """What is read of a checkpoint's state.json by those who do not resume its training."""

    epoch: int  # whole epochs of the training
    step: int  # optimizer steps
    weights: WeightsFacts  # about the weights
    batches: int = 0  # of the epoch that is under way


def write_run_facts(folder: Path, facts: RunFacts) -> None:
    write_json(folder / "model.json", to_plain(facts))


def read_checkpoint_facts(path: Path, content: bytes | None = None) -> CheckpointFacts:
    state = parse_json(path, read_file(path) if content is None else content)
    try:
        return msgspec.convert(state, CheckpointFacts)
    except msgspec.ValidationError as error:
        raise InputError(f"{path}: {error}; train again") from None


def refuse_other_priors(facts: WeightsFacts, path: Path, n_classes: int) -> None:
    for name, prior in (("draws_prior", facts.draws_prior), ("logits_prior", facts.logits_prior)):
        if prior is None:
            continue
        values = np.array(prior)
        if not (len(values) == n_classes and (values >= 0).all() and 0 < values.sum() < np.inf):
            raise InputError(
                f"{path}: '{name}' is not a class prior of {n_classes} species; train again"
            )
