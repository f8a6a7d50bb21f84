"""A run's network with the weights of one of its checkpoints."""

import hashlib
import os
import weakref
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from inat.config.schema import CheckpointName, Config, Precision, Weights
from inat.core.errors import InputError, WorldError, one_line
from inat.core.files import (
    CHECKSUMS,
    open_file,
    read_file,
    read_json,
    write_checksums,
    write_json,
)
from inat.core.progress import say
from inat.dataset.split import Split, cut_holdout, load_split
from inat.models.backbone import LARGEST_WEIGHTS, Triple, build_backbone
from inat.models.device import (
    can_run,
    pick_device,
    prefers_channels_last,
    resolve_precision,
    to_device_format,
)
from inat.runs.facts import (
    CheckpointFacts,
    WeightsFacts,
    read_checkpoint_facts,
    refuse_other_priors,
)
from inat.runs.run import Run

TRIES = 5
"""Times that a checkpoint is opened again because a training put another in its place."""


class _OpenFile:
    """A file that can still be read after a training has put another in its place."""

    def __init__(self, path: Path) -> None:
        with open_file(path, LARGEST_WEIGHTS) as file:
            self._descriptor = os.dup(file.fileno())
        weakref.finalize(self, os.close, self._descriptor)

    def read(self) -> bytes:
        """All of its bytes."""
        with os.fdopen(os.dup(self._descriptor), "rb") as file:
            file.seek(0)
            return file.read()


@dataclass(frozen=True)
class Checkpoint:
    """A checkpoint that was found; its weights are read later, by `load_weights`.

    Attributes:
        name: last or best.
        weights: ema (moving average) or raw.
        path: the weights' file.
        epoch: epochs that were trained; of one that was under way, its number.
        facts: what it states about its weights.
        digest: SHA-256 that the weights' file has by checksums.json.
        file: the weights' file, open.
    """

    name: CheckpointName
    weights: Literal["ema", "raw"]
    path: Path
    epoch: int
    facts: WeightsFacts
    digest: str
    file: _OpenFile

    @property
    def chosen(self) -> dict[str, str]:
        """What was chosen on the held-out photos to get here; empty for the last of a training."""
        return self.facts.chosen

    def config(self, run_config: Config) -> Config:
        """The run's config as it is in the stage that the checkpoint is of."""
        return run_config.stage(self.facts.stage).config

    def load_weights(self) -> Mapping[str, Tensor]:
        """The weights: those of exactly the bytes that have the digest.

        Raises:
            InputError: the file is damaged.
        """
        content = self.file.read()
        if hashlib.sha256(content).hexdigest() != self.digest:
            raise _damaged(self.path)
        try:
            tensors: dict[str, Tensor] = safetensors.torch.load(content)
        except SafetensorError as error:
            raise InputError(f"{self.path}: not weights ({one_line(error):.160})") from None
        return tensors


@dataclass(frozen=True)
class TrainedModel:
    """A network in eval mode on its device, with what its input and arithmetic must be."""

    network: nn.Module
    mean: Triple
    std: Triple
    precision: str
    channels_last: bool


def find_checkpoint(
    run: Run, name: CheckpointName = "last", weights: Weights = "auto"
) -> Checkpoint:
    """The checkpoint of that name; auto takes the moving average where the run kept one.

    Raises:
        InputError: the run has no such checkpoint or no moving average, or it is damaged.
        WorldError: a training replaces it all the time.
    """
    if name == "best" and run.config.data.holdout == "none":
        raise InputError(
            f"{run.path}: there is no best checkpoint, since data.holdout none validates nothing; "
            "use --checkpoint last, or train with data.holdout 0.2"
        )
    if name == "best" and run.made_by != "inat train":
        raise InputError(
            f"{run.path}: {run.made_by} leaves no best checkpoint; use --checkpoint last"
        )
    folder = run.checkpoint(name)
    if not folder.is_dir():
        raise InputError(f"{run.path}: there is no checkpoint {name}; let an epoch end")
    for _ in range(TRIES):
        sums = _checksums(folder)
        try:
            found = _open(run, name, weights, sums)
            fault = None
        except (InputError, FileNotFoundError) as error:
            fault = error
        # A training that puts the next checkpoint in place meanwhile must not pair the facts of
        # one with the weights of the other.
        if _checksums(folder) != sums:
            continue
        if isinstance(fault, FileNotFoundError):
            raise _damaged(Path(fault.filename))
        if fault is not None:
            raise fault
        return found
    raise WorldError(f"{folder}: a training replaces it all the time; run the command again")


def _checksums(folder: Path) -> dict[str, str]:
    sums = read_json(folder / CHECKSUMS) if (folder / CHECKSUMS).is_file() else None
    if not isinstance(sums, dict):
        raise InputError(
            f"{folder / CHECKSUMS}: missing or damaged, so nothing tells whether the weights are "
            "whole; take another checkpoint, or make the run again"
        )
    return sums


