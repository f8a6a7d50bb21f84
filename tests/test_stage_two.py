"""Stage two: features, the four methods against slow loops, and the run that each leaves."""

import dataclasses
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import restate, train_tiny, weights, weights_facts
from torch import Tensor, nn
from worlds import make_world

import inat
from inat.cli.app import main
from inat.config.reading import build
from inat.core.errors import InputError, WorldError
from inat.dataset.split import Split, load_split
from inat.loader.batches import to_device
from inat.loader.loader import build_loader
from inat.models.backbone import build_backbone
from inat.models.heads import build_head
from inat.predictions.file import PredictionFile, store
from inat.runs.checkpoints import find_checkpoint
from inat.runs.run import Run
from inat.runs.trained import open_trained
from inat.samplers import build_sampler
from inat.samplers.base import FEATURE_VIEWS, epoch_order, stream
from inat.stage_two import features as features_module
from inat.stage_two.extractor import FeatureExtractor, feature_extractor
from inat.stage_two.features import Features, cached_features
from inat.stage_two.heads import nearest_mean_head, scaled_head, score_taus, tau_normalized

DROPOUT = {"model.dropout": 0.3}
METHODS = ("crt", "lws", "tau_norm", "ncm")


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", world, **DROPOUT)


@pytest.fixture(scope="module")
def made(run: Run) -> dict[str, Run]:
    """A second run of each method."""
    return {
        method: inat.train_stage_two(run.path, run.path.parent / method, method=method)
        for method in METHODS
    }


@pytest.fixture(scope="module")
def predicted(made: dict[str, Run]) -> dict[str, PredictionFile]:
    """The held-out part as each of those runs predicts it."""
    return {method: inat.predict(new.path, "holdout") for method, new in made.items()}


@pytest.fixture
def own_run(run: Run, tmp_path: Path) -> Run:
    """A copy of the run without its features, to be written to."""
    shutil.copytree(run.path, tmp_path / "run", ignore=shutil.ignore_patterns("features"))
    return Run(tmp_path / "run")


def extractor_of(run: Run, **options: Any) -> FeatureExtractor:
    return feature_extractor(open_trained(run, **options))


def linear_of(run: Run) -> nn.Linear:
    state = weights(run)
    linear = nn.Linear(*reversed(state["classifier.weight"].shape))
    linear.load_state_dict({k: state[f"classifier.{k}"] for k in ("weight", "bias")})
    return linear


