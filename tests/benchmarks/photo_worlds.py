"""800 x 600 photos in the iNat layout, textured or smooth, as large in bytes as real ones."""

import shutil
import sys
from pathlib import Path
from typing import Literal

import cv2
import numpy as np
import orjson
import simplejpeg

sys.path.insert(0, str(Path(__file__).parents[1]))  # tests/worlds.py

from worlds import category

Texture = Literal["textured", "smooth"]

HEIGHT, WIDTH = 600, 800
N_FILES, N_ROWS, N_SPECIES = 192, 768, 16

# Octaves of noise as (size in pixels, strength), and the JPEG quality. Real iNat photos average
# 260 KB; the smooth ones have about 85.
OCTAVES = {
    "textured": (((200, 60), (60, 40), (16, 30), (5, 22), (2, 14), (1, 7)), 93),
    "smooth": (((200, 60), (60, 40), (16, 25), (6, 8), (2, 2)), 88),
}


def draw_photo(texture: Texture, seed: int) -> bytes:
    """A JPEG of noise in octaves, 4:2:0 as cameras write it."""
    rng = np.random.default_rng(seed)
    octaves, quality = OCTAVES[texture]
    pixels = np.full((HEIGHT, WIDTH, 3), 120, np.float32)
    for size, strength in octaves:
        shape = (HEIGHT // size + 2, WIDTH // size + 2, 3)
        noise = rng.normal(0, strength, shape).astype(np.float32)
        pixels += cv2.resize(noise, (WIDTH, HEIGHT), interpolation=cv2.INTER_CUBIC)
    content: bytes = simplejpeg.encode_jpeg(
        np.clip(pixels, 0, 255).astype(np.uint8), quality, colorsubsampling="420"
    )
    return content


def make_photo_world(root: Path, texture: Texture) -> Path:
    """A train split whose every row has a file of its own; the photos repeat after `N_FILES`."""
    images, annotations = [], []
    for row in range(N_ROWS):
        label = row % N_SPECIES
        name = f"train_val2018/Species/{label:02d}/{row}.jpg"
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if row < N_FILES:
            path.write_bytes(draw_photo(texture, row))
        else:
            shutil.copyfile(root / images[row - N_FILES]["file_name"], path)
        images.append({"id": row, "file_name": name, "height": HEIGHT, "width": WIDTH})
        category_id = category(label)["id"]
        annotations.append({"id": row, "image_id": row, "category_id": category_id})
    document = {
        "images": images,
        "annotations": annotations,
        "categories": [category(label) for label in range(N_SPECIES)],
    }
    (root / "train2018.json").write_bytes(orjson.dumps(document))
    return root


def mean_kilobytes(root: Path) -> float:
    """Mean size of the photos."""
    sizes = [path.stat().st_size for path in root.rglob("*.jpg")]
    return float(np.mean(sizes)) / 1000
