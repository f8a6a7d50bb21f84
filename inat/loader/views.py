"""Views of a photo at test time: crops, mirror images and sizes, all from one decode.

A spec is parts joined by +. Crops add up (`CROPS`; without one it is the center's). Then
scales:A,B gives each of them in each of these sizes, and flip the mirror image of each; ten-crop
is five-crop+flip.
"""

import dataclasses
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from itertools import groupby
from typing import Any, NamedTuple

import cv2
import numpy as np
from jaxtyping import UInt8
from torch import Tensor

from inat.core.errors import InputError, unknown_name
from inat.loader.transforms import EVAL_SPARE, Draw, EpochDraws, centre_crop, random_resized_crop
from inat.photos.decode import Box, Pixels

RANDOM_AREA = (0.35, 1.0)
"""Range of the share of a photo's area that a random view covers: smaller ones, such as training
crops, often miss the animal."""

RANDOM_RATIO = (3 / 4, 4 / 3)

PREFIX = "views_"
"""What a batch calls its views, before their size."""

MOST_VIEWS = 256
SMALLEST_SIZE = 8


@dataclass(frozen=True, kw_only=True)
class View:
    kind: str
    size: int  # side of the image, in pixels
    crop_pct: float | None = None  # side of the center's and corners' squares / short side
    flip: bool = False  # whether it is mirrored
    seed: int | None = None  # of a random crop; image id and `number` decide the rest
    number: int | None = None  # which random crop

    def facts(self) -> dict[str, Any]:
        """For meta.json; omits defaults."""
        return {
            field.name: value
            for field in dataclasses.fields(self)
            if (value := getattr(self, field.name)) is not None and value is not False
        }

    def box(self, height: int, width: int, image_id: int) -> Box:
        """In pixels of the upright photo."""
        crops = next(crops for crops in CROPS.values() if self.kind in crops.kinds)
        return crops.box(self, height, width, image_id)


def _square(view: View, height: int, width: int, image_id: int) -> Box:
    assert view.crop_pct is not None
    center = centre_crop(height, width, view.crop_pct)
    if view.kind == "centre":
        return center
    top = 0 if view.kind.startswith("top") else height - center.height
    left = 0 if view.kind.endswith("left") else width - center.width
    return center._replace(top=top, left=left)


def _random(view: View, height: int, width: int, image_id: int) -> Box:
    assert view.seed is not None and view.number is not None
    draw = _photo_draws(view.seed, image_id)[view.number]
    return random_resized_crop(height, width, draw, RANDOM_AREA, RANDOM_RATIO)


@lru_cache(maxsize=32)  # all views of the photos that threads are at share the drawing
def _photo_draws(seed: int, image_id: int) -> EpochDraws:
    return EpochDraws(seed, image_id)


class Crops(NamedTuple):
    """A part of a spec that adds crops; `CROPS` has them by name, and a new entry is a new part."""

    box: Callable[[View, int, int, int], Box]  # from (view, height, width, image id)
    kinds: tuple[str, ...]  # of the views that it adds
    example: str = ""  # with its number of drawn crops, where it takes one
    takes_pct: bool = False  # whether its crops depend on `crop_pct`


CORNERS = ("top_left", "top_right", "bottom_left", "bottom_right")
CROPS = {
    "centre": Crops(_square, ("centre",), takes_pct=True),
    "five-crop": Crops(_square, (*CORNERS, "centre"), takes_pct=True),
    # the whole photo, squeezed into the square
    "full": Crops(lambda view, height, width, image_id: Box(0, 0, height, width), ("full",)),
    "random": Crops(_random, ("random",), example="random:8"),  # seed:S draws others
}

EXAMPLES = {name: crops.example for name, crops in CROPS.items()} | {
    "ten-crop": "", "flip": "", "scales": "scales:224,256", "seed": "seed:1"
}  # fmt: skip
"""The parts of a spec, each with an example where it has numbers behind a colon."""


def parse_views(spec: str, *, size: int, crop_pct: float) -> tuple[View, ...]:
    """The views that a spec names (see the module), in the order of their sizes.

    `size` (pixels) holds where the spec has no scales; `crop_pct` is the side of the center's and
    the corners' square, as a share of the short side. Raises InputError at a bad spec.
    """
    parts = _split(spec)
    (seed,) = parts.get("seed", [0])
    crops: list[View] = []
    for name in [part for part in parts if part in CROPS] or ["centre"]:
        drawn = parts.get(name)
        for number in range(_refuse_too_many(spec, drawn[0])) if drawn else [None]:
            crops += [
                View(
                    kind=kind,
                    size=size,
                    crop_pct=crop_pct if CROPS[name].takes_pct else None,
                    seed=None if number is None else seed,
                    number=number,
                )
                for kind in CROPS[name].kinds
            ]
    flips = (False, True) if "flip" in parts else (False,)
    sizes = sorted(parts.get("scales", [size]))
    _refuse_too_many(spec, len(crops) * len(flips) * len(sizes))
    return tuple(
        replace(crop, size=side, flip=flip) for side in sizes for crop in crops for flip in flips
    )


