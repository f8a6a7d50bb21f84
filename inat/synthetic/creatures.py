"""Invented creatures and their photos: traits in, JPEG bytes out.

A creature is a handful of lobes (wings, petals, fins), all cut from one patterned skin. What a
species looks like is a row of traits; what a photo adds (pose, light, background, leaves in
front, blur, noise) comes from random streams that never see the species.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg  # type: ignore[import-untyped,unused-ignore]

Floats = npt.NDArray[np.floating[Any]]
Pixels = npt.NDArray[np.uint8]
Look = dict[str, float]

PLANS = ("winged", "radial", "finned")

# What differs between species: name -> the value at latent -inf and +inf. Colours are CIE Lab;
# lengths are shares of the canvas' half side. Every plan reads the traits in its own way.
TRAITS: dict[str, tuple[float, float]] = {
    "base_l": (20.0, 88.0),
    "base_a": (-32.0, 42.0),
    "base_b": (-34.0, 62.0),
    "second_l": (12.0, 95.0),
    "second_a": (-32.0, 42.0),
    "second_b": (-34.0, 62.0),
    "spot_l": (8.0, 95.0),
    "spot_a": (-35.0, 48.0),
    "spot_b": (-38.0, 65.0),
    "lobe_length": (0.50, 0.92),
    "lobe_width": (0.26, 0.66),
    "lobe_skew": (0.55, 1.9),
    "lobe_blunt": (0.45, 1.25),
    "lobe_angle": (-26.0, 26.0),
    "second_lobe": (0.45, 1.02),
    "lobe_count": (3.6, 11.4),
    "scallop_depth": (-0.05, 0.24),
    "scallop_count": (2.0, 8.0),
    "body_length": (0.30, 0.66),
    "body_width": (0.08, 0.22),
    "feeler_length": (0.10, 0.55),
    "tail_length": (-0.15, 0.45),
    "stripe_count": (0.6, 7.5),
    "stripe_share": (0.15, 0.85),
    "stripe_angle": (-75.0, 75.0),
    "stripe_phase": (0.0, 1.0),
    "stripe_contrast": (-0.2, 1.1),
    "stripe_wave": (0.0, 0.16),
    "spot_count": (-0.8, 4.8),
    "spot_size": (0.05, 0.21),
    "spot_along": (0.30, 0.80),
    "spot_across": (-0.45, 0.45),
    "spot_ring": (0.0, 0.75),
    "margin_width": (-0.03, 0.13),
    "vein_contrast": (0.0, 0.35),
}
TRAIT_NAMES = tuple(TRAITS)
_LOW, _HIGH = np.array(list(TRAITS.values())).T

# Random streams of a photo.
_FRAME, _BACKGROUND, _INDIVIDUAL, _POSE, _FRONT, _LIGHT, _CAMERA = range(101, 108)

# Two creatures of a species differ by this much in latent units (siblings: about 0.5).
INDIVIDUAL_SPREAD = 0.16

# Where a blade's and a lobe's edge has its corners, root to tip.
_ALONG_BLADE = np.linspace(0, 1, 16)[:, None]
_ALONG_LOBE = np.linspace(0, 1, 36)

_SIDES = ((4, 3), (4, 3), (3, 2), (3, 4), (1, 1))  # width : height of the photos, as cameras do


class Size(NamedTuple):
    width: int
    height: int


@dataclass(frozen=True)
class Creature:
    """A species to draw: its body plan and its latent traits, one number for each of TRAITS."""

    plan: str
    latent: Floats


def trait_values(latent: Floats) -> Floats:
    """Latent traits `[..., T]`, any real numbers, as values inside the ranges of TRAITS."""
    return _LOW + (_HIGH - _LOW) / (1.0 + np.exp(-latent))


def photo_size(seed: int, index: int, longest_side: int) -> Size:
    """Width and height of photo `index`, known without rendering it."""
    across, down = _SIDES[stream(seed, _FRAME, index).integers(len(_SIDES))]
    scale = longest_side / max(across, down)
    return Size(round(across * scale), round(down * scale))


def render_jpeg(creature: Creature, seed: int, index: int, longest_side: int) -> bytes:
    """Photo `index` of a creature as JPEG bytes, the same on every call."""
    photo = render(creature, seed, index, longest_side)
    quality = int(stream(seed, _CAMERA, index).integers(72, 94))
    return bytes(
        simplejpeg.encode_jpeg(photo, quality=quality, colorspace="BGR", colorsubsampling="420")
    )


def render(creature: Creature, seed: int, index: int, longest_side: int) -> Pixels:
    """Photo `index` of a creature as BGR pixels `[height, width, 3]`."""
    size = photo_size(seed, index, longest_side)
    photo = background(seed, index, size)
    canvas, alpha = _draw(creature, seed, index, side=longest_side * 3 // 4)
    photo = _place(photo, canvas, alpha, stream(seed, _POSE, index, 1))
    rng = stream(seed, _FRONT, index)
    n_blades = int(rng.choice([0, 0, 1, 2, 3]))  # of grass and leaves, in front of the creature
    for tone in _to_bgr(rng.uniform((20, -22, 5), (75, 8, 38), (n_blades, 3))):
        _blade(photo, rng, tone, wide=float(rng.uniform(0.015, 0.07)))
    rng = stream(seed, _LIGHT, index)
    # Brightness, color cast and a gradient across the photo.
    gain = np.exp(rng.normal(0, 0.2) + rng.normal(0, 0.07, 3))
    field = (gain * np.exp(rng.normal(0, 0.12, (2, 2, 1)))).astype(np.float32)
    lit = cv2.multiply(photo, cv2.resize(field, tuple(size)), dtype=cv2.CV_8U)
    photo = np.asarray(lit, dtype=np.uint8)
    return _take(photo, stream(seed, _CAMERA, index, 1))


def stream(seed: int, *path: int) -> np.random.Generator:
    """The random numbers of one purpose: a change to one leaves the others' draws alone."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, *path])))


