"""Predictions with lineages, photos and names that mean harm, for the tests of the report."""

from pathlib import Path

import numpy as np
from predictions import make_prediction
from worlds import write_photo

from inat.predictions.file import PredictionFile

NAMES = [
    "Larus </script><script>window.broken=1</script>",
    'Parus "major" onload=broken',
    "Ястреб & 鷹 <b>bold</b>",
    "Aquila <img src=x onerror=window.broken=1>",
    "Corvus {a|b} {{ 1 + 1 }}",
    "Picus 'viridis'",
]
COUNTS = [300, 120, 60, 20, 9, 2]
LABELS = np.repeat(np.arange(6), 4)
RANKS = {
    "supercategory": ["Aves"] * 4 + ["Fungi </script>"] * 2,
    "kingdom": ["Animalia"] * 4 + ["Fungi"] * 2,
    "phylum": ["Chordata"] * 4 + ["Basidia & Co"] * 2,
    "genus": ["Larus", "Parus", "Larus", "Aquila", "Corvus", "<Picus>"],
}


def make_bird_prediction(
    path: Path, seed: int = 0, root: Path | None = None, strength: float = 1.2
) -> PredictionFile:
    """Four photos of each of six species, whose rarer ones are guessed worse."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 1, (24, 6)) + strength * np.eye(6)[LABELS]
    return make_prediction(
        path,
        logits,
        LABELS.tolist(),
        COUNTS,
        columns={"name": NAMES, "lineage": NAMES, **RANKS},
        data_root=str(root or path.parent / "nowhere"),
    )


def write_photos(root: Path, prediction: PredictionFile) -> Path:
    """The prediction's photos, grey and small."""
    rng = np.random.default_rng(0)
    for place, name in enumerate(prediction.photos["file_name"]):
        write_photo(root / name, int(LABELS[place]), (48, 64), rng)
    return root
