"""The steps since the last line of metrics.jsonl: their losses, photos and rate."""

import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeVar

import torch
from jaxtyping import Float, Int64
from torch import Tensor

from inat.core.errors import WorldError
from inat.core.progress import first_few
from inat.training.processes import averaged, gathered

T = TypeVar("T")

MOST_IDS = 8


@dataclass(frozen=True)
class Step:
    """A step whose loss has not been read yet.

    Attributes:
        number: counted from 1.
        learning_rate: that it was taken with.
        loss: still on the device; its mean over the processes is that of the step.
        image_ids: of this process's batches.
        n_images: of all processes' batches.
        skipped: whether float16's scaler threw the step away, as it does while it looks for a
            scale; such a loss need not be finite.
    """

    number: int
    learning_rate: float
    loss: Float[Tensor, ""]
    image_ids: Sequence[Int64[Tensor, "batch"]]
    n_images: int
    skipped: bool = False


class LossNotFinite(WorldError):
    """The loss of a step is NaN or infinite.

    Attributes:
        step: counted from 1.
        image_ids: of all processes' batches of that step.
    """

    def __init__(self, text: str, step: int, image_ids: Sequence[int]) -> None:
        super().__init__(text)
        self.step = step
        self.image_ids = list(image_ids)


class Window:
    """Gathers losses on the device and reads them all at once, when asked: a read makes the
    host wait for the device."""

    def __init__(self, losses: Sequence[float] = ()) -> None:
        """Begins with the losses that a checkpoint kept."""
        self._losses = list(losses)
        self._unread: list[Step] = []
        self._images = self._epoch_images = 0
        self._waited = self._epoch_waited = 0.0
        self._began = self._epoch_began = time.monotonic()
        self.note = ""

    def timed(self, items: Iterable[T]) -> Iterator[T]:
        """The items; the window counts the time that each is waited for."""
        iterator = iter(items)
        while True:
            began = time.monotonic()
            item = next(iterator, None)
            waited = time.monotonic() - began
            self._waited += waited
            self._epoch_waited += waited
            if item is None:
                return
            yield item

    def add(self, step: Step) -> None:
        """Takes in a step."""
        self._unread.append(step)
        self._images += step.n_images
        self._epoch_images += step.n_images

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to be logged."""
        return not self._losses and not self._unread

    def read(self) -> list[float]:
        """The losses of the window so far; all processes read at the same step.

        Raises:
            LossNotFinite: one is not finite; the text names the first such step, its learning rate
                and images.
        """
        if self._unread:
            values = averaged(torch.stack([step.loss for step in self._unread])).tolist()
            for step, value in zip(self._unread, values, strict=True):
                if math.isfinite(value):
                    self._losses.append(value)
                elif not step.skipped:
                    raise _not_finite(step, value)
            self._unread = []
        return list(self._losses)

    def close(self) -> tuple[float | None, float, float]:
        """Mean loss (None where every step was skipped), images per second, and the share of the
        time in which this process waited for photos; the next window begins."""
        losses = self.read()
        mean = math.fsum(losses) / len(losses) if losses else None
        seconds = max(time.monotonic() - self._began, 1e-9)
        rate, waiting = self._images / seconds, self._waited / seconds
        self._losses = []
        self._images, self._waited = 0, 0.0
        self._began = time.monotonic()
        return mean, rate, waiting

    @property
    def epoch_rate(self) -> float:
        """Images per second since the epoch began, or was gone on with."""
        return self._epoch_images / max(time.monotonic() - self._epoch_began, 1e-9)

    @property
    def epoch_waiting(self) -> float:
        """The share of the epoch's time in which this process waited for photos."""
        return self._epoch_waited / max(time.monotonic() - self._epoch_began, 1e-9)


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
