"""Runs and predictions that an earlier version wrote stay readable and give the same figures.

data/older_version.tar.xz holds a small world, two trainings (four weights a tensor, so that they
pack well), what stage two, a soup and fold runs left of them (without weights), and predictions:
plain, with views, float32, of a geo prior, out of fold, adjusted in three ways and an ensemble.
"""

import tarfile
from pathlib import Path

import numpy as np
import pytest

import inat
from inat.core.errors import InputError
from inat.predictions.file import read_prediction
from inat.runs.folds import open_folds
from inat.runs.listing import list_runs
from inat.runs.run import open_run

ARCHIVE = Path(__file__).parent / "data" / "older_version.tar.xz"


@pytest.fixture
def older(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(tmp_path, filter="data")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize(
    "name, verb, is_geo",
    [("a", "inat train", False), ("crt", "inat stage-two", False), ("soup", "inat soup", False),
     ("geo", "inat stage-two", True)],
)  # fmt: skip
def test_each_kind_of_run_opens_and_names_its_maker(
    older: Path, name: str, verb: str, is_geo: bool
) -> None:
    run = open_run(Path("runs", name))
    assert run.config.model.backbone == "test_efficientnet"
    assert (run.made_by, run.is_geo_prior) == (verb, is_geo)
    assert run.species["category_id"].tolist() == [2, 10, 28, 56]


def test_fold_runs_open_and_the_list_of_runs_has_all(older: Path) -> None:
    assert [run.path.name for run in open_folds("runs/folds").runs] == ["fold_1", "fold_2"]
    table = list_runs("runs").dropna(subset="method").drop_duplicates("run")
    assert table.set_index("run")["method"].to_dict() == {
        "runs/a": "ce", "runs/b": "ce", "runs/crt": "crt", "runs/soup": "soup",
        "runs/geo": "geo_prior",
        "runs/folds/fold_1": "ce", "runs/folds/fold_2": "ce",
    }  # fmt: skip


def test_a_finished_run_is_known_as_finished(
    older: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = open_run("runs/a").config
    inat.train(config, "runs/a", overrides={"data.root": "world"})
    assert "is trained already" in capsys.readouterr().err


def test_every_prediction_opens_with_its_roles_and_prior(older: Path) -> None:
    paths = sorted(path.parent for path in older.rglob("meta.json"))
    opened = {str(path.relative_to(older)): read_prediction(path) for path in paths}
    assert len(opened) == 11
    assert set(opened["runs/a/predictions/holdout"].photos["role"]) == {"held out"}
    assert set(opened["runs/folds/predictions/oof"].photos["role"]) == {"held out"}
    assert opened["predictions/tau"].logits_prior == pytest.approx(np.full(4, 0.25))


def test_predicting_again_gives_the_stored_logits(older: Path) -> None:
    for split, views in (("val", "centre"), ("test", "flip")):
        old = read_prediction(f"runs/a/predictions/{split}")
        new = inat.predict("runs/a", split, views=views, root="world", name=f"again_{split}")
        assert new.ids.tolist() == old.ids.tolist()
        assert new.photos.equals(old.photos)
        assert new.logits_prior == pytest.approx(old.logits_prior)
        np.testing.assert_allclose(new.read(slice(None)), old.read(slice(None)), atol=0.02)


def test_adjustments_and_ensembles_of_stored_predictions_give_the_stored_results(
    older: Path,
) -> None:
    val, held = "runs/a/predictions/val", "runs/a/predictions/holdout"
    inat.adjust(val, "new/tau", tau=1)
    inat.adjust(val, "new/estimated", target="estimated", fit=held)
    inat.adjust(val, "new/product", geo="runs/geo/predictions/val")
    inat.ensemble(
        [val, val.replace("a", "b", 1)], "new/ensemble", fit=[held, "runs/b/predictions/holdout"]
    )
    for name in ("tau", "estimated", "product", "ensemble"):
        new, old = read_prediction(f"new/{name}"), read_prediction(f"predictions/{name}")
        np.testing.assert_allclose(new.read(slice(None)), old.read(slice(None)), atol=1e-3)
        assert new.photos.equals(old.photos)
        assert new.chosen_keys.tolist() == old.chosen_keys.tolist()
        assert new.meta == old.meta


def test_stored_predictions_are_evaluated_as_what_they_are(older: Path) -> None:
    assert inat.evaluate("predictions/tau").n_images == 8
    inat.adjust("runs/a/predictions/holdout", "predictions/searched", tau="search")
    assert inat.evaluate("runs/folds/predictions/oof").n_images == 21
    with pytest.raises(InputError, match="was chosen"):
        inat.evaluate("predictions/searched")
