"""A run's network with the weights of one of its checkpoints."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
from torch import nn

from inat.config import CheckpointName, Config, Precision, Weights
from inat.errors import InputError, one_line
from inat.files import sha256
from inat.models.backbone import Triple, build_backbone, read_weights
from inat.models.device import (
    can_run,
    pick_device,
    prefers_channels_last,
    resolve_precision,
    to_device_format,
)
from inat.progress import say
from inat.run_folder import Run, read_epoch
from inat.stages import stage_at


@dataclass(frozen=True)
class Checkpoint:
    """The file that a model's weights are read from.

    Attributes:
        name: last or best.
        weights: ema (moving average) or raw.
        path: the weights' file.
        epoch: epochs that were trained; of one that was under way, its number.
        chosen: what was chosen on the held-out photos to get here; empty for the last of a
            training.
    """

    name: CheckpointName
    weights: Literal["ema", "raw"]
    path: Path
    epoch: int
    chosen: dict[str, str]

    @property
    def digest(self) -> str:
        """SHA-256 of the weights' file."""
        return sha256(self.path)


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
        InputError: the run has no such checkpoint or no moving average.
    """
    folder = run.checkpoint(name)
    if name == "best" and run.config.data.holdout == "none":
        raise InputError(
            f"{run.path}: there is no best checkpoint, since data.holdout none validates nothing; "
            "use --checkpoint last, or train with data.holdout 0.2"
        )
    if name == "best" and run.made_by != "inat train":
        raise InputError(
            f"{run.path}: {run.made_by} leaves no best checkpoint; use --checkpoint last"
        )
    if not folder.is_dir():
        raise InputError(f"{run.path}: there is no checkpoint {name}; let an epoch end")
    has_ema = (folder / "ema.safetensors").is_file()
    if weights == "ema" and not has_ema:
        raise InputError(f"{run.path}: no moving average was kept (optim.ema_decay was off)")
    kind: Literal["ema", "raw"] = "ema" if has_ema and weights != "raw" else "raw"
    file_name = "ema.safetensors" if kind == "ema" else "model.safetensors"
    epoch = read_epoch(folder / "state.json", begun=True)
    chosen: dict[str, str] = dict(run.model.get("chosen", {}))
    if name == "best":
        chosen |= {"epoch": "mean class accuracy on the held-out part of train"}
    return Checkpoint(name, kind, folder / file_name, epoch, chosen)


MOST_IMAGES = 512
"""Images of a forward pass where nobody says how many: more make no GPU faster."""


def forward_batch(run: Run, config: Config) -> int:
    """Images of a forward pass: twice what a process of the training passed at once, since there
    are no gradients to keep."""
    # An older run does not say.
    return min(MOST_IMAGES, 2 * int(run.model.get("process_batch", config.batch_size)))


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
        raise InputError(
            f"{run.path}: is a geo prior, which sees places and no photos; give the run that it "
            f"was made from ({run.model['stage_two']['run']})"
        )
    config, facts = stage_at(run.config, checkpoint.epoch), run.model
    backbone = build_backbone(
        replace(config.model, weights="none"),
        len(facts["category_ids"]),
        seed=0,
        image_size=config.transforms.image_size,
    )
    try:
        backbone.network.load_state_dict(dict(read_weights(checkpoint.path)))
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
        mean=tuple(facts["mean"]),
        std=tuple(facts["std"]),
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
    kept, kind = str(run.model["precision"]), run.model["device"]
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
