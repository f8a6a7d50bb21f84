"""What is averaged in every step: the loss, the weights, and batch norm over the processes."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from inat.core.errors import WorldError
from inat.core.progress import first_few
from inat.training.processes import averaged, gathered

T = TypeVar("T")

MOST_IDS = 8

WARMUP = 10
"""Update n has a decay of at most (1 + n) / (10 + n), as in TensorFlow's
ExponentialMovingAverage: of the weights that the average began with, 1e-5 is left after 10 updates,
where a decay of 0.9999 alone would leave 99.9 %."""


@dataclass(frozen=True)
class Step:
    """A step whose loss has not been read yet: the mean of `loss` over the processes."""

    number: int  # counted from 1
    learning_rate: float  # the smallest of the parameter groups
    loss: Float[Tensor, ""]  # still on the device
    image_ids: Sequence[Int64[Tensor, "batch"]]  # of this process's micro-batches
    n_images: int  # of all processes
    skipped: bool = False  # by float16's scaler, looking for a scale: the loss may be infinite


class LossNotFinite(WorldError):
    """The loss of a step is NaN or infinite."""

    def __init__(self, text: str, step: int, image_ids: Sequence[int]) -> None:
        super().__init__(text)
        self.step = step  # counted from 1
        self.image_ids = list(image_ids)  # of all processes' batches of that step


@dataclass
class Speed:
    """Images since a moment, and the seconds that this process waited for photos."""

    n_images: int = 0
    waited: float = 0.0
    began: float = field(default_factory=lambda: time.monotonic())

    @property
    def rate(self) -> float:
        """Images per second."""
        return self.n_images / max(time.monotonic() - self.began, 1e-9)

    @property
    def waiting(self) -> float:
        """The share of the time that was waited for photos."""
        return self.waited / max(time.monotonic() - self.began, 1e-9)


class LossMeter:
    """Mean loss and speed since the last log line.

    Losses stay on the device and are read together: each read makes the host wait for the device.

    Attributes:
        epoch: speed since the epoch began or was resumed.
        note: loss and learning rate of the last log line, for the progress bar.
    """

    def __init__(self, losses: Sequence[float] = ()) -> None:
        self._losses = list(losses)
        self._unread: list[Step] = []
        self._window, self.epoch = Speed(), Speed()
        self.note = ""

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """Yields the items and counts the time spent waiting for each."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            item = next(iterator, None)
            waited = time.monotonic() - began
            self._window.waited += waited
            self.epoch.waited += waited
            if item is None:
                return
            yield item

    def add(self, step: Step) -> None:
        self._unread.append(step)
        self._window.n_images += step.n_images
        self.epoch.n_images += step.n_images

    @property
    def is_empty(self) -> bool:
        return not self._losses and not self._unread

    def read(self) -> list[float]:
        """The losses since the last log line; all processes call it at the same step."""
        if self._unread:
            values = averaged(torch.stack([step.loss for step in self._unread])).tolist()
            for step, value in zip(self._unread, values, strict=True):
                if math.isfinite(value):
                    self._losses.append(value)
                elif not step.skipped:
                    raise _not_finite(step, value)
            self._unread = []
        return list(self._losses)

    def close(self) -> tuple[float | None, Speed]:
        """Mean loss (None if every step was skipped) and speed; both start again from zero."""
        losses, speed = self.read(), self._window
        self._losses, self._window = [], Speed()
        return math.fsum(losses) / len(losses) if losses else None, speed


def _not_finite(step: Step, loss: float) -> LossNotFinite:
    of_all = gathered([image_id for batch in step.image_ids for image_id in batch.tolist()])
    ids = [image_id for of_process in of_all for image_id in of_process]
    return LossNotFinite(
        f"the loss is {loss} at step {step.number} (learning rate {step.learning_rate:.2g}, "
        f"images {first_few(list(map(str, ids)), MOST_IDS)}); train again with a lower "
        "optim.lr_per_256 or with optim.clip_grad_norm 1",
        step.number,
        ids,
    )


class MovingAverage:
    """average = decay * average + (1 - decay) * weights, after each step.

    The tensors are collected once: `state_dict()` of both networks in each step costs
    milliseconds, during which no kernel is launched.
    """

    def __init__(self, network: nn.Module, decay: float, module: nn.Module | None = None) -> None:
        """Starts an average at the network's weights, or continues the one in `module`. The
        network's tensors must stay the same objects."""
        # a copy of the network with the average as its weights, in eval mode
        self.module = deepcopy(network).eval() if module is None else module
        self.module.requires_grad_(False)
        self._decay = decay
        # The parameters themselves, not tensors of their memory, which DDP may exchange.
        own, weights = self.module.state_dict(keep_vars=True), network.state_dict(keep_vars=True)
        floats = [name for name in own if own[name].is_floating_point()]
        others = [name for name in own if name not in floats]
        self._floats = [own[name] for name in floats], [weights[name] for name in floats]
        self._others = [own[name] for name in others], [weights[name] for name in others]

    @torch.no_grad()
    def update(self, n: int) -> None:
        """Takes in the network's weights after n earlier updates; integer buffers are copied."""
        decay = min(self._decay, (1 + n) / (WARMUP + n))
        torch._foreach_lerp_(*self._floats, 1 - decay)
        if self._others[0]:
            torch._foreach_copy_(*self._others)


def average_statistics(network: nn.Module) -> None:
    """Gives every process the mean of the processes' running statistics of batch norm.

    Each process normalizes by its own share of a batch and keeps statistics of it. Their mean
    uses all photos; the statistics of rank 0, which DistributedDataParallel would send, use those
    of one process. Frozen statistics stay as they are.
    """
    statistics = [
        statistic
        for module in network.modules()
        if isinstance(module, _BatchNorm) and module.training
        for statistic in (module.running_mean, module.running_var)
        if statistic is not None
    ]
    if statistics:
        # One message for all: there are a hundred of them, and each would wait for the network.
        means = averaged(torch.cat(statistics)).split_with_sizes([len(one) for one in statistics])
        torch._foreach_copy_(statistics, means)
