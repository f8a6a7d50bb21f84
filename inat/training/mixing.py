"""What is done to a whole batch on the device: mixup, CutMix, erased boxes.

Partners, shares and boxes are drawn from (seed, epoch, step) for the global batch: a resumed run
mixes the same photos, and so does any number of processes.
"""

import math
from typing import NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int64
from torch import Tensor

from inat.config.schema import TransformConfig
from inat.training.processes import BatchPart, on_device

ATTEMPTS = 10
ERASED_SCALE = (0.02, 1 / 3)
ERASED_RATIO = (0.3, 1 / 0.3)

Images = Float[Tensor, "batch 3 height width"]
Targets = Int64[Tensor, "batch"] | Float[Tensor, "batch classes"]


class Boxes(NamedTuple):
    """A box an image, in pixels; one of height 0 is none."""

    top: Int64[np.ndarray, "batch"]
    left: Int64[np.ndarray, "batch"]
    height: Int64[np.ndarray, "batch"]
    width: Int64[np.ndarray, "batch"]


class Mix(NamedTuple):
    """How the images of a batch are mixed.

    Attributes:
        share: what each image keeps of its label, 0..1.
        partner: the image that each is mixed with.
        box: CutMix's box of the partner, as top, left, height, width; None for mixup.
    """

    share: float
    partner: Int64[np.ndarray, "batch"]
    box: tuple[int, int, int, int] | None


def mixed(
    images: Images,
    labels: Int64[Tensor, "batch"],
    n_classes: int,
    recipe: TransformConfig,
    rng: np.random.Generator,
    part: BatchPart,
) -> tuple[Images, Targets]:
    """The batch after mixup or CutMix, with soft targets; as it was where the recipe has neither.

    Args:
        images: normalised, in channels_last or contiguous, as they stay; may be written to.
        labels: of the images.
        n_classes: width of the soft targets.
        recipe: `mixup` and `cutmix` are the alphas of their Beta(alpha, alpha); with both each
            step takes one of them at random.
        rng: the step's own, the same in all processes.
        part: which part of the global batch the images are; partners come from all of it.
    """
    mix = draw_mix(recipe, part.n_images, images.shape[-1], rng)
    if mix is None:
        return images, labels
    # Seen as [B, H, W, 3] channels_last images are contiguous.
    layout, rows = _layout(images), images.permute(0, 2, 3, 1)
    if mix.box is None:
        rows = part.partners(rows, mix.partner).lerp_(rows, mix.share)
    else:
        top, left, height, width = mix.box
        box = rows[:, top : top + height, left : left + width]
        box.copy_(part.partners(box, mix.partner))
    others = one_hot(part.partners(labels, mix.partner), n_classes)
    images = rows.permute(0, 3, 1, 2).contiguous(memory_format=layout)
    return images, others.lerp_(one_hot(labels, n_classes), mix.share)


def draw_mix(
    recipe: TransformConfig, n_images: int, size: int, rng: np.random.Generator
) -> Mix | None:
    """Draws the mix of one step: mixup (Zhang et al. 2018) or CutMix (Yun et al. 2019, alg. A1)."""
    alphas = [("mixup", recipe.mixup), ("cutmix", recipe.cutmix)]
    usable = [(name, alpha) for name, alpha in alphas if alpha]
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
    """1 at the label, 0 elsewhere."""
    rows = torch.zeros(len(labels), n_classes, device=labels.device)
    return rows.scatter_(1, labels[:, None], 1.0)


def erased(
    images: Images, recipe: TransformConfig, rng: np.random.Generator, part: BatchPart
) -> Images:
    """The images with boxes erased: `recipe.erasing` is random erasing (Zhong et al. 2020), which
    puts noise in the place of 2 to 33 % of an image; `recipe.cutout` puts the mean colour in a
    square of that side (DeVries and Taylor 2017). Boxes are drawn for the global batch, of which
    `part` is this process's; the noise is each process's own."""
    n_images, size = part.n_images, images.shape[-1]
    if recipe.erasing:
        boxes = draw_erasing(recipe.erasing, n_images, size, rng)
        # The loop seeds torch by (seed, step, rank), so the noise is a pure function too.
        # Drawn in one order of the pixels, so that the layout does not change it.
        noise = torch.randn_like(images, memory_format=torch.channels_last)
        noise = noise.contiguous(memory_format=_layout(images))
        images = torch.where(_inside(boxes, images, part), noise, images)
    if recipe.cutout:
        boxes = draw_cutout(recipe.cutout, n_images, size, rng)
        images = torch.where(_inside(boxes, images, part), 0.0, images)
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


def _inside(boxes: Boxes, images: Images, part: BatchPart) -> Tensor:
    """Whether each pixel is in its image's box, `[batch, 1, height, width]`."""
    sides = (on_device(side[part.own], images.device)[:, None] for side in boxes)
    top, left, height, width = sides
    y = torch.arange(images.shape[2], device=images.device)
    x = torch.arange(images.shape[3], device=images.device)
    rows = (y >= top) & (y < top + height)
    columns = (x >= left) & (x < left + width)
    return rows[:, None, :, None] & columns[:, None, None, :]
