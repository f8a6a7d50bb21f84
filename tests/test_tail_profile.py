"""The tail profile and its picture."""

from pathlib import Path

import numpy as np
from PIL import Image
from worlds import make_world

from inat.dataset.profile import describe, draw_profile


def test_the_profile_counts_what_the_annotations_hold(tmp_path: Path) -> None:
    root = make_world(tmp_path / "world", counts=(101, 100, 20, 19, 2), n_val=1, n_test=1)
    profile = describe(root)
    assert profile.split_sizes == {"train": 242, "val": 5, "test": 5}
    assert profile.counts.tolist() == [101, 100, 20, 19, 2]
    assert profile.bands == {"many": 1, "medium": 2, "few": 2}
    assert profile.imbalance_factor == 50.5
    assert profile.head_share == 101 / 242  # a tenth of five species is one, at least
    # Labels 0 and 1 share a genus; the plant genus of the same name is another one.
    assert profile.ranks["genus"] == 3
    assert profile.ranks["kingdom"] == 2
    text = "\n".join(profile.lines())
    assert "photos            train 242, val 5, test 5" in text
    assert "photos a species  min 2, median 20, mean 48.4, max 101" in text
    assert "shot bands        many 1, medium 2, few 2 (many > 100, few < 20)" in text


def test_a_data_set_without_val_and_test_is_described(tmp_path: Path) -> None:
    root = make_world(tmp_path / "world", counts=(4, 3))
    (root / "val2018.json").unlink()
    (root / "test2018.json").unlink()
    assert describe(root).split_sizes == {"train": 7}


def test_the_picture_shows_each_band_that_has_species(tmp_path: Path) -> None:
    root = make_world(tmp_path / "world", counts=(30, 5), size=(16, 16))
    draw_profile(describe(root), tmp_path / "profile.png")
    pixels = np.asarray(Image.open(tmp_path / "profile.png").convert("RGB")).reshape(-1, 3)
    colours = {"many": (76, 120, 168), "medium": (114, 183, 178), "few": (228, 87, 86)}
    shown = {band: bool((pixels == rgb).all(axis=1).sum() > 500) for band, rgb in colours.items()}
    assert shown == {"many": False, "medium": True, "few": True}
