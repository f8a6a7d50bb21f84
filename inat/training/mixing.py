"""What is done to a whole batch on the device: mixup, CutMix, erased boxes.

Partners, shares and boxes are drawn from (seed, epoch, step) for the global batch: a resumed run
mixes the same photos, and so does any number of processes.
"""

import math
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
import torch.distributed as dist
from jaxtyping import Float, Int64, Shaped
from torch import Tensor

from inat.config.schema import TransformConfig

ATTEMPTS = 10
ERASED_SCALE = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)

Images = Float[Tensor, "batch 3 height width"]
Targets = Int64[Tensor, "batch"] | Float[Tensor, "batch classes"]


@dataclass(frozen=True)
class GlobalBatch:
    """A batch over all processes, and the place of this process's images in it."""

    sizes: tuple[int, ...]  # images of each process, in the order of the global batch
    rank: int = 0

    @property
    def n_images(self) -> int:
        return sum(self.sizes)

    @property
    def own(self) -> slice:
        first = sum(self.sizes[: self.rank])
        return slice(first, first + self.sizes[self.rank])

    def partners(
        self, rows: Shaped[Tensor, "own ..."], partner: Int64[np.ndarray, "global"]
    ) -> Shaped[Tensor, "own ..."]:
        """The row of each own image's partner, from the process that holds it; `partner` is a
        permutation of the global batch, the same in all processes."""
        if len(self.sizes) == 1:
            return rows.index_select(0, on_device(partner, rows.device))
        # Who holds each image's partner, and whose image it is, by place in the global batch.
        holder = np.searchsorted(np.cumsum(self.sizes), partner, side="right")
        owner = np.repeat(np.arange(len(self.sizes)), self.sizes)
        sent = partner[holder == self.rank] - self.own.start
        come_from = holder[self.own]
        received = rows.new_empty(rows.shape)
        dist.all_to_all_single(
            received,
            rows.index_select(0, on_device(sent, rows.device)),
            np.bincount(come_from, minlength=len(self.sizes)).tolist(),
            np.bincount(owner[holder == self.rank], minlength=len(self.sizes)).tolist(),
        )
        # Rows come by holder, and within a holder in order of the images that they are for.
        place = np.argsort(np.argsort(come_from, kind="stable"))
        return received.index_select(0, on_device(place, rows.device))


def on_device(values: np.ndarray, device: torch.device) -> Tensor:
    """The array as a tensor; a copy to a GPU does not wait for it."""
    tensor = torch.from_numpy(values)
    is_cuda = device.type == "cuda"
    return (tensor.pin_memory() if is_cuda else tensor).to(device, non_blocking=is_cuda)


class Boxes(NamedTuple):
    """A box an image, in pixels; one of height 0 is none."""

    top: Int64[np.ndarray, "batch"]
    left: Int64[np.ndarray, "batch"]
    height: Int64[np.ndarray, "batch"]
    width: Int64[np.ndarray, "batch"]


class Mix(NamedTuple):
    """How the images of a batch are mixed."""

    share: float  # what each image keeps of its label, 0..1
    partner: Int64[np.ndarray, "batch"]  # the image that each is mixed with
    box: tuple[int, int, int, int] | None  # CutMix's (top, left, height, width); None for mixup


def mix_images(
    images: Images,
    labels: Int64[Tensor, "batch"],
    n_classes: int,
    recipe: TransformConfig,
    rng: np.random.Generator,
    whole: GlobalBatch,
) -> tuple[Images, Targets]:
    """The batch after mixup or CutMix, with soft targets; unchanged if the recipe has neither.

    `recipe.mixup` and `recipe.cutmix` are the alphas of their Beta(alpha, alpha); with both, each
    step takes one of them at random. Images stay in their memory format and may be written to;
    `rng` is the step's own, the same in all processes; partners come from the whole global batch.
    """
    drawn = draw_mix(recipe, whole.n_images, images.shape[-1], rng)
    if drawn is None:
        return images, labels
    # Seen as [B, H, W, 3] channels_last images are contiguous.
    layout, rows = _layout(images), images.permute(0, 2, 3, 1)
    if drawn.box is None:
        rows = whole.partners(rows, drawn.partner).lerp_(rows, drawn.share)
    else:
        top, left, height, width = drawn.box
        box = rows[:, top : top + height, left : left + width]
        box.copy_(whole.partners(box, drawn.partner))
    others = one_hot(whole.partners(labels, drawn.partner), n_classes)
    images = rows.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    return images, others.lerp_(one_hot(labels, n_classes), drawn.share)


