"""Predictions with views: each view alone and all together, and what a prediction says of them."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tiny_runs import train_tiny
from worlds import make_world

import inat
from inat.cli.app import main
from inat.core.errors import InputError
from inat.dataset.split import load_split
from inat.loader import loader as loader_module
from inat.loader.views import View, parse_views
from inat.predictions import predict as predict_module
from inat.runs import trained as trained_module
from inat.runs.run import Run

COUNTS = np.array([30, 8, 3, 2])
SKIP = {"data.on_bad_photo": "skip", "data.bad_photo_limit": 0.5}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", world)


@pytest.mark.parametrize("spec", ["five-crop", "full+random:1+scales:24,32"])
def test_views_together_are_the_mean_of_each_view_alone(
    run: Run, monkeypatch: pytest.MonkeyPatch, spec: str
) -> None:
    views = parse_views(spec, size=32, crop_pct=0.875)
    log_probs = []
    for number, view in enumerate(views):

        def only_this(*_: Any, view: View = view, **__: Any) -> tuple[View, ...]:
            return (view,)

        with monkeypatch.context() as patched:
            patched.setattr(predict_module, "parse_views", only_this)
            patched.setattr(loader_module, "parse_views", only_this)
            alone = inat.predict(run.path, "test", name=f"{number}-{spec}", views=spec)
        logits = alone.logits.astype(np.float64)
        log_probs.append(logits - np.log(np.exp(logits).sum(axis=1, keepdims=True)))
    means: dict[Any, np.ndarray] = {
        "logprob": sum(log_probs) / len(views),
        "prob": np.log(sum(np.exp(of_view) for of_view in log_probs) / len(views)),
    }
    for view_mean, expected in means.items():
        together = inat.predict(
            run.path, "test", name=f"{view_mean}-{spec}", views=spec, view_mean=view_mean
        )
        assert together.meta.views == [view.facts() for view in views]
        assert together.meta.view_mean == view_mean
        expected = expected - expected.max(axis=1, keepdims=True)
        np.testing.assert_allclose(together.logits, expected, atol=5e-3)


def test_views_keep_the_prior_that_the_logits_carry(run: Run) -> None:
    plain = inat.predict(run.path, "val")
    for view_mean in ("logprob", "prob"):
        several = inat.predict(run.path, "val", name=view_mean, views="flip", view_mean=view_mean)
        assert several.meta.logits_prior == plain.meta.logits_prior
        assert not np.array_equal(several.logits, plain.logits)
    assert plain.meta.views == [{"kind": "centre", "size": 32, "crop_pct": 0.875}]
    assert plain.meta.view_mean is None


@pytest.mark.parametrize(
    ("loss", "logits_prior", "row_prior"),
    [
        # tau 2 on pi leaves pi^-1; ldam leaves what no formula says, and the draws' stands in.
        ({"loss.name": "logit_adjusted", "loss.tau": 2.0}, 1 / COUNTS, 1 / COUNTS),
        ({"loss.name": "logit_adjusted"}, np.ones(4), np.ones(4)),
        ({"loss.name": "ldam", "model.head": "cosine"}, None, COUNTS),
    ],
    ids=["tau 2", "tau 1", "ldam"],
)
def test_an_unreadable_photo_has_the_prior_that_the_logits_carry_or_else_the_draws(
    tmp_path: Path, loss: dict[str, Any], logits_prior: Any, row_prior: np.ndarray
) -> None:
    world = make_world(tmp_path / "world", counts=tuple(COUNTS.tolist()))
    run = train_tiny(tmp_path / "run", world, **{"data.holdout": "none"}, **SKIP, **loss)
    photos = load_split(world, "test")
    photos.path(3).write_bytes(b"no photo")
    made = inat.predict(run.path, "test")
    if logits_prior is None:
        assert made.logits_prior is None
    else:
        assert made.logits_prior == pytest.approx(logits_prior / logits_prior.sum())
    expected = np.log(row_prior / row_prior.max())
    np.testing.assert_allclose(made.logits[3].astype(np.float64), expected, atol=2e-3)
    assert len(made.meta.bad_photos) == 1
    assert made.meta.bad_photos[0].startswith(f"{photos.path(3)} (image {photos.image_ids[3]}): ")


@pytest.mark.parametrize(("views", "n_views"), [("centre", 1), ("flip", 2)])
def test_batches_of_unreadable_photos_alone_leave_what_a_vit_says_of_the_others(
    tmp_path: Path, views: str, n_views: int
) -> None:
    world = make_world(tmp_path / "world")
    all_may_fail = {**SKIP, "data.bad_photo_limit": 1.0}
    run = train_tiny(tmp_path / "run", world, **{"model.backbone": "test_vit"}, **all_may_fail)
    options: dict[str, Any] = {"views": views, "batch_size": 2 * n_views, "workers": 0}
    whole = inat.predict(run.path, "test", name="whole", **options)
    photos = load_split(world, "test")
    lost, read = [0, 1, 3, 4, 5, 6, 7], [2]  # the first batch of 2, and the last two
    for row in lost:
        photos.path(row).write_bytes(b"no photo")
    made = inat.predict(run.path, "test", name="made", **options)
    assert np.array_equal(made.ids, photos.image_ids)
    np.testing.assert_allclose(made.logits[read], whole.logits[read], atol=2e-3)
    assert made.logits_prior is not None
    expected = np.log(made.logits_prior / made.logits_prior.max())
    for row in lost:
        np.testing.assert_allclose(made.logits[row].astype(np.float64), expected, atol=2e-3)
    assert [event.partition(": ")[0] for event in made.meta.bad_photos] == [
        f"{photos.path(row)} (image {photos.image_ids[row]})" for row in lost
    ]


def test_a_batch_size_counts_views(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    batches = []
    build = trained_module.build_loader

    def noted(*arguments: Any, **options: Any) -> Any:
        batches.append(options["batch_size"])
        return build(*arguments, **options)

    monkeypatch.setattr(trained_module, "build_loader", noted)
    for number, (spec, size) in enumerate(
        [("centre", 12), ("flip", 12), ("ten-crop", 12), ("scales:24,32+flip", 12), ("flip", 1)]
    ):
        inat.predict(run.path, "test", name=f"b{number}", views=spec, batch_size=size)
    assert batches == [12, 6, 1, 6, 1]
    with pytest.raises(InputError, match=r"^batch_size: 0 is less than 1; give 1 or more$"):
        inat.predict(run.path, "test", name="none", views="flip", batch_size=0)


def test_other_views_are_another_prediction(run: Run) -> None:
    made = inat.predict(run.path, "test", name="seen", views="flip")
    assert np.array_equal(inat.predict(run.path, "test", name="seen", views="flip").logits,
                          made.logits)  # fmt: skip
    with pytest.raises(InputError) as refused:
        inat.predict(run.path, "test", name="seen", views="ten-crop")
    assert str(refused.value) == (
        f"{made.path}: there is a prediction of other views (2, not these 10); give another "
        "--name, or --overwrite"
    )
    with pytest.raises(InputError, match=r"there is a prediction with another view_mean \(logp"):
        inat.predict(run.path, "test", name="seen", views="flip", view_mean="prob")


def test_the_verb_takes_views_and_names_a_bad_one(
    run: Run, world: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(run.path), "--split", "test", "--name", "cli"]
    assert main([*words, "--views", "ten-crop", "--view-mean", "prob"]) == 0
    meta = inat.read_prediction(run.prediction("cli")).meta
    assert (len(meta.views or []), meta.view_mean) == (10, "prob")
    capsys.readouterr()
    assert main([*words, "--views", "tencrop"]) == 2
    error = capsys.readouterr().err
    assert error.startswith("inat: views 'tencrop': unknown name 'tencrop'; did you mean ten-crop?")
    assert main(["predict", str(run.path), "--photos", str(world / "test2018"),
                 "--views", "flip"]) == 0  # fmt: skip
    assert len(capsys.readouterr().out.splitlines()) == 8