# --- background: sees the photo's index, never the species ---------------------------------

_PALETTES = np.array(  # Lab of the dark, middle and light tones
    [
        [[22, -12, 16], [42, -20, 28], [66, -18, 38]],  # leaves
        [[18, 4, 8], [38, 8, 16], [60, 6, 20]],  # bark
        [[48, 3, 14], [66, 4, 20], [82, 2, 18]],  # sand
        [[60, -4, -22], [74, -4, -14], [92, -1, -4]],  # sky
        [[28, 0, -2], [52, 0, 2], [76, 0, 4]],  # stone
        [[26, 8, 20], [46, 14, 30], [64, 8, 36]],  # litter
        [[30, -14, -6], [48, -14, -10], [70, -8, -8]],  # water
    ],
    dtype=np.float32,
)


def background(seed: int, index: int, size: Size) -> Pixels:
    """What photo `index` shows behind the creature, BGR `[height, width, 3]`."""
    rng = stream(seed, _BACKGROUND, index)
    tones = _PALETTES[rng.integers(len(_PALETTES))] + rng.normal(0, 6, (1, 3)).astype(np.float32)
    # Noise of several octaves, from blotches down to pixels.
    stretch = float(rng.choice([1.0, 1.0, 3.0, 0.3]))
    total = np.zeros((size.height, size.width), dtype=np.float32)
    fall = float(rng.uniform(0.45, 0.9))
    weight, cells = 1.0, 3.0
    while cells < max(size) / 2:
        shape = (max(2, round(cells * stretch)), max(2, round(cells / stretch)))
        shape = (min(shape[0], size.height), min(shape[1], size.width))
        octave = rng.random(shape, dtype=np.float32) - 0.5
        total += weight * cv2.resize(octave, tuple(size), interpolation=cv2.INTER_LINEAR)
        weight, cells = weight * fall, cells * 2.6
    spread = float(rng.uniform(40, 85)) / max(float(total.std()), 1e-6)
    relief = np.clip(total * spread + 128, 0, 255).astype(np.uint8)
    steps = np.linspace(0, 2, 256)
    colors = np.stack([np.interp(steps, (0, 1, 2), tones[:, k]) for k in range(3)], axis=-1)
    photo = cv2.applyColorMap(relief, _to_bgr(colors).reshape(256, 1, 3))
    n_blades = int(rng.integers(0, 9))
    blades = tones[rng.integers(3, size=n_blades)] + rng.normal(0, 9, (n_blades, 3))
    for tone in _to_bgr(blades):
        _blade(photo, rng, tone, wide=float(rng.uniform(0.01, 0.10)))
    if rng.random() < 0.6:  # out of focus, as behind a near subject
        # Two box blurs look like a Gaussian and cost the same at any width.
        reach = (2 * round(float(rng.uniform(0.4, 5.0)) * max(size) / 256) + 1,) * 2
        photo = cv2.blur(cv2.blur(photo, reach), reach)
    return np.asarray(photo, dtype=np.uint8)


