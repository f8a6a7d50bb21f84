"""Tiny data sets in the iNat-2018 layout, written in a moment."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import simplejpeg

TOP_RANKS = {
    "Animalia": ("Animalia", "Chordata", "Aves", "Passeriformes", "Prunellidae"),
    "Plantae": ("Plantae", "Tracheophyta", "Magnoliopsida", "Lamiales", "Lamiaceae"),
}


def make_world(
    root: Path,
    counts: Sequence[int] = (30, 8, 3, 2),
    n_val: int = 3,
    n_test: int = 2,
    size: tuple[int, int] = (48, 64),
    seed: int = 0,
    *,
    alike: bool = False,
) -> Path:
    """Writes train, val and test annotations, solution.csv and photos; gives `root`.

    Category ids are 2, 10, 28, 56, 94, ... (`category_id`) and stand in the files in another
    order, as do images and annotations; image ids have gaps. Each species has its own colour.

    Args:
        root: folder to write; made if it is not there.
        counts: training photos of each label.
        n_val: val photos of each species.
        n_test: test photos of each species; every other one is Public.
        size: height and width of the photos, in pixels.
        seed: of the pixels, ids and orders.
        alike: whether all species look the same, so that nothing but their prior tells them apart.
    """
    rng = np.random.default_rng(seed)
    # One list for all splits: image ids are unique in the whole data set.
    n_photos = sum(counts) + (n_val + n_test) * len(counts)
    ids = iter(rng.permutation(np.cumsum(rng.integers(1, 5, n_photos))).tolist())
    per_split = {"train": counts, "val": [n_val] * len(counts), "test": [n_test] * len(counts)}
    for split, n_of in per_split.items():
        images, annotations = [], []
        for label in rng.permutation(np.repeat(np.arange(len(n_of)), n_of)).tolist():
            image_id = next(ids)
            folder = "test2018" if split == "test" else f"train_val2018/{_group(label)[0]}"
            file_name = f"{folder}/{image_id}.jpg"
            write_photo(root / file_name, 0 if alike else label, size, rng)
            images.append(
                {"id": image_id, "file_name": file_name, "height": size[0], "width": size[1]}
            )
            annotations.append(
                {"id": image_id, "image_id": image_id, "category_id": category_id(label)}
            )
        if split == "test":
            _write_solution(root / "solution.csv", annotations)
            document: dict[str, Any] = {"images": images}
        else:
            document = {
                "images": images,
                "annotations": [annotations[i] for i in rng.permutation(len(annotations))],
                "categories": [category(label) for label in rng.permutation(len(counts)).tolist()],
            }
        (root / f"{split}2018.json").write_bytes(orjson.dumps(document))
    return root


def category_id(label: int) -> int:
    """2, 10, 28, 56, ...: in numeric order, and not in the order of their digits."""
    return 2 + 8 * label + 5 * label * (label - 1)


def category(label: int) -> dict[str, Any]:
    """A species; two share a genus, and the first bird and the first plant genus are homonyms."""
    kingdom, genus = _group(label)
    ranks = dict(zip(("kingdom", "phylum", "class", "order", "family"), TOP_RANKS[kingdom],
                     strict=True))  # fmt: skip
    return {
        "id": category_id(label),
        "name": f"{genus} species{label}",
        "supercategory": kingdom,
        **ranks,
        "genus": genus,
    }


def write_photo(path: Path, label: int, size: tuple[int, int], rng: np.random.Generator) -> None:
    """Writes a JPEG with a gradient in the species' colour and some noise."""
    height, width = size
    colour = np.array([90 + 53 * label, 200 - 71 * label, 60 + 97 * label]) % 200 + 30
    light = np.linspace(0.5, 1, height)[:, None, None] * np.linspace(0.7, 1, width)[:, None]
    pixels = colour * light + rng.normal(0, 8, (height, width, 3))
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(simplejpeg.encode_jpeg(np.clip(pixels, 0, 255).astype(np.uint8), 92))


def _group(label: int) -> tuple[str, str]:
    """Kingdom and genus of a species."""
    group = label // 2
    kingdom = "Animalia" if group % 2 == 0 else "Plantae"
    return kingdom, "Prunella" if group < 2 else f"Genus{group}"


def _write_solution(path: Path, annotations: Sequence[dict[str, int]]) -> None:
    lines = ["id,expected,usage"]
    for place, row in enumerate(annotations):
        usage = "Public" if place % 2 == 0 else "Private"
        lines.append(f"{row['image_id']},{row['category_id']},{usage}")
    path.write_text("\n".join(lines) + "\n")