def draw_mix(
    recipe: TransformConfig, n_images: int, size: int, rng: np.random.Generator
) -> Mix | None:
    """Draws the mix of one step: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019, alg. A1)."""
    alphas = {"mixup": recipe.mixup, "cutmix": recipe.cutmix}
    usable = [(name, alpha) for name, alpha in alphas.items() if alpha]
    if not usable:
        return None
    name, alpha = usable[rng.integers(len(usable))]
    share = float(rng.beta(alpha, alpha))
    partner = rng.permutation(n_images)
    if name == "mixup":
        return Mix(share, partner, None)
    side = size * math.sqrt(1 - share)
    centre = rng.random(2) * size
    first = np.maximum(np.rint(centre - side / 2), 0).astype(int).tolist()
    last = np.minimum(np.rint(centre + side / 2), size).astype(int).tolist()
    height, width = last[0] - first[0], last[1] - first[1]
    # The box was cut off at the edges: the share is what is really left.
    return Mix(1 - height * width / size**2, partner, (*first, height, width))


def one_hot(labels: Int64[Tensor, "batch"], n_classes: int) -> Float[Tensor, "batch classes"]:
    rows = torch.zeros(len(labels), n_classes, device=labels.device)
    return rows.scatter_(1, labels[:, None], 1.0)


def erase_images(
    images: Images, recipe: TransformConfig, rng: np.random.Generator, whole: GlobalBatch
) -> Images:
    """The images with boxes erased: `recipe.erasing` is random erasing (Zhong et al. 2020), which
    puts noise in the place of 2 to 33 % of an image; `recipe.cutout` puts the mean colour in a
    square of that side (DeVries and Taylor 2017). Boxes are drawn for the global batch, of which
    `whole` says which are this process's; the noise is each process's own."""
    n_images, size = whole.n_images, images.shape[-1]
    if recipe.erasing:
        boxes = draw_erasing(recipe.erasing, n_images, size, rng)
        # The loop seeds torch by (seed, step, rank), so the noise is a pure function too.
        # Drawn in one order of the pixels, so that the layout does not change it.
        noise = torch.randn_like(images, memory_format=torch.channels_last)
        noise = noise.contiguous(memory_format=_layout(images))
        images = torch.where(_inside(boxes, images, whole), noise, images)
    if recipe.cutout:
        boxes = draw_cutout(recipe.cutout, n_images, size, rng)
        images = torch.where(_inside(boxes, images, whole), 0.0, images)
    return images


def draw_erasing(probability: float, n_images: int, size: int, rng: np.random.Generator) -> Boxes:
    """Boxes of random area and shape; the first of ten attempts that fits, else none."""
    low, high = (math.log(side) for side in ERASED_RATIO)
    area = rng.uniform(*ERASED_SCALE, (n_images, ATTEMPTS)) * size**2
    aspect = np.exp(rng.uniform(low, high, (n_images, ATTEMPTS)))
    height = np.rint(np.sqrt(area * aspect)).astype(np.int64)
    width = np.rint(np.sqrt(area / aspect)).astype(np.int64)
    fits = (height < size) & (width < size)
    first = (np.arange(n_images), fits.argmax(axis=1))
    used = fits.any(axis=1) & (rng.random(n_images) < probability)
    height, width = height[first] * used, width[first] * used
    place = rng.random((2, n_images))
    top = (place[0] * (size - height + 1)).astype(np.int64)
    left = (place[1] * (size - width + 1)).astype(np.int64)
    return Boxes(top, left, height, width)


def draw_cutout(side: int, n_images: int, size: int, rng: np.random.Generator) -> Boxes:
    """Squares whose centres lie anywhere in the image: part of one may lie outside."""
    first = rng.integers(size, size=(2, n_images)) - side // 2
    last = np.minimum(first + side, size)
    first = np.maximum(first, 0)
    return Boxes(first[0], first[1], last[0] - first[0], last[1] - first[1])


def _layout(images: Images) -> torch.memory_format:
    is_last = images.is_contiguous(memory_format=torch.channels_last)
    return torch.channels_last if is_last else torch.contiguous_format


def _inside(boxes: Boxes, images: Images, whole: GlobalBatch) -> Tensor:
    """`[batch, 1, height, width]`."""
    sides = (on_device(side[whole.own], images.device)[:, None] for side in boxes)
    top, left, height, width = sides
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    rows = (y >= top) & (y < top + height)
    columns = (x >= left) & (x < left + width)
    return rows[:, None, :, None] & columns[:, None, None, :]