def _blade(photo: Any, rng: np.random.Generator, tone: Any, wide: float) -> None:
    """A blade of grass, twig or leaf: a bent lobe from one place to another."""
    height, width = photo.shape[:2]
    start, end = rng.uniform(-0.2, 1.2, (2, 2)) * (width, height)
    along = _ALONG_BLADE
    across = np.array([[-(end - start)[1], (end - start)[0]]])
    spine = start + (end - start) * along + across * (rng.uniform(-0.3, 0.3) * along * (1 - along))
    normal = across / max(float(np.linalg.norm(across)), 1.0)
    half = normal * (wide * max(width, height) * 0.5 * np.sin(np.pi * along**0.7) ** 0.6 + 0.5)
    _fill(photo, np.concatenate([spine + half, (spine - half)[::-1]]), tone)
    _line(photo, spine, tone * 0.8, 1)


# --- the creature on its canvas --------------------------------------------------------------


class Lobe(NamedTuple):
    """A wing, petal, fin or body: an outline, and the frame that lays the skin over it."""

    root: tuple[float, float]
    angle: float  # degrees clockwise from up
    length: float
    width: float
    skew: float = 1.0  # below 1 widest near the root, above 1 near the tip
    blunt: float = 1.0  # small: a paddle; large: a blade
    scallop: float = 0.0
    scallop_count: float = 0.0


def _draw(creature: Creature, seed: int, index: int, side: int) -> tuple[Pixels, Pixels]:
    """One individual, head up: BGR and alpha, both `side` pixels square."""
    rng = stream(seed, _INDIVIDUAL, index)
    latent = creature.latent + rng.normal(0, INDIVIDUAL_SPREAD, len(TRAITS))
    look = dict(zip(TRAIT_NAMES, trait_values(latent).tolist(), strict=True))
    lab = [[look[f"{name}_{axis}"] for axis in "lab"] for name in Tones._fields]
    tones = Tones(*_to_bgr(np.array(lab)).astype(np.float32))
    skin = _skin(look, tones, rng, side)
    canvas = np.empty((side, side, 3), dtype=np.uint8)
    canvas[:] = tones.base
    alpha = np.zeros((side, side), dtype=np.uint8)
    for lobe in _PLANS[creature.plan](look, float(stream(seed, _POSE, index).normal(0, 7))):
        _paint_lobe(canvas, alpha, skin, lobe, look, tones)
    _paint_body(canvas, alpha, creature.plan, look, tones)
    return canvas, alpha


class Tones(NamedTuple):
    """A creature's colours, BGR 0..255 `[3]` each."""

    base: Floats
    second: Floats
    spot: Floats


