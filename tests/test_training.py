"""Training, resume and prediction on a tiny world with a tiny network."""

import io
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from PIL import Image
from tiny_runs import log_lines, same, tiny_config, train_tiny, weights
from worlds import category_id, make_world

import inat
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.core.files import read_json
from inat.core.priors import count_prior
from inat.dataset.split import cut_holdout, load_split
from inat.runs.run import Run

SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "data.holdout": "none",
    "model.dropout": 0.3,
    "model.drop_path": 0.1,
    "runtime.log_every": 2,
}


def trained(world: Path, run: Path, **settings: Any) -> Run:
    return train_tiny(run, world, **{**SETTINGS, **settings})


@pytest.fixture(scope="module")
def held_out_run(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    settings = {"data.holdout": "0.3", "optim.ema_decay": 0.5, "epochs": 3}
    return trained(world, tmp_path_factory.mktemp("runs") / "held", **settings)


def test_the_same_seed_gives_the_same_weights_with_any_workers(world: Path, tmp_path: Path) -> None:
    plain = trained(world, tmp_path / "a")
    threaded = trained(world, tmp_path / "b", **{"data.workers": 2})
    other = trained(world, tmp_path / "c", seed=1)
    assert same(weights(plain), weights(threaded))
    assert log_lines(plain.path) == log_lines(threaded.path)
    assert not same(weights(plain), weights(other))


RECIPE = {
    "transforms.mixup": 0.2, "transforms.cutmix": 1.0, "transforms.erasing": 0.5,
    "transforms.cutout": 4, "transforms.policy": "rand_augment", "optim.accumulate": 2,
    "batch_size": 4,
}  # fmt: skip


@pytest.mark.parametrize(
    ("more", "kinds"),
    [({}, ()), (RECIPE, ()), ({"loss.name": "seesaw"}, ("loss",))],
    ids=["plain", "recipe", "seesaw"],
)
def test_a_resumed_run_ends_as_one_never_interrupted(
    world: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    more: dict[str, Any],
    kinds: tuple[str, ...],
) -> None:
    settings = {"epochs": 3, "optim.ema_decay": 0.9, "data.holdout": "0.3", **more}
    whole = trained(world, tmp_path / "whole", **settings)

    from inat.training import loop, run_files

    def unplugged(*_: object) -> None:
        raise KeyboardInterrupt

    save = run_files.save_checkpoint

    def save_twice(folder: Path, state: Any, *rest: Any, **options: Any) -> None:
        save(folder, state, *rest, **options)
        if state.epoch == 2 and folder.name == "last":
            monkeypatch.setattr(loop, "take_step", unplugged)

    monkeypatch.setattr(run_files, "save_checkpoint", save_twice)
    step = loop.take_step
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path / "cut", **settings)
    monkeypatch.setattr(loop, "take_step", step)
    with pytest.raises(InputError, match="there is an unfinished run; --resume goes on with it"):
        trained(world, tmp_path / "cut", **settings)
    resumed = trained(world, tmp_path / "cut", resume=True, **settings)
    for kind in ("model", "ema", "optimizer", *kinds):
        assert same(weights(whole, kind=kind), weights(resumed, kind=kind))
    assert log_lines(whole.path) == log_lines(resumed.path)


def test_two_batches_of_half_the_size_make_the_step_of_one(world: Path, tmp_path: Path) -> None:
    # Where nothing couples the photos of a batch, and nothing is random within the network.
    settings = {"model.freeze": "backbone", "epochs": 1}
    whole = trained(world, tmp_path / "whole", batch_size=8, **settings)
    halves = {"batch_size": 4, "optim.accumulate": 2}
    added = trained(world, tmp_path / "added", **halves, **settings)
    theirs, ours = weights(whole), weights(added)
    assert theirs.keys() == ours.keys()
    for name in theirs:
        torch.testing.assert_close(ours[name], theirs[name], rtol=1e-4, atol=1e-6)