def _open(run: Run, name: CheckpointName, weights: Weights, sums: Mapping[str, str]) -> Checkpoint:
    folder = run.checkpoint(name)
    has_ema = "ema.safetensors" in sums
    if weights == "ema" and not has_ema:
        raise InputError(f"{run.path}: no moving average was kept (optim.ema_decay was off)")
    kind: Literal["ema", "raw"] = "ema" if has_ema and weights != "raw" else "raw"
    path = folder / ("ema.safetensors" if kind == "ema" else "model.safetensors")
    file = _OpenFile(path)
    place = folder / "state.json"
    content = read_file(place)
    if hashlib.sha256(content).hexdigest() != sums.get(place.name):
        raise _damaged(place)
    state = read_checkpoint_facts(place, content)
    refuse_other_priors(state.weights, place, len(run.facts.category_ids))
    return Checkpoint(
        name=name,
        weights=kind,
        path=path,
        epoch=state.epoch + bool(state.batches),
        facts=state.weights,
        digest=sums.get(path.name, ""),
        file=file,
    )


def _damaged(path: Path) -> InputError:
    return InputError(
        f"{path}: damaged, it is not what {CHECKSUMS} says; take another checkpoint, copy the "
        "run again, or make it again"
    )


MOST_IMAGES = 512
"""Images of a forward pass where nobody says how many: more make no GPU faster."""


def forward_batch(run: Run, config: Config) -> int:
    """Images of a forward pass: twice what a process of the training passed at once, since there
    are no gradients to keep."""
    return min(MOST_IMAGES, 2 * (run.facts.process_batch or config.batch_size))


def load_model(
    run: Run, checkpoint: Checkpoint, precision: Precision | None = None
) -> TrainedModel:
    """Builds the run's network with the weights of `checkpoint`.

    Args:
        run: the run.
        checkpoint: whose weights.
        precision: of the forward passes; None: the run's, where the device has it.

    Raises:
        InputError: it is a geo prior, which has no use for photos; the weights are damaged, or
            of another network than the config's.
    """
    if run.is_geo_prior:
        assert run.facts.stage_two is not None
        raise InputError(
            f"{run.path}: is a geo prior, which sees places and no photos; give the run that it "
            f"was made from ({run.facts.stage_two.run})"
        )
    config, facts = checkpoint.config(run.config), run.facts
    backbone = build_backbone(
        replace(config.model, weights="none"),
        len(facts.category_ids),
        seed=0,
        image_size=checkpoint.facts.image_size or config.transforms.image_size,
    )
    try:
        backbone.network.load_state_dict(dict(checkpoint.load_weights()))
    except RuntimeError as error:
        raise InputError(
            f"{checkpoint.path}: its weights do not fit the config ({one_line(error):.160}); train "
            "again"
        ) from None
    device = pick_device(config.runtime.device)
    chosen = _precision(run, device, precision)
    channels_last = config.runtime.channels_last and prefers_channels_last(device, chosen)
    return TrainedModel(
        network=to_device_format(backbone.network, device, channels_last=channels_last).eval(),
        mean=facts.mean,
        std=facts.std,
        precision=chosen,
        channels_last=channels_last,
    )


def _precision(run: Run, device: torch.device, asked: Precision | None) -> str:
    """The run's own precision, or the nearest to it on this device, unless another is asked for."""
    if asked is not None:
        found = resolve_precision(asked, device)
        if not can_run(found, device):
            raise InputError(
                f"--precision {asked}: this {device.type} device has none; give auto, which is "
                f"{resolve_precision('auto', device)} here"
            )
        return found
    kept, kind = run.facts.precision, run.facts.device
    configured = resolve_precision(run.config.runtime.precision, device)
    nearest = configured if can_run(configured, device) else resolve_precision("auto", device)
    if device.type == kind and can_run(kept, device):
        return kept
    if nearest != kept:
        say(
            f"precision  {run.path} was trained in {kept} on {kind}; on this {device.type} device "
            f"it runs in {nearest} (--precision chooses)"
        )
    return nearest


def write_weights(folder: Path, network: nn.Module, state: CheckpointFacts) -> None:
    """Writes a checkpoint of weights alone, to predict with, into a new folder.

    Args:
        folder: of the checkpoint.
        network: whose weights.
        state: for state.json.
    """
    folder.mkdir(parents=True)
    # safetensors stores rows as they lie; channels_last weights are laid out anew.
    tensors = {k: v.detach().cpu().contiguous() for k, v in network.state_dict().items()}
    safetensors.torch.save_file(tensors, folder / "model.safetensors")
    write_json(folder / "state.json", msgspec.to_builtins(state))
    write_checksums(folder)


def photos_of(run: Run, config: Config) -> tuple[Split, Split | None]:
    """The photos that a run was trained on and those that it held out; None with holdout none.

    Raises:
        InputError: the data's photos are not those that the run was trained on.
    """
    data = config.data
    assert data.root is not None
    trained, held_out = load_split(data.root, data.train_on, competition=data.competition), None
    if data.holdout != "none":
        trained, held_out = cut_holdout(trained, data.holdout, data.holdout_seed)
    if trained.fingerprint != run.facts.trained:
        raise InputError(
            f"{data.root}: its {data.train_on} photos are not those that {run.path} was trained "
            "on; give the data set it was trained on (--data.root)"
        )
    return trained, held_out