def _skin(look: Look, tones: Tones, rng: np.random.Generator, side: int) -> Pixels:
    """The pattern of one lobe, root left and tip right: BGR `[side / 4, side / 2, 3]`."""
    height, width = side // 4, side // 2
    u = np.linspace(0, 1, width, dtype=np.float32)[None]
    v = np.linspace(-1, 1, height, dtype=np.float32)[:, None]
    skin = np.empty((height, width, 3), dtype=np.float32)
    skin[:] = tones.base
    # How much of the second color shows, 0..1: the stripes.
    turn = np.deg2rad(look["stripe_angle"])
    along = u * np.cos(turn) + 0.5 * v * np.sin(turn) + look["stripe_wave"] * np.sin(7 * v)
    wave = np.cos(2 * np.pi * (look["stripe_count"] * along + look["stripe_phase"]))
    share = np.clip((wave - np.cos(np.pi * look["stripe_share"])) * 2.5 + 0.5, 0, 1)
    share = share * np.float32(np.clip(look["stripe_contrast"], 0, 1))
    skin += share[..., None] * (tones.second - tones.base)
    skin *= (0.86 + 0.22 * u - 0.10 * v**2)[..., None]
    grain = rng.normal(1, 0.09, (height // 2, width // 2)).astype(np.float32)
    skin *= cv2.resize(grain, (width, height))[..., None]
    painted = np.clip(skin, 0, 255).astype(np.uint8)
    count = look["spot_count"]
    for k in range(int(np.ceil(max(count, 0.0)))):
        # The last spot grows with the trait, so that no count is a cliff.
        radius = look["spot_size"] * min(1.0, count - k) * height * 0.9
        along = look["spot_along"] - 0.19 * k * (-1) ** k
        across = 0.5 + 0.5 * look["spot_across"] * (-1) ** k
        center = (along * width, across * height)
        _disc(painted, center, radius, tones.spot)
        _disc(painted, center, radius * look["spot_ring"], tones.second)
    if look["vein_contrast"] >= 0.05:
        vein = tones.base * (1 - look["vein_contrast"])
        for end in (0.1, 0.3, 0.5, 0.7, 0.9):
            _line(painted, np.array([[0, 0.5 * height], [width, end * height]]), vein, 1)
    return painted


def _winged(look: Look, opening: float) -> Iterator[Lobe]:
    length, width = look["lobe_length"], look["lobe_width"]
    shape = (look["lobe_skew"], look["lobe_blunt"])
    waves = (look["scallop_depth"], look["scallop_count"])
    hind = look["second_lobe"]
    for side in (1, -1):
        angle = side * (122 + 0.5 * look["lobe_angle"] + 0.6 * opening)
        yield Lobe((0.04 * side, 0.05), angle, length * hind, side * width * hind, *shape, *waves)
        tail = look["tail_length"]
        if tail > 0.02:
            yield Lobe((0.05 * side, 0.2), side * (164 + opening), 0.45 + tail, side * 0.09)
    for side in (1, -1):
        angle = side * (68 + look["lobe_angle"] + opening)
        yield Lobe((0.04 * side, -0.1), angle, length, side * width, *shape, *waves)


def _radial(look: Look, opening: float) -> Iterator[Lobe]:
    count = max(4, round(look["lobe_count"]))
    width = look["lobe_width"] * 5.2 / count * (0.55 + 0.5 * look["second_lobe"])
    length = look["lobe_length"] * (1 + opening / 60)
    shape = (look["lobe_skew"] * 1.1, look["lobe_blunt"])
    waves = (look["scallop_depth"], look["scallop_count"])
    for k in range(count):
        yield Lobe((0.0, 0.0), 360 * k / count, length, width, *shape, *waves)


def _finned(look: Look, opening: float) -> Iterator[Lobe]:
    width = look["lobe_width"] * 0.95
    fin = look["second_lobe"] * 0.52
    waves = (look["scallop_depth"], look["scallop_count"])
    spread = 22 + 12 * look["tail_length"] + 0.4 * opening
    for side in (1, -1):
        length = 0.28 + fin * 0.5 + 0.3 * max(look["tail_length"], 0)
        yield Lobe((0.0, 0.5), 180 - side * spread, length, side * 0.2, 1.3, 0.8)
        angle = side * (112 + look["lobe_angle"] + opening)
        yield Lobe((side * width * 0.3, -0.2), angle, fin, side * 0.3, 1.0, 0.8, *waves)
    yield _fish(look)


def _fish(look: Look) -> Lobe:
    width, length = look["lobe_width"] * 0.95, look["lobe_length"] + 0.75
    shape = (look["lobe_skew"] * 0.8, look["lobe_blunt"] * 0.9)
    return Lobe((0.0, -0.88), 180, length, width, *shape)


_PLANS = {"winged": _winged, "radial": _radial, "finned": _finned}


def _outline(lobe: Lobe) -> Floats:
    """The lobe's edge in its own frame, `[points, (along 0..1, across -1..1)]`."""
    u = _ALONG_LOBE
    half = _half_width(lobe, u)
    waves = max(lobe.scallop, 0.0) * np.cos(2 * np.pi * lobe.scallop_count * u) * half
    return np.concatenate([np.stack([u, half], 1), np.stack([u, -half - waves], 1)[-2:0:-1]])


def _half_width(lobe: Lobe, u: Any) -> Any:
    """How far the edge is from the midrib at `u` along it, as a share of the widest."""
    return np.sin(np.pi * u**lobe.skew) ** lobe.blunt


def _frame(lobe: Lobe, side: int) -> Floats:
    """The affine map `[2, 3]` from the lobe's frame to canvas pixels."""
    turn = np.deg2rad(lobe.angle)
    along = np.array([np.sin(turn), -np.cos(turn)]) * lobe.length
    across = np.array([np.cos(turn), np.sin(turn)]) * (lobe.width / 2)
    frame: Floats = np.stack([along, across, np.array(lobe.root)], axis=1) * (side * 0.48)
    frame[:, 2] += side / 2
    return frame


def _paint_lobe(
    canvas: Any, alpha: Any, skin: Pixels, lobe: Lobe, look: Look, tones: Tones
) -> None:
    side = len(canvas)
    frame = _frame(lobe, side)
    outline = _outline(lobe) @ frame[:, :2].T + frame[:, 2]
    # Only the box around the lobe is touched: five times faster than the whole canvas.
    low = np.clip(np.floor(outline.min(0)) - 2, 0, side - 1).astype(int)
    high = np.clip(np.ceil(outline.max(0)) + 3, 1, side).astype(int)
    box = (slice(low[1], high[1]), slice(low[0], high[0]))
    frame[:, 2] -= low
    outline = outline - low
    height, width = skin.shape[:2]
    from_skin = np.array([[1 / width, 0, 0], [0, 2 / height, -1], [0, 0, 1]])
    size, edge = tuple((high - low).tolist()), cv2.BORDER_REPLICATE
    laid: Any = cv2.warpAffine(
        skin, frame @ from_skin, size, flags=cv2.INTER_LINEAR, borderMode=edge
    )
    mask = np.zeros(laid.shape[:2], dtype=np.uint8)
    _fill(mask, outline, _WHITE)
    margin = look["margin_width"] * side * 0.48
    if margin > 0.5:
        _line(laid, outline, tones.second * 0.75, round(2 * margin), closed=True)
    _line(laid, outline, tones.base * 0.45, max(1, side // 100), closed=True)
    cv2.copyTo(laid, mask, canvas[box])
    cv2.max(alpha[box], mask, alpha[box])


def _paint_body(canvas: Any, alpha: Any, plan: str, look: Look, tones: Tones) -> None:
    dark = tones.base * 0.55
    if plan == "finned":
        fish = _fish(look)
        half = float(_half_width(fish, 0.17)) * fish.width / 2
        for x in (-0.55 * half, 0.55 * half):
            place = (x, fish.root[1] + 0.17 * fish.length)
            _paint_disc(canvas, alpha, place, min(0.055, 0.3 * half), np.full(3, 18.0))
        return
    if plan == "radial":
        _paint_disc(canvas, alpha, (0, 0), 1.1 * look["body_width"], tones.spot)
        _paint_disc(canvas, alpha, (0, 0), 0.7 * look["feeler_length"] * 0.3, dark)
        return
    for turn in (-1, 1):
        reach = -0.25 - look["body_length"] * 0.5 - 0.6 * look["feeler_length"]
        tip = np.array([turn * 0.3, reach])
        spine = np.array([[0.0, -0.25 - look["body_length"] * 0.3], tip * (0.6, 0.9), tip])
        for target, tone in ((canvas, dark), (alpha, _WHITE)):
            _line(target, _pixels(spine, len(canvas)), tone, max(1, len(canvas) // 90))
    trunk = Lobe((0, -0.45), 180, 0.35 + look["body_length"], look["body_width"] * 1.5, 0.8, 0.6)
    frame = _frame(trunk, len(canvas))
    outline = _outline(trunk) @ frame[:, :2].T + frame[:, 2]
    _fill(canvas, outline, dark)
    _fill(alpha, outline, _WHITE)
    _paint_disc(canvas, alpha, (0, -0.45), look["body_width"] * 0.6, dark * 0.8)


def _paint_disc(
    canvas: Any, alpha: Any, center: tuple[float, float], radius: float, tone: Floats
) -> None:
    side = len(canvas)
    x, y = _pixels(np.array([center], np.float64), side)[0]
    _disc(canvas, (x, y), radius * side * 0.48, tone)
    _disc(alpha, (x, y), radius * side * 0.48, _WHITE)


# --- the photo -------------------------------------------------------------------------------


def _place(photo: Pixels, canvas: Pixels, alpha: Pixels, rng: np.random.Generator) -> Pixels:
    """The creature on the background, turned, foreshortened, mirrored, with its shadow."""
    height, width = photo.shape[:2]
    # The homography from the canvas into the photo.
    reach, side = min(width, height) * float(rng.uniform(0.62, 1.12)) / 2, len(canvas)
    corners = np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])
    corners *= (rng.choice([-1.0, 1.0]), 1.0)
    corners = corners @ _turn(rng.normal(0, 0.7)).T
    tilt = rng.uniform(0, np.pi)
    squeeze = np.diag([float(rng.uniform(0.7, 1.0)), 1.0])
    corners = corners @ _turn(tilt) @ squeeze @ _turn(-tilt)
    corners += rng.normal(0, 0.04, (4, 2))
    center = np.array([width, height]) * (0.5 + rng.normal(0, 0.07, 2))
    source = np.array([[0, 0], [side, 0], [side, side], [0, side]], dtype=np.float32)
    pose = cv2.getPerspectiveTransform(source, (center + corners * reach).astype(np.float32))
    seen = cv2.warpPerspective(canvas, pose, (width, height), borderMode=cv2.BORDER_REPLICATE)
    cut = cv2.warpPerspective(alpha, pose, (width, height))
    shift = rng.uniform(-0.04, 0.04, 2) * max(width, height)
    move = np.array([[1, 0, shift[0]], [0, 1, shift[1]]])
    shadow = cv2.warpAffine(cut, move, (width, height))
    shadow = cv2.blur(shadow, (max(3, width // 40),) * 2)
    clear = 255 - cut
    left = cv2.convertScaleAbs(shadow, alpha=-float(rng.uniform(0.1, 0.6)), beta=255)
    behind = _times(photo, cv2.multiply(left, clear, scale=1 / 255))
    return np.asarray(cv2.add(behind, _times(seen, cut)), dtype=np.uint8)


def _times(photo: Any, share: Any) -> Any:
    """Pixels times a share 0..255 of them."""
    return cv2.multiply(photo, cv2.cvtColor(share, cv2.COLOR_GRAY2BGR), scale=1 / 255)


def _turn(radians: float) -> Floats:
    c, s = np.cos(radians), np.sin(radians)
    return np.array([[c, -s], [s, c]])


def _take(photo: Pixels, rng: np.random.Generator) -> Pixels:
    """Focus, motion and sensor noise."""
    # Blur grows more slowly than the photo: large photos are the sharper ones.
    unit = (max(photo.shape) / 256) ** 0.5
    seen: Any = cv2.GaussianBlur(photo, (0, 0), float(rng.uniform(0.25, 1.1)) * unit)
    if rng.random() < 0.15:
        length = round(7 * unit)
        length += 1 - length % 2
        kernel = np.zeros((length, length), dtype=np.float32)
        reach = _turn(rng.uniform(0, np.pi))[0] * float(rng.uniform(0.2, 0.5)) * length
        ends = np.array([length / 2 - reach, length / 2 + reach])
        _line(kernel, ends, np.array([1.0]), 1)
        seen = cv2.filter2D(seen, -1, kernel / max(float(kernel.sum()), 1e-6))
    noise = rng.integers(0, 256, photo.shape, dtype=np.uint8)
    strength = float(rng.uniform(0.01, 0.10)) * unit
    return np.asarray(cv2.addWeighted(seen, 1.0, noise, strength, -127.5 * strength))


# --- colours and strokes ---------------------------------------------------------------------

_WHITE = np.array([255.0])
_SUBPIXEL = 4  # bits: OpenCV draws at 1/16 of a pixel


def _to_bgr(lab: Floats) -> Pixels:
    """CIE Lab `[n, 3]` as BGR 0..255 `[n, 3]`."""
    if len(lab) == 0:
        return np.empty((0, 3), dtype=np.uint8)
    inside = np.clip(lab, (0, -100, -100), (100, 100, 100)).astype(np.float32)
    bgr = cv2.cvtColor(inside[None], cv2.COLOR_Lab2BGR)
    return (np.clip(bgr, 0, 1) * 255).round().astype(np.uint8)[0]


def _pixels(points: Floats, side: int) -> Floats:
    """Canvas units `[points, 2]`, -1..1, as pixels."""
    return points * (side * 0.48) + side / 2


def _fixed(points: Floats) -> npt.NDArray[np.int32]:
    return np.round(points * (1 << _SUBPIXEL)).astype(np.int32)


def _fill(image: Any, outline: Floats, tone: npt.NDArray[Any]) -> None:
    cv2.fillPoly(image, [_fixed(outline)], tone.tolist(), cv2.LINE_AA, _SUBPIXEL)


def _line(image: Any, points: Floats, tone: Floats, wide: int, *, closed: bool = False) -> None:
    cv2.polylines(image, [_fixed(points)], closed, tone.tolist(), wide, cv2.LINE_AA, _SUBPIXEL)


def _disc(image: Any, center: tuple[float, float], radius: float, tone: Floats) -> None:
    if radius < 0.5:
        return
    x, y = _fixed(np.array(center)).tolist()
    reach = round(radius * (1 << _SUBPIXEL))
    cv2.circle(image, (x, y), reach, tone.tolist(), -1, cv2.LINE_AA, _SUBPIXEL)