def _split(spec: str) -> dict[str, list[int]]:
    parts: dict[str, list[int]] = {}
    for text in spec.replace("ten-crop", "five-crop+flip").split("+"):
        name, colon, numbers = text.strip().partition(":")
        if name not in EXAMPLES:
            raise InputError(unknown_name(f"views {spec!r}", name, EXAMPLES))
        if name in parts:
            raise InputError(f"views {spec!r}: {name} is given twice (ten-crop is five-crop+flip)")
        example = EXAMPLES[name]
        if bool(colon) != bool(example):
            wanted = f"numbers ({example})" if example else "no number"
            raise InputError(f"views {spec!r}: {name} takes {wanted}")
        parts[name] = _numbers(spec, name, numbers) if colon else []
    if "seed" in parts and "random" not in parts:
        raise InputError(f"views {spec!r}: seed is of random crops; add random:N")
    if "centre" in parts and "five-crop" in parts:
        raise InputError(f"views {spec!r}: five-crop has the center already; omit centre")
    return parts


def _numbers(spec: str, name: str, text: str) -> list[int]:
    words = [word.strip() for word in text.split(",")]
    least = {"scales": SMALLEST_SIZE, "seed": 0}.get(name, 1)
    if (
        not all(re.fullmatch(r"[0-9]{1,9}", word) and int(word) >= least for word in words)
        or len(set(words)) < len(words)
        or (len(words) > 1 and name != "scales")
    ):
        count = "different whole numbers" if name == "scales" else "one whole number"
        raise InputError(f"views {spec!r}: {name} takes {count} from {least} on, not {text!r}")
    return [int(word) for word in words]


def _refuse_too_many(spec: str, n_views: int) -> int:
    if n_views > MOST_VIEWS:
        raise InputError(f"views {spec!r}: {n_views} views are too many; at most {MOST_VIEWS}")
    return n_views


class ViewTransform:
    """All views of one photo, side by side in one run of bytes; a mirror image shares its view's
    resize."""

    spare = EVAL_SPARE

    def __init__(self, views: Sequence[View]) -> None:
        self.views = tuple(sorted(views, key=lambda view: view.size))  # in the order of their sizes
        # of a photo's place in a batch: the bytes of all its views
        self.shape: tuple[int, ...] = (sum(_n_bytes(view) for view in self.views),)
        self._crops = list(dict.fromkeys(replace(view, flip=False) for view in self.views))
        self.sizes = [crop.size for crop in self._crops]  # side of each crop, in pixels

    def boxes(self, height: int, width: int, draw: Draw, image_id: int) -> list[Box]:
        del draw  # a random view depends on its seed and the image id alone
        return [crop.box(height, width, image_id) for crop in self._crops]

    def write(self, crops: list[Pixels], draw: Draw, out: UInt8[np.ndarray, "bytes"]) -> None:
        del draw
        pixels_of = dict(zip(self._crops, crops, strict=True))
        begin = 0
        for view in self.views:
            image = out[begin : begin + _n_bytes(view)].reshape(view.size, view.size, 3)
            pixels = pixels_of[replace(view, flip=False)]
            image[:] = cv2.flip(pixels, 1) if view.flip else pixels
            begin += _n_bytes(view)

    def images(self, rows: UInt8[Tensor, "batch bytes"]) -> dict[str, Tensor]:
        """The images by name: `views_224` and so on, uint8 `[batch, views, size, size, 3]`."""
        images, begin = {}, 0
        for size, group in groupby(self.views, key=lambda view: view.size):
            shape = (len(list(group)), size, size, 3)
            end = begin + int(np.prod(shape))
            images[f"{PREFIX}{size}"] = rows[:, begin:end].view(len(rows), *shape)
            begin = end
        return images


def views_of(batch: Mapping[str, Tensor]) -> list[UInt8[Tensor, "batch views _ _ 3"]]:
    """The images of a batch with views, one tensor a size."""
    return [images for name, images in batch.items() if name.startswith(PREFIX)]


def _n_bytes(view: View) -> int:
    return view.size * view.size * 3
