"""Photo operations by a policy: RandAugment, and AutoAugment's for CIFAR-10.

The operations are torchvision's, on Pillow images: they work in the calling thread alone. What is
drawn comes from the generator that is handed in.
"""

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torchvision.transforms.functional as functional
from PIL import Image

from inat.config.schema import TransformConfig
from inat.photos.decode import Pixels

GREY = (124, 116, 104)
"""What fills the corners of a turned photo: ImageNet's mean colour."""

LEVELS = 10
"""Steps of AutoAugment's magnitudes, 0..9."""

STRONGEST = 30.0
"""The largest magnitude of RandAugment."""

Operation = Callable[[Image.Image, float], Image.Image]


FILLED: dict[str, Any] = {
    "interpolation": functional.InterpolationMode.BILINEAR,
    "fill": list(GREY),
}


def _moved(image: Image.Image, x: float, y: float) -> Image.Image:
    translate = [int(x * image.width), int(y * image.height)]
    return functional.affine(image, angle=0, translate=translate, scale=1, shear=[0, 0], **FILLED)


def _sheared(image: Image.Image, x: float, y: float) -> Image.Image:
    shear = [math.degrees(math.atan(x)), math.degrees(math.atan(y))]
    return functional.affine(
        image, angle=0, translate=[0, 0], scale=1, shear=shear, center=[0, 0], **FILLED
    )


class Kind(NamedTuple):
    apply: Operation  # takes the photo and a strength
    strongest: float = 0.0  # the strength at full magnitude
    none: float = 0.0  # the strength that changes nothing; magnitudes go from it to `strongest`
    is_signed: bool = False  # whether either sign is as likely

    def strength(self, magnitude: float, negative: bool) -> float:
        way = -magnitude if self.is_signed and negative else magnitude
        return self.none + way * (self.strongest - self.none)


# The ranges are those of AutoAugment (Cubuk et al. 2019, table 6).
KINDS = {
    "ShearX": Kind(lambda image, v: _sheared(image, v, 0), 0.3, is_signed=True),
    "ShearY": Kind(lambda image, v: _sheared(image, 0, v), 0.3, is_signed=True),
    "TranslateX": Kind(lambda image, v: _moved(image, v, 0), 150 / 331, is_signed=True),
    "TranslateY": Kind(lambda image, v: _moved(image, 0, v), 150 / 331, is_signed=True),
    "Rotate": Kind(lambda image, v: functional.rotate(image, v, **FILLED), 30.0, is_signed=True),
    "Brightness": Kind(functional.adjust_brightness, 1.9, 1.0, is_signed=True),
    "Color": Kind(functional.adjust_saturation, 1.9, 1.0, is_signed=True),
    "Contrast": Kind(functional.adjust_contrast, 1.9, 1.0, is_signed=True),
    "Sharpness": Kind(functional.adjust_sharpness, 1.9, 1.0, is_signed=True),
    "Posterize": Kind(lambda image, v: functional.posterize(image, round(v)), 4.0, 8.0),
    "Solarize": Kind(lambda image, v: functional.solarize(image, round(v)), 0.0, 256.0),
    "AutoContrast": Kind(lambda image, _: functional.autocontrast(image)),
    "Equalize": Kind(lambda image, _: functional.equalize(image)),
    "Invert": Kind(lambda image, _: functional.invert(image)),
    "Identity": Kind(lambda image, _: image),
}

# RandAugment (Cubuk et al. 2020, section 3.1): these, drawn evenly.
RAND_AUGMENT = tuple(sorted(KINDS.keys() - {"Invert"}))

# AutoAugment for CIFAR-10 (Cubuk et al. 2019, table 7): operation, probability, magnitude, twice.
CIFAR10 = (
    (("Invert", 0.1, 7), ("Contrast", 0.2, 6)),
    (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
    (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
    (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.5, 8), ("Equalize", 0.9, 2)),
    (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
    (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
    (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
    (("Equalize", 0.6, 5), ("Equalize", 0.5, 1)),
    (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
    (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
    (("Equalize", 0.3, 7), ("AutoContrast", 0.4, 8)),
    (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
    (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
    (("Solarize", 0.5, 2), ("Invert", 0.0, 3)),
    (("Equalize", 0.2, 0), ("AutoContrast", 0.6, 0)),
    (("Equalize", 0.2, 8), ("Equalize", 0.6, 4)),
    (("Color", 0.9, 9), ("Equalize", 0.6, 6)),
    (("AutoContrast", 0.8, 4), ("Solarize", 0.2, 8)),
    (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
    (("Solarize", 0.4, 5), ("AutoContrast", 0.9, 3)),
    (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
    (("AutoContrast", 0.9, 2), ("Solarize", 0.8, 3)),
    (("Equalize", 0.8, 8), ("Invert", 0.1, 3)),
    (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, 1)),
)


class Step(NamedTuple):
    name: str
    strength: float


def draw_steps(recipe: TransformConfig, rng: np.random.Generator) -> list[Step]:
    if recipe.policy == "rand_augment":
        names = [
            RAND_AUGMENT[i] for i in rng.integers(len(RAND_AUGMENT), size=recipe.policy_operations)
        ]
        return [_step(name, recipe.policy_magnitude / STRONGEST, rng) for name in names]
    if recipe.policy == "cifar10":
        chosen = CIFAR10[rng.integers(len(CIFAR10))]
        used = rng.random(len(chosen))
        return [
            _step(name, level / (LEVELS - 1), rng)
            for (name, probability, level), u in zip(chosen, used, strict=True)
            if u < probability
        ]
    return []


def _step(name: str, magnitude: float, rng: np.random.Generator) -> Step:
    return Step(name, KINDS[name].strength(magnitude, bool(rng.random() < 0.5)))


def apply_steps(pixels: Pixels, steps: list[Step]) -> Pixels:
    if not steps:
        return pixels
    image = Image.fromarray(pixels)
    for name, strength in steps:
        image = KINDS[name].apply(image, strength)
    return np.array(image)