def test_gradients_that_are_computed_again_are_the_same(world: Path, tmp_path: Path) -> None:
    kept = trained(world, tmp_path / "a", epochs=1)
    again = trained(world, tmp_path / "b", epochs=1, **{"runtime.gradient_checkpointing": True})
    theirs, ours = weights(kept), weights(again)
    for name in theirs:
        if "running" not in name and "tracked" not in name:  # these see each batch twice
            torch.testing.assert_close(ours[name], theirs[name], rtol=1e-3, atol=1e-5)


def test_a_full_device_names_what_would_help(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from inat.training import step

    def full(*_: object, **__: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nmore")

    monkeypatch.setattr(step, "normalize", full)
    with pytest.raises(WorldError) as told:
        trained(world, tmp_path / "a")
    assert str(told.value) == (
        "memory is full (CUDA out of memory. Tried to allocate 2.00 GiB.); halve batch_size and "
        "double optim.accumulate (or halve optim.device_batch), or set "
        "runtime.gradient_checkpointing true; --resume goes on from the last checkpoint"
    )


def test_a_finished_run_is_not_trained_again_and_other_settings_are_refused(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = trained(world, tmp_path / "a")
    before = (run.checkpoint("last") / "model.safetensors").stat().st_mtime_ns
    trained(world, tmp_path / "a")
    assert (run.checkpoint("last") / "model.safetensors").stat().st_mtime_ns == before
    assert "trained already; --overwrite trains it again" in capsys.readouterr().err
    with pytest.raises(InputError) as refused:
        trained(world, tmp_path / "a", **{"optim.weight_decay": 0.5})
    assert str(refused.value) == (
        f"{tmp_path / 'a'}: the run there was made with other settings (optim.weight_decay); "
        "give another --run, or --overwrite to throw it away"
    )


def test_a_folder_that_is_no_run_is_not_written_to(world: Path, tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    with pytest.raises(InputError, match="the folder is not empty and holds no run"):
        trained(world, tmp_path / "mine")


def test_the_logits_prior_is_what_the_loss_leaves_of_the_draws(world: Path, tmp_path: Path) -> None:
    counts = np.array([30, 8, 3, 2])
    cases = {
        "ce": ({"loss.name": "ce"}, count_prior(counts)),
        "la": ({"loss.name": "logit_adjusted"}, np.full(4, 0.25)),
        "balanced": ({"sampler.name": "class_balanced"}, np.full(4, 0.25)),
        "half": (
            {"loss.name": "logit_adjusted", "loss.tau": 0.5},
            np.sqrt(counts) / np.sqrt(counts).sum(),
        ),
    }
    for name, (settings, expected) in cases.items():
        run = trained(world, tmp_path / name, epochs=1, **settings)
        prediction = inat.predict(run.path, "val")
        assert prediction.logits_prior == pytest.approx(expected), name


def globals_now() -> tuple[Any, ...]:
    numpy_state = np.random.get_state()
    generators = (torch.get_rng_state().tolist(), numpy_state[1].tolist(), random.getstate())
    return (*generators, torch.get_num_threads(), Path.cwd(), dict(os.environ))


@pytest.mark.usefixtures("unchecked")
def test_no_global_generator_thread_count_folder_or_variable_is_changed(
    world: Path, tmp_path: Path
) -> None:
    before = globals_now()
    run = trained(world, tmp_path / "run", epochs=1, **{"data.workers": 2})
    inat.predict(run.path, "val")
    assert globals_now() == before


def test_a_run_keeps_config_environment_and_metrics(held_out_run: Run, world: Path) -> None:
    assert inat.read_config(held_out_run.path / "config.yaml") == held_out_run.config
    assert held_out_run.config.data.root == world.resolve()
    environment = orjson.loads((held_out_run.path / "environment.json").read_bytes())
    assert {"torch", "timm", "numpy"} <= set(environment["versions"])
    assert held_out_run.facts.weights_source == "none: random weights"
    lines = log_lines(held_out_run.path)
    validations = [line for line in lines if line["kind"] == "validation"]
    assert [line["epoch"] for line in validations] == [1, 2, 3]
    assert set(validations[0]["bands"]) == {"many", "medium", "few"}
    assert validations[0]["bands"]["many"] is None
    steps = [line["step"] for line in lines if line["kind"] == "train"]
    assert steps == sorted(steps)


def test_the_best_checkpoint_is_the_epoch_with_the_best_class_mean(held_out_run: Run) -> None:
    scores = [
        line["mean_class_accuracy"]
        for line in log_lines(held_out_run.path)
        if line["kind"] == "validation"
    ]
    best = orjson.loads((held_out_run.checkpoint("best") / "state.json").read_bytes())
    assert best["epoch"] == 1 + int(np.argmax(scores))
    assert best["best_score"] == max(scores)


def test_the_last_validation_is_what_evaluate_says_of_the_held_out_part(held_out_run: Run) -> None:
    evaluation = inat.evaluate(inat.predict(held_out_run.path, "holdout"))
    line = [line for line in log_lines(held_out_run.path) if line["kind"] == "validation"][-1]
    assert evaluation.top1.value == pytest.approx(line["top1"])
    assert evaluation.mean_class_accuracy.value == pytest.approx(line["mean_class_accuracy"])


def test_predictions_know_what_training_made_of_each_photo(held_out_run: Run, world: Path) -> None:
    trained_on, held_out = cut_holdout(load_split(world), "0.3", 0)
    roles = {
        split: inat.predict(held_out_run.path, split).photos.set_index("id")["role"]
        for split in ("train", "val", "holdout")
    }
    assert set(roles["val"]) == {"unseen"}
    assert set(roles["holdout"]) == {"held out"}
    assert (roles["train"][trained_on.image_ids] == "trained on").all()
    assert (roles["train"][held_out.image_ids] == "held out").all()
    best = inat.predict(held_out_run.path, "holdout", checkpoint="best", name="best")
    assert set(best.photos["role"]) == {"chosen on"}
    with pytest.raises(InputError, match="something was chosen"):
        inat.evaluate(best)
    with pytest.raises(InputError, match="were trained on"):
        inat.evaluate(held_out_run.prediction("train"))


def test_best_is_refused_where_nothing_was_held_out(world: Path, tmp_path: Path) -> None:
    run = trained(world, tmp_path / "a", epochs=1)
    with pytest.raises(InputError) as refused:
        inat.predict(run.path, "val", checkpoint="best")
    assert str(refused.value) == (
        f"{run.path}: there is no best checkpoint, since data.holdout none validates nothing; "
        "use --checkpoint last, or train with data.holdout 0.2"
    )
    with pytest.raises(InputError, match=r"no moving average was kept \(optim.ema_decay was off\)"):
        inat.predict(run.path, "val", weights="ema")
    with pytest.raises(InputError, match=r"data\.holdout is none: nothing is held out"):
        inat.predict(run.path, "holdout")


def test_ema_and_raw_weights_predict_differently_and_auto_is_ema(held_out_run: Run) -> None:
    logits = {
        kind: inat.predict(held_out_run.path, "val", weights=kind, name=f"val-{kind}").logits
        for kind in ("auto", "ema", "raw")
    }
    assert (logits["auto"] == logits["ema"]).all()
    assert not (logits["auto"] == logits["raw"]).all()


def test_a_prediction_made_with_other_settings_is_not_overwritten(held_out_run: Run) -> None:
    first = inat.predict(held_out_run.path, "val", name="twice")
    again = inat.predict(held_out_run.path, "val", name="twice")
    assert (first.logits == again.logits).all()
    with pytest.raises(InputError, match="there is a prediction with another checkpoint_sha256"):
        inat.predict(held_out_run.path, "val", name="twice", weights="raw")
    inat.predict(held_out_run.path, "val", name="twice", weights="raw", overwrite=True)


def test_predictions_do_not_depend_on_batch_size_or_workers(held_out_run: Run) -> None:
    one = inat.predict(held_out_run.path, "test", name="one", batch_size=1, workers=0)
    all_ = inat.predict(held_out_run.path, "test", name="all", batch_size=64, workers=2)
    assert (one.ids == all_.ids).all()
    assert np.abs(one.logits.astype(float) - all_.logits.astype(float)).max() < 0.01
    assert (one.labels == -1).all()


def broken_world(folder: Path, split: str) -> tuple[Path, int]:
    """A world in which the first photo of a split is cut off; gives its image id."""
    world = make_world(folder / "world", counts=(30, 12, 6, 4))
    image = orjson.loads((world / f"{split}2018.json").read_bytes())["images"][0]
    path = world / image["file_name"]
    path.write_bytes(path.read_bytes()[:200])
    return world, image["id"]


def test_a_bad_photo_stops_training_with_its_path(tmp_path: Path) -> None:
    world, image_id = broken_world(tmp_path, "train")
    with pytest.raises(WorldError) as stopped:
        trained(world, tmp_path / "run")
    assert f"{world.resolve()}/train_val2018/" in str(stopped.value)
    assert f"(image {image_id}): " in str(stopped.value)
    assert "go on without it (on_bad_photo skip)" in str(stopped.value)


def test_a_skipped_photo_is_listed_in_the_run_up_to_the_limit(tmp_path: Path) -> None:
    world, image_id = broken_world(tmp_path, "train")
    settings = {"data.on_bad_photo": "skip", "data.bad_photo_limit": 0.1, "epochs": 1}
    settings["sampler.epoch_size"] = 104  # two rounds: the photo is met for sure
    run = trained(world, tmp_path / "run", **settings)
    listed = orjson.loads((run.path / "bad_photos.json").read_bytes())
    assert [event["image_id"] for event in listed["skipped"]] == [image_id]
    settings["data.bad_photo_limit"] = 0.001
    assert (trained(world, tmp_path / "few", **settings).path / "bad_photos.json").is_file()
    settings["data.bad_photo_limit"] = 0
    with pytest.raises(WorldError, match=r"1 of 52 photos .* listed in .*/other/bad_photos\.json"):
        trained(world, tmp_path / "other", **settings)


def test_held_out_batches_of_unreadable_photos_alone_are_left_out_of_the_validation(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path / "world")
    settings = {"model.backbone": "test_vit", "batch_size": 2, "epochs": 1, "data.holdout": "0.3",
                "data.on_bad_photo": "skip", "data.bad_photo_limit": 1.0}  # fmt: skip
    held_out = load_split(world, "holdout", holdout="0.3")
    for row in range(4):  # the first batch of 2 x 2
        held_out.path(row).write_bytes(b"no photo")
    run = trained(world, tmp_path / "run", **settings)
    (validation,) = [line for line in log_lines(run.path) if line["kind"] == "validation"]
    prediction = inat.predict(run.path, "holdout")
    assert len(prediction.meta.bad_photos) == 4
    hits = prediction.logits[4:].argmax(axis=1) == held_out.labels[4:]
    assert validation["top1"] == pytest.approx(hits.mean())


def test_an_unreadable_test_photo_is_predicted_as_the_class_prior(tmp_path: Path) -> None:
    world, image_id = broken_world(tmp_path, "test")
    settings = {"data.on_bad_photo": "skip", "data.bad_photo_limit": 0.5, "epochs": 1}
    run = trained(world, tmp_path / "run", **settings)
    prediction = inat.predict(run.path, "test")
    row = int(np.flatnonzero(prediction.ids == image_id)[0])
    prior = count_prior(np.array([30, 12, 6, 4]))
    assert prediction.logits[row] == pytest.approx(np.log(prior / prior.max()), abs=2e-3)
    assert len(prediction.meta.bad_photos) == 1
    assert f"(image {image_id})" in prediction.meta.bad_photos[0]


def test_photos_of_a_folder_get_three_names_and_probabilities(
    held_out_run: Run, world: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "photos"
    (folder / "deep").mkdir(parents=True)
    some = sorted((world / "test2018").iterdir())[:2]
    (folder / "a.jpg").write_bytes(some[0].read_bytes())
    (folder / "deep" / "b.JPG").write_bytes(some[1].read_bytes())
    (folder / "c.png").write_bytes(b"no photo")
    found = inat.predict_photos(held_out_run, folder)
    guesses = found.guesses
    assert [guess.path.name for guess in guesses] == ["a.jpg", "b.JPG"]
    assert [event.path for event in found.unreadable] == [str(folder / "c.png")]
    single = inat.predict_photos(held_out_run.path, folder / "a.jpg").guesses
    assert [(guess.path.name, guess.names) for guess in single] == [("a.jpg", guesses[0].names)]
    for guess in guesses:
        assert guess.probabilities == sorted(guess.probabilities, reverse=True)
        assert sum(guess.probabilities) <= 1
        assert set(guess.category_ids) <= {category_id(label) for label in range(4)}
        assert all("species" in name for name in guess.names)
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="there is no photo in it"):
        inat.predict_photos(held_out_run.path, tmp_path / "empty")
    with pytest.raises(InputError, match="nowhere: there is no such photo or folder"):
        inat.predict_photos(held_out_run.path, tmp_path / "nowhere")


def test_photos_of_ones_own_are_read_through_links_under_any_name(
    held_out_run: Run, world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    some = sorted((world / "test2018").iterdir())[:2]
    folder, other = tmp_path / "photos", tmp_path / "other"
    (folder / ".hidden").mkdir(parents=True)
    (folder / ".hidden" / "0.jpg").write_bytes(some[0].read_bytes())
    other.mkdir()
    (other / "deep.jfif").write_bytes(some[1].read_bytes())
    (folder / "a.jpg").symlink_to(some[0])
    (folder / "linked").symlink_to(other)
    with open(os.fsencode(folder) + b"/Ma\xf1ana", "wb") as file:  # noqa: PTH123
        file.write(some[0].read_bytes())
    (folder / "notes.txt").write_text("text")
    words = ["predict", str(held_out_run.path), "--photos"]
    assert main([*words, str(folder)]) == 0
    told = capsys.readouterr()
    assert [line.split(": ")[0] for line in told.out.splitlines()] == [
        f"{folder}/Ma%F1ana", f"{folder}/a.jpg", f"{folder}/linked/deep.jfif",
    ]  # fmt: skip
    assert "not read" not in told.err
    guesses = inat.predict_photos(held_out_run.path, folder).guesses
    assert guesses[0].probabilities == guesses[1].probabilities


def test_it_is_an_error_when_no_photo_was_read(
    held_out_run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["predict", str(held_out_run.path), "--photos"]
    content, noise = io.BytesIO(), np.random.default_rng(0).integers(0, 256, (48, 64, 3), np.uint8)
    Image.fromarray(noise).save(content, "JPEG")
    (tmp_path / "cut.jpg").write_bytes(content.getvalue()[:-200])
    for path in (tmp_path, tmp_path / "cut.jpg"):
        assert main([*words, str(path)]) == 1
        assert "none of its 1 photos could be read" in capsys.readouterr().err
    (tmp_path / "cut.jpg").write_bytes(b"")
    for path in (tmp_path, tmp_path / "cut.jpg"):
        assert main([*words, str(path)]) == 2
        assert "1 photo that cannot be read" in capsys.readouterr().err


def test_a_loss_that_is_not_finite_stops_the_run(world: Path, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"the loss is (nan|inf) at step \d+ \(learning rate"):
        trained(
            world,
            tmp_path / "a",
            **{"optim.lr_per_256": 1e30, "optim.name": "sgd", "runtime.log_every": 1},
        )
    told = read_json(tmp_path / "a" / "non_finite.json")
    drawn = load_split(world).image_ids.tolist()
    assert len(told["image_ids"]) == 8
    assert set(told["image_ids"]) <= set(drawn)


def test_a_run_of_other_species_refuses_the_data(held_out_run: Run, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", counts=(5, 4, 3))
    with pytest.raises(InputError, match="its 3 species are not the 4 that"):
        inat.predict(held_out_run.path, "val", root=other, name="other")


def test_class_balanced_logit_adjustment_says_it_is_plain_ce(world: Path) -> None:
    draws = {"sampler.name": "class_balanced", "loss.name": "logit_adjusted"}
    lines = inat.dry_run(tiny_config(**{"data.root": world, **draws})).lines()
    assert any("which is plain ce under class_balanced draws" in line for line in lines)
