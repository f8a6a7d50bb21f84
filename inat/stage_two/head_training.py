"""Trains a head on batches of features, as the decoupling paper does."""

import math
import time
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.optim import Optimizer

from inat.core.errors import WorldError
from inat.core.progress import Bar, progress_bar, say
from inat.runs.metrics_log import MetricsLog
from inat.stage_two.batches import FeatureBatches

MOMENTUM = 0.9


@dataclass(frozen=True, kw_only=True)
class HeadRecipe:
    """How a head is trained: SGD with momentum .9, a cosine to zero, no warm-up."""

    epochs: int  # passes of `epoch_size` draws
    epoch_size: int  # draws an epoch
    batch_size: int  # draws a step
    learning_rate: float  # of the first step
    weight_decay: float  # of every parameter that is trained, biases and scales included
    seed: int  # of the draws and of a new head's weights

    @property
    def steps_per_epoch(self) -> int:
        return self.epoch_size // self.batch_size

    @property
    def n_steps(self) -> int:
        return self.epochs * self.steps_per_epoch

    def learning_rate_at(self, step: int) -> float:
        """A cosine from `learning_rate` at step 0 to zero behind the last step."""
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * step / self.n_steps))


def train_head(
    head: nn.Module, batches: FeatureBatches, recipe: HeadRecipe, log: MetricsLog
) -> None:
    """Minimizes the cross-entropy over the head's trainable parameters (Kang et al. 2020)."""
    trained = [parameter for parameter in head.parameters() if parameter.requires_grad]
    optimizer = torch.optim.SGD(
        trained, recipe.learning_rate, momentum=MOMENTUM, weight_decay=recipe.weight_decay
    )
    began = time.monotonic()
    with progress_bar("head", recipe.n_steps * recipe.batch_size, "photos") as bar:
        for epoch in range(recipe.epochs):
            loss = _train_epoch(head, batches, recipe, optimizer, epoch, bar)
            log.write(
                "train",
                epoch=epoch + 1,
                step=(epoch + 1) * recipe.steps_per_epoch,
                loss=loss,
                learning_rate=optimizer.param_groups[0]["lr"],
            )
    say(f"head       loss {loss:.3f} after {time.monotonic() - began:.1f} s")


def _train_epoch(
    head: nn.Module,
    batches: FeatureBatches,
    recipe: HeadRecipe,
    optimizer: Optimizer,
    epoch: int,
    bar: Bar,
) -> float:
    losses: list[Tensor] = []
    for features, labels in batches.epoch(epoch):
        step = epoch * recipe.steps_per_epoch + len(losses)
        optimizer.param_groups[0]["lr"] = recipe.learning_rate_at(step)
        loss = functional.cross_entropy(head(features), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        losses.append(loss.detach())
        bar.advance(len(labels))
    mean = float(torch.stack(losses).mean()) if losses else math.nan
    if not math.isfinite(mean):
        raise WorldError(
            f"the loss is {mean} in epoch {epoch + 1}; give a lower --lr-per-256 than "
            f"{recipe.learning_rate * 256 / recipe.batch_size:.3g}"
        )
    return mean