def refusal(run: Run, out: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        inat.train_stage_two(run.path, out, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- features --------------------------------------------------------------------------------


def forward(extractor: FeatureExtractor, network: Any, images: Tensor) -> np.ndarray:
    """The features of normalised images by timm's own two halves, as they are stored."""
    with torch.inference_mode():
        features = network.forward_head(network.forward_features(images), pre_logits=True)
    stored: np.ndarray = features.half().numpy()
    return stored


def test_features_are_those_of_centre_mirror_image_and_the_recipe_s_own_draws(run: Run) -> None:
    extractor = extractor_of(run)
    photos = extractor.source.trained
    network = open_trained(run).model.network
    kept = cached_features(extractor, photos, n_views=3)
    assert kept.values.shape == (3, len(photos), 256)
    assert kept.values.dtype == np.float16
    assert isinstance(kept.values, np.memmap)
    options: Any = {"image_size": 32, "batch_size": 1, "workers": 0, "seed": run.config.seed}
    recipe = run.config.transforms
    for row, batch in enumerate(build_loader(photos, training=False, recipe=recipe, **options)):
        images = to_device(batch, "cpu", extractor.source.model.mean, extractor.source.model.std)
        assert batch["image_id"].item() == photos.image_ids[row]
        for view, seen in enumerate((images, images.flip(3))):
            np.testing.assert_allclose(
                kept.values[view, row], forward(extractor, network, seen)[0], rtol=2e-3, atol=1e-4
            )
    drawn = build_loader(photos, training=True, recipe=recipe, **options)
    drawn.set_epoch(2)
    for batch in drawn:
        row = int(np.flatnonzero(photos.image_ids == batch["image_id"].item())[0])
        images = to_device(batch, "cpu", extractor.source.model.mean, extractor.source.model.std)
        np.testing.assert_allclose(
            kept.values[2, row], forward(extractor, network, images)[0], rtol=2e-3, atol=1e-4
        )


@pytest.mark.parametrize("method", ["crt", "ncm"])
def test_a_run_trained_with_ldam_gets_a_head_without_cosines(
    world: Path, tmp_path: Path, method: str
) -> None:
    ldam = {"loss.name": "ldam", "model.head": "cosine"}
    run = train_tiny(tmp_path / "ldam", world, **ldam)
    made = inat.train_stage_two(run.path, tmp_path / method, method=method)
    assert (made.config.loss.name, made.config.model.freeze) == ("ce", "backbone")
    assert made.config.model.head != "cosine"
    assert np.isfinite(np.asarray(inat.predict(made.path, "val").logits)).all()


def test_features_do_not_depend_on_the_batch_size(own_run: Run) -> None:
    photos = extractor_of(own_run).source.trained
    kept = []
    for batch_size in (16, 5):
        extractor = extractor_of(own_run, batch_size=batch_size)
        kept.append(np.array(cached_features(extractor, photos, n_views=3).values, np.float32))
        shutil.rmtree(own_run.path / "features")
    np.testing.assert_allclose(*kept, rtol=2e-3, atol=1e-4)


def test_features_are_used_again_until_the_checkpoint_or_the_views_change(
    own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    extracted = []
    extract = features_module._extract

    def counted(extractor: FeatureExtractor, photos: Split, path: Path, meta: Any) -> None:
        extracted.append(path)
        extract(extractor, photos, path, meta)

    monkeypatch.setattr(features_module, "_extract", counted)

    def features(n_views: int = 1) -> Features:
        extractor = extractor_of(own_run)
        return cached_features(extractor, extractor.source.trained, n_views)

    first = features()
    assert features().path == first.path
    assert extracted == [first.path]
    assert first.path.name.startswith("train-")
    assert features(2).path != first.path
    path = own_run.checkpoint("last") / "model.safetensors"
    state = load_file(path)
    state["conv_head.weight"] *= 2
    save_file(state, path)
    restate(own_run)  # with its checksums
    assert features().path not in extracted[:2]
    assert len(extracted) == 3


def test_an_extraction_that_is_cut_short_leaves_nothing_to_be_taken_for_whole(
    own_run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unplugged(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(features_module, "write_json", unplugged)
    with pytest.raises(KeyboardInterrupt):
        inat.train_stage_two(own_run.path, own_run.path.parent / "out", method="ncm")
    assert list((own_run.path / "features").iterdir()) == []
    left = sorted(path.name for path in own_run.path.parent.iterdir())
    assert left == [".out.lock", "run"]


def test_features_that_are_cut_off_say_what_to_do(own_run: Run) -> None:
    extractor = extractor_of(own_run)
    path = cached_features(extractor, extractor.source.trained, 1).path / "features.npy"
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(InputError) as caught:
        cached_features(extractor, extractor.source.trained, 1)
    assert str(caught.value).startswith(f"{path}: no array, or cut off (")
    assert str(caught.value).endswith("; remove its folder, and the features are extracted again")


def test_features_that_float16_cannot_hold_stop_the_extraction(own_run: Run) -> None:
    extractor = extractor_of(own_run)
    huge = nn.Sequential(extractor.network, Times(1e30))
    vars(extractor.source)["model"] = dataclasses.replace(extractor.source.model, network=huge)
    with pytest.raises(WorldError, match="a feature is not finite, or too large for float16"):
        cached_features(extractor, extractor.source.trained, 1)
    assert list((own_run.path / "features").iterdir()) == []


class Times(nn.Module):
    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, values: Tensor) -> Tensor:
        return values * self.factor


def test_photos_that_cannot_be_read_are_left_out_and_listed(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", counts=(12, 6, 4))
    settings = {"data.on_bad_photo": "skip", "data.bad_photo_limit": 0.1, "data.holdout": "none"}
    run = train_tiny(tmp_path / "run", world, **settings)
    photos = load_split(world)
    broken = photos.path(3)
    broken.write_bytes(broken.read_bytes()[:200])
    extractor = extractor_of(run)
    kept = cached_features(extractor, extractor.source.trained, 3)
    assert kept.readable.tolist() == [row for row in range(22) if row != 3]
    assert sum(len(labels) for _, labels in kept.chunks()) == 3 * 21
    (line,) = kept.bad_photos
    assert line.startswith(f"{broken} (image {photos.image_ids[3]}): ")
    for live in (False, True):
        options: Any = {"epochs": 1, "epoch_size": 200, "batch_size": 50, "live": live}
        out = inat.train_stage_two(
            run.path, tmp_path / f"{live}", method="crt", feature_views=3, **options
        )
        assert out.facts.stage_two.bad_photos == [line]
    strict = {**run.config.to_dict()}
    strict["data"]["bad_photo_limit"] = 0.0
    config = build(strict, "test")
    extractor = feature_extractor(dataclasses.replace(open_trained(run), config=config))
    with pytest.raises(
        WorldError,
        match=r"1 of 22 photos cannot be read, and data\.bad_photo_limit 0 allows 0; .*the first: ",
    ):
        cached_features(extractor, extractor.source.trained, 1)


def test_a_vit_gives_features_though_a_batch_has_unreadable_photos_alone(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", counts=(12, 6, 4))
    settings = {"data.on_bad_photo": "skip", "data.bad_photo_limit": 0.5, "data.holdout": "none",
                "model.backbone": "test_vit", "batch_size": 2}  # fmt: skip
    run = train_tiny(tmp_path / "run", world, **settings)
    before = cached_features(extractor_of(run), load_split(world), 1).values[:, :20].copy()
    photos = load_split(world)
    for row in (20, 21):  # the last batch of 4
        photos.path(row).write_bytes(b"no photo")
    shutil.rmtree(run.path / "features")
    kept = cached_features(extractor_of(run), photos, 3)
    assert kept.readable.tolist() == list(range(20))
    assert np.array_equal(kept.values[:1, :20], before)


def test_other_photos_than_those_trained_on_are_refused(run: Run, tmp_path: Path) -> None:
    other = make_world(tmp_path / "other", seed=3)
    assert refusal(run, tmp_path / "out", method="ncm", root=other) == (
        f"{other}: its train photos are not those that {run.path} was trained on; "
        "give the data set it was trained on (--data.root)"
    )


# --- crt and lws -----------------------------------------------------------------------------


def slow_sgd(
    features: Features,
    parameters: dict[str, np.ndarray],
    gradients: Callable[[np.ndarray, np.ndarray, dict[str, np.ndarray]], dict[str, np.ndarray]],
    *,
    epochs: int,
    batch_size: int,
    learning_rate: float,
    seed: int,
) -> dict[str, np.ndarray]:
    """SGD with momentum .9, decay 1e-4 and a cosine, in float64, over class-balanced draws."""
    n_photos = len(features.labels)
    sampler = build_sampler("class_balanced", features.labels, features.n_classes)
    velocity = {name: np.zeros_like(value) for name, value in parameters.items()}
    n_steps, step = epochs * (n_photos // batch_size), 0
    for epoch in range(epochs):
        order = epoch_order(sampler, n_photos, seed, epoch)
        views = stream(seed, epoch, FEATURE_VIEWS).integers(features.n_views, size=n_photos)
        for begin in range(0, n_photos // batch_size * batch_size, batch_size):
            draws = range(begin, begin + batch_size)
            x = np.array([features.values[views[k], order[k]] for k in draws], np.float64)
            y = np.array([features.labels[order[k]] for k in draws])
            rate = learning_rate * 0.5 * (1 + math.cos(math.pi * step / n_steps))
            for name, gradient in gradients(x, y, parameters).items():
                velocity[name] = 0.9 * velocity[name] + gradient + 1e-4 * parameters[name]
            for name in parameters:
                parameters[name] = parameters[name] - rate * velocity[name]
            step += 1
    return parameters


def logit_gradient(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of the mean cross-entropy: (softmax - one-hot) / batch."""
    shares = np.exp(logits - logits.max(axis=1, keepdims=True))
    shares /= shares.sum(axis=1, keepdims=True)
    shares[np.arange(len(labels)), labels] -= 1
    return shares / len(labels)


def test_crt_is_sgd_on_a_fresh_linear_head_over_class_balanced_draws(
    run: Run, tmp_path: Path
) -> None:
    options: Any = {"epochs": 4, "batch_size": 8, "lr_per_256": 1.6, "feature_views": 3, "seed": 5}
    again = inat.train_stage_two(run.path, tmp_path / "out", method="crt", **options)
    extractor = extractor_of(run)
    fresh = build_head("linear", 256, 4, seed=5).state_dict()

    def gradients(x: np.ndarray, y: np.ndarray, p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        error = logit_gradient(x @ p["weight"].T + p["bias"], y)
        return {"weight": error.T @ x, "bias": error.sum(axis=0)}

    slow = slow_sgd(
        cached_features(extractor, extractor.source.trained, 3),
        {name: tensor.double().numpy() for name, tensor in fresh.items()},
        gradients,
        epochs=4,
        batch_size=8,
        learning_rate=1.6 * 8 / 256,
        seed=5,
    )
    for name, value in slow.items():
        np.testing.assert_allclose(weights(again)[f"classifier.{name}"], value, rtol=0, atol=2e-5)
        assert np.abs(value - fresh[name].numpy()).max() > 1e-3


def test_lws_is_sgd_on_the_scales_alone(run: Run, tmp_path: Path) -> None:
    options: Any = {"epochs": 4, "batch_size": 8, "lr_per_256": 1.6}
    again = inat.train_stage_two(run.path, tmp_path / "out", method="lws", **options)
    extractor, old = extractor_of(run), linear_of(run)
    weight, bias = (p.detach().double().numpy() for p in (old.weight, old.bias))

    def gradients(x: np.ndarray, y: np.ndarray, p: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        plain = x @ weight.T + bias
        return {"scale": (logit_gradient(p["scale"] * plain, y) * plain).sum(axis=0)}

    slow = slow_sgd(
        cached_features(extractor, extractor.source.trained, 2),
        {"scale": np.ones(4)},
        gradients,
        epochs=4,
        batch_size=8,
        learning_rate=1.6 * 8 / 256,
        seed=0,
    )
    found = weights(again)
    np.testing.assert_allclose(found["classifier.scale"], slow["scale"], rtol=0, atol=2e-5)
    assert np.abs(slow["scale"] - 1).max() > 1e-3
    assert torch.equal(found["classifier.weight"], old.weight)
    assert torch.equal(found["classifier.bias"], old.bias)


def test_lws_begins_at_the_old_logits(run: Run) -> None:
    old = linear_of(run)
    head = scaled_head(old)
    features = torch.randn(7, 256, generator=torch.Generator().manual_seed(0))
    assert torch.equal(head(features), old(features))
    assert [name for name, p in head.named_parameters() if p.requires_grad] == ["scale"]


def test_the_published_schedule_is_the_default(made: dict[str, Run]) -> None:
    for method, epochs in (("crt", 30), ("lws", 5)):
        facts = made[method].facts.stage_two
        assert (facts.epochs, facts.weight_decay) == (epochs, 1e-4)
        # .1 for 256 is .2 for 512; a batch is no larger than the 29 photos of an epoch.
        assert (facts.epoch_size, facts.batch_size) == (29, 29)
        assert facts.learning_rate == pytest.approx(0.2 * 29 / 512)


def test_a_loss_that_is_not_finite_stops_it_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(WorldError, match=r"the loss is nan in epoch \d+; give a lower --lr-per"):
        inat.train_stage_two(run.path, tmp_path / "out", method="crt", lr_per_256=1e38)
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]


def test_live_moves_batch_norm_s_statistics_and_no_weight_of_the_body(
    run: Run, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    options: Any = {"method": "crt", "epochs": 2, "batch_size": 8, "live": True}
    first, again = (
        inat.train_stage_two(run.path, tmp_path / name, **options) for name in ("a", "b")
    )
    assert torch.equal(torch.get_rng_state(), generator)
    old, new = weights(run), weights(first)
    for name, tensor in new.items():
        is_statistic = "running_" in name or "num_batches" in name
        changed = is_statistic or name.startswith("classifier.")
        assert torch.equal(tensor, old[name]) is not changed, name
        assert torch.equal(tensor, weights(again)[name]), name
    assert not (first.path / "features").exists()
    assert weights_facts(first).logits_prior == pytest.approx([0.25] * 4)


# --- tau_norm --------------------------------------------------------------------------------


def test_tau_0_keeps_the_guesses_without_the_bias_and_tau_1_gives_rows_of_length_1(
    run: Run,
) -> None:
    old = linear_of(run)
    features = torch.randn(50, 256, generator=torch.Generator().manual_seed(0))
    without_bias = features @ old.weight.T
    assert torch.equal(tau_normalized(old, 0)(features).argmax(1), without_bias.argmax(1))
    assert tau_normalized(old, 1).weight.norm(dim=1).tolist() == pytest.approx([1.0] * 4)
    for tau in (0.0, 0.7, 2.0):
        head = tau_normalized(old, tau)
        assert head.bias.tolist() == [0.0] * 4
        for row, weight in zip(head.weight.tolist(), old.weight.tolist(), strict=True):
            length = math.sqrt(sum(w * w for w in weight))
            assert row == pytest.approx([w / length**tau for w in weight], rel=1e-5)


def test_a_weight_of_length_0_stays_finite() -> None:
    linear = nn.Linear(3, 2)
    with torch.no_grad():
        linear.weight[0].zero_()
    assert tau_normalized(linear, 2).weight.isfinite().all()


def test_tau_is_chosen_by_the_mean_class_accuracy_on_the_held_out_part() -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), (40, 20, 10, 5))
    # Head classes have long weights: too small a tau guesses them too often, too large too rarely.
    linear = nn.Linear(6, 5)
    with torch.no_grad():
        linear.weight *= torch.tensor([5.0, 3.0, 1.5, 1.0, 0.5])[:, None]
    directions = torch.nn.functional.normalize(linear.weight.detach()).numpy()
    values = (directions[labels] + rng.normal(0, 0.25, (75, 6))).astype(np.float16)[None]
    held_out = Features(Path(), values, labels, np.arange(75), [], 5)
    grid = np.array([0.0, 0.5, 1.0, 2.0])
    scores = score_taus(linear, held_out, grid)
    for tau, score in zip(grid, scores, strict=True):
        logits = tau_normalized(linear, tau)(torch.from_numpy(values[0]).float())
        guesses = logits.argmax(dim=1).numpy()
        # The fifth species has no held-out photo and does not count.
        by_class = [(guesses[labels == j] == j).mean() for j in range(4)]
        assert score == pytest.approx(np.mean(by_class))
    assert scores.argmax() == 2


def test_a_chosen_tau_is_written_through_to_predictions_and_their_photos(
    run: Run, made: dict[str, Run], predicted: dict[str, PredictionFile]
) -> None:
    new, prediction = made["tau_norm"], predicted["tau_norm"]
    chosen = {"tau": "mean class accuracy on the held-out part of train"}
    assert weights_facts(new).chosen == chosen
    assert prediction.meta.chosen == chosen
    assert set(prediction.photos["role"]) == {"chosen on"}
    with pytest.raises(InputError, match="something was chosen"):
        inat.evaluate(prediction)
    lines = [orjson.loads(line) for line in new.metrics_path.read_bytes().splitlines()]
    grid = {line["tau"]: line["mean_class_accuracy"] for line in lines if line["kind"] == "tau"}
    assert list(grid) == [round(0.1 * k, 1) for k in range(21)]
    assert grid[new.facts.stage_two.tau] == max(grid.values())
    best = inat.train_stage_two(
        run.path, run.path.parent / "of-best", method="tau_norm", tau=1, checkpoint="best"
    )
    by = "mean class accuracy on the held-out part of train"
    assert weights_facts(best).chosen == {"epoch": by}


def test_a_tau_that_is_given_is_not_chosen_and_needs_no_held_out_part(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path / "run", world, **{"data.holdout": "none"})
    assert refusal(run, tmp_path / "out", method="tau_norm") == (
        f"{run.path}: nothing was held out (data.holdout none), so there are no photos to choose "
        "tau on; give --tau T"
    )
    new = inat.train_stage_two(run.path, tmp_path / "out", method="tau_norm", tau=0.7)
    assert "tau 0.7; the bias of the classifier is dropped" in capsys.readouterr().err
    assert weights_facts(new).chosen == {}
    assert torch.equal(
        weights(new)["classifier.weight"], tau_normalized(linear_of(run), 0.7).weight
    )


# --- ncm -------------------------------------------------------------------------------------


def test_ncm_guesses_the_nearest_mean_of_a_slow_loop() -> None:
    rng = np.random.default_rng(1)
    labels = np.array([0, 0, 0, 0, 1, 1, 3, 2, 2])
    values = (rng.normal(3, 1, (2, 9, 4)) + labels[:, None]).astype(np.float16)
    readable = np.arange(8)  # the last photo has no features
    head = nearest_mean_head(Features(Path(), values, labels, readable, [], 5))
    known = values[:, :8].astype(np.float64)
    centre = sum(known[view, photo] for view in range(2) for photo in range(8)) / 16
    means = {}
    for species in range(4):
        members = [known[v, n] - centre for v in range(2) for n in range(8) if labels[n] == species]
        means[species] = sum(x / math.sqrt((x * x).sum()) for x in members) / len(members)
    queries = rng.normal(4, 2, (30, 4))
    logits = head(torch.from_numpy(queries).float())
    for query, row in zip(queries, logits, strict=True):
        unit = (query - centre) / math.sqrt(((query - centre) ** 2).sum())
        distances = {j: math.sqrt(((unit - mean) ** 2).sum()) for j, mean in means.items()}
        assert row.argmax().item() == min(distances, key=lambda j: distances[j])
        for j, distance in distances.items():
            assert row[j].item() == pytest.approx(1 - distance**2, abs=1e-5)
        assert row[4].item() == -1e4  # a species without photos


# --- the new run -----------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_predictions_of_the_new_run_are_its_head_on_the_features(
    made: dict[str, Run], predicted: dict[str, PredictionFile], run: Run, method: str
) -> None:
    new, prediction = made[method], predicted[method]
    old = extractor_of(run)
    held_out = old.source.held_out
    assert held_out is not None
    features = torch.from_numpy(np.array(cached_features(old, held_out, 1).values[0])).float()
    with torch.inference_mode():
        logits = extractor_of(new).head(features)
    assert prediction.ids.tolist() == held_out.image_ids.tolist()
    np.testing.assert_allclose(
        prediction.logits.astype(np.float32), store(logits.numpy()), rtol=5e-3, atol=5e-3
    )


@pytest.mark.parametrize("method", METHODS)
def test_the_body_of_the_new_run_is_the_old_one_bit_for_bit(
    made: dict[str, Run], run: Run, method: str
) -> None:
    old, new = weights(run), weights(made[method])
    for name, tensor in new.items():
        if not name.startswith("classifier."):
            assert torch.equal(tensor, old[name]), name


def test_the_new_run_says_what_it_is(
    made: dict[str, Run], predicted: dict[str, PredictionFile], run: Run
) -> None:
    heads = {"crt": "linear", "lws": "scaled", "tau_norm": "linear", "ncm": "nearest_mean"}
    for method, head in heads.items():
        new = made[method]
        assert (new.config.model.head, new.config.model.freeze) == (head, "backbone")
        assert new.config.data == run.config.data
        assert (new.path / "environment.json").is_file()
        assert new.species.equals(run.species)
        facts = new.facts.stage_two
        assert (facts.run, facts.method) == (str(run.path), method)
        assert facts.checkpoint_sha256 == find_checkpoint(run).digest
        lines = [orjson.loads(line) for line in new.metrics_path.read_bytes().splitlines()]
        assert lines[-1]["kind"] == "validation"
        evaluation = inat.evaluate(predicted[method], chosen_here=True)
        assert evaluation.mean_class_accuracy.value == pytest.approx(
            lines[-1]["mean_class_accuracy"]
        )


def test_crt_carries_the_prior_of_its_draws_and_the_others_none_that_is_known(
    predicted: dict[str, PredictionFile], tmp_path: Path
) -> None:
    assert predicted["crt"].logits_prior == pytest.approx([0.25] * 4)
    notes = inat.adjust(predicted["crt"], tmp_path / "crt", tau=1).notes
    assert notes == ["this changes nothing: the logits carry a uniform prior already"]
    # 14 held-out photos are too few to show that lws has left the old head's prior.
    for method in ("lws", "tau_norm", "ncm"):
        prediction = predicted[method]
        assert prediction.logits_prior is None
        with pytest.raises(InputError, match="which prior its logits carry is not known"):
            inat.adjust(prediction, tmp_path / method, tau=1)


def test_a_stage_two_can_start_from_a_stage_two(made: dict[str, Run], tmp_path: Path) -> None:
    scaled = inat.train_stage_two(made["crt"].path, tmp_path / "a", method="lws", epochs=1)
    means = inat.train_stage_two(made["lws"].path, tmp_path / "b", method="ncm")
    assert (scaled.config.model.head, means.config.model.head) == ("scaled", "nearest_mean")
    assert refusal(made["lws"], tmp_path / "c", method="tau_norm") == (
        f"{made['lws'].path}: tau_norm starts from a linear head, and this one is scaled; "
        "use --method crt or ncm"
    )
    with pytest.raises(InputError) as caught:
        inat.predict(made["crt"].path, "val", checkpoint="best")
    assert str(caught.value) == (
        f"{made['crt'].path}: inat stage-two leaves no best checkpoint; use --checkpoint last"
    )


# --- refusals --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"method": "cart"},
            "--method: unknown name 'cart'; did you mean crt? "
            "valid: crt, geo_prior, lws, ncm, tau_norm",
        ),
        ({"method": "crt", "tau": 1.0}, "--tau is for tau_norm; crt has none"),
        (
            {"method": "geo_prior", "weight_decay": 1e-4},
            "--weight-decay is for crt and lws; geo_prior has none",
        ),
        (
            {"method": "ncm", "lr_per_256": 0.1},
            "--lr-per-256 is for crt, lws and geo_prior; ncm has none",
        ),
        ({"method": "tau_norm", "tau": -1.0}, "--tau -1 is not within 0 and 10"),
        (
            {"method": "ncm", "live": True},
            "--live is for crt and lws; ncm has none",
        ),
        (
            {"method": "tau_norm", "epochs": 3},
            "--epochs is for crt, lws and geo_prior; tau_norm has none",
        ),
        ({"method": "crt", "epochs": 0}, "--epochs: 0 is less than 1; give 1 or more"),
        ({"method": "crt", "batch_size": 0}, "--batch-size: 0 is less than 1; give 1 or more"),
        ({"method": "crt", "lr_per_256": 0.0}, "--lr-per-256: 0.0 is not above 0"),
        ({"method": "lws", "weight_decay": -1.0}, "--weight-decay: -1.0 is less than 0"),
        ({"method": "ncm", "feature_views": 0}, "--feature-views: 0 is not within 1 and 100"),
    ],
)
def test_an_option_that_makes_no_sense_is_refused_in_one_line(
    run: Run, tmp_path: Path, options: dict[str, Any], text: str
) -> None:
    assert refusal(run, tmp_path / "out", **options) == text
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unless_it_is_a_run_and_it_is_said(run: Run, tmp_path: Path) -> None:
    out = tmp_path / "out"
    inat.train_stage_two(run.path, out, method="ncm")
    assert refusal(run, out, method="ncm") == (
        f"{out}: there is a run already; give another --out, or --overwrite to throw it away"
    )
    inat.train_stage_two(run.path, out, method="tau_norm", tau=1, overwrite=True)
    assert Run(out).facts.stage_two.method == "tau_norm"
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.txt").write_text("x")
    assert refusal(run, tmp_path / "mine", method="ncm", overwrite=True) == (
        f"{tmp_path / 'mine'}: it is not empty and holds no run; give another --out"
    )
    for place in (run.path, run.path.parent):
        assert refusal(run, place, method="ncm", overwrite=True) == (
            f"{place}: holds the run {run.path}; give another --out"
        )


def test_a_run_without_a_checkpoint_is_refused(own_run: Run, tmp_path: Path) -> None:
    shutil.rmtree(own_run.path / "checkpoints")
    assert refusal(own_run, tmp_path / "out", method="crt") == (
        f"{own_run.path}: the run has no checkpoint yet; let its first epoch end"
    )
    assert refusal(Run(tmp_path / "none"), tmp_path / "out", method="crt") == (
        f"{tmp_path / 'none'}: no run (no config.yaml in it); inat train makes one"
    )


def test_training_does_not_go_on_with_a_run_of_stage_two(made: dict[str, Run]) -> None:
    new = made["crt"]
    with pytest.raises(InputError) as caught:
        inat.train(new.config, new.path)
    assert str(caught.value) == (
        f"{new.path}: the run there was made by inat stage-two; give another --run, or "
        "--overwrite to throw it away"
    )
    with pytest.raises(InputError) as caught:
        inat.train(made["ncm"].config, new.path)
    assert str(caught.value) == (
        "model.head nearest_mean is what inat stage-two leaves, and cannot be trained from the "
        "start; set model.head linear or cosine"
    )


# --- the command, and the frozen training that ends in the same place --------------------------


def test_the_verb_makes_the_run_and_says_what_comes_next(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["stage-two", str(run.path), "--method", "crt", "--out", str(out), "--epochs", "2"]
    assert main(words) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{out}: crt on {run.path}; next: inat predict {out} --split test\n"
    assert "2 steps are few (published on iNat-2018: 25,620)" in shown.err
    assert main(["stage-two", str(run.path), "--method", "crt", "--out", str(out)]) == 2
    assert main(["stage-two", str(run.path), "--method", "cart", "--out", str(out)]) == 2
    capsys.readouterr()
    assert main(["stage-two", "--help"]) == 0
    assert "From Python: inat.train_stage_two" in " ".join(capsys.readouterr().out.split())


def test_a_frozen_training_moves_the_classifier_alone_and_names_stage_two(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = {"model.freeze": "backbone", "model.drop_path": 0.1, "optim.ema_decay": 0.5}
    one, two = (
        weights(train_tiny(tmp_path / name, world, epochs=epochs, **settings))
        for name, epochs in (("one", 1), ("two", 2))
    )
    assert "inat stage-two ends in the same place" in capsys.readouterr().err
    for name, tensor in one.items():
        assert torch.equal(tensor, two[name]) is not name.startswith("classifier."), name


def test_a_frozen_training_sees_the_features_that_stage_two_keeps(
    world: Path, tmp_path: Path
) -> None:
    # Nothing is augmented, so that a photo has one view; dropout is on, and must not be used.
    whole = {"scale": [1, 1], "ratio": [1, 1], "crop_pct": 1, "flip": 0, "jitter": 0}
    settings = {f"transforms.{name}": value for name, value in whole.items()}
    settings |= {"model.freeze": "backbone", "model.drop_path": 0.1, "runtime.log_every": 1}
    run = train_tiny(tmp_path / "run", world, **settings, **{"data.holdout": "none"})
    first = orjson.loads(run.metrics_path.read_bytes().splitlines()[0])
    extractor = extractor_of(run)
    features = cached_features(extractor, extractor.source.trained, 1)
    sampler = build_sampler("instance", features.labels, 4)
    rows = epoch_order(sampler, len(features.labels), run.config.seed, 0)[:8]
    head = build_backbone(run.config.model, 4, run.config.seed).network.get_submodule("classifier")
    logits = head(torch.from_numpy(features.values[0, rows].astype(np.float32)))
    loss = torch.nn.functional.cross_entropy(logits, torch.from_numpy(features.labels[rows]))
    assert first["step"] == 1
    assert first["loss"] == pytest.approx(loss.item(), abs=1e-3)
