"""Data sets of one, two or three species go the whole way from folders to a submission."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiny_runs import tiny_config, train_tiny

import inat
from inat.acquire.import_folders import import_folders
from inat.core.errors import InputError
from inat.submission import write


def data_of(tmp_path: Path, n_species: int, n_photos: int, val_share: float) -> Path:
    rng = np.random.default_rng(n_species)
    for species in range(n_species):
        folder = tmp_path / "photos" / f"species {species}"
        folder.mkdir(parents=True)
        for photo in range(n_photos):
            pixels = rng.integers(0, 256, (40, 48, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{photo}.png")
    tests = shutil.copytree(tmp_path / "photos" / "species 0", tmp_path / "tests")
    import_folders(tmp_path / "photos", tmp_path / "data", val_share=val_share, test=tests)
    return tmp_path / "data"


@pytest.mark.parametrize("n_species", [1, 2, 3])
def test_few_species_are_trained_validated_predicted_and_submitted(
    tmp_path: Path, n_species: int, capsys: pytest.CaptureFixture[str]
) -> None:
    root = data_of(tmp_path, n_species, n_photos=8, val_share=0.25)
    run = train_tiny(tmp_path / "run", root, batch_size=2)
    warned = "one species alone" in "".join(capsys.readouterr())
    assert warned == (n_species == 1)
    prediction = inat.predict(run.path, "val")
    assert prediction.logits.shape == (2 * n_species, n_species)
    result = inat.evaluate(prediction)
    assert result.top_k[3].value == result.top_k[5].value == 1
    tested = inat.predict(run.path, "test")
    if n_species < 3:
        with pytest.raises(InputError, match=f"3 guesses a row, and there are {n_species} species"):
            write(tested, tmp_path / "submission.csv")
    else:
        csv = write(tested, tmp_path / "submission.csv")
        assert len(csv.read_text().splitlines()) == 9
    guesses = inat.predict_photos(run.path, tmp_path / "photos").guesses
    assert {len(guess.names) for guess in guesses} == {n_species}


def test_one_photo_in_all_is_trained_on_alone_and_not_in_larger_batches(tmp_path: Path) -> None:
    root = data_of(tmp_path, 1, n_photos=1, val_share=0)
    with pytest.raises(InputError, match="lower batch_size"):
        inat.dry_run(tiny_config(**{"data.root": root, "data.holdout": "none"}))
    run = train_tiny(
        tmp_path / "run",
        root,
        **{"data.holdout": "none", "batch_size": 1, "transforms.image_size": 64},
    )
    assert run.facts.category_ids == [0]
