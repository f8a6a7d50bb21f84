"""The geo prior: places, network and loss against slow loops, its run, and the product rule."""

import math
import re
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pandas as pd
import pytest
import torch
from msgspec import structs
from predictions import make_prediction, restate
from safetensors.torch import load_file
from tiny_runs import train_tiny, weights_facts
from worlds import make_world

import inat
from inat.cli.app import main
from inat.core.errors import InputError, WorldError
from inat.core.files import read_json, write_json
from inat.dataset.locations import have_place, places_of
from inat.dataset.split import load_split
from inat.geo.network import GeoPrior, encode, log_presence
from inat.geo.training import (
    GeoRecipe,
    draw_epoch,
    n_steps,
    presence_loss,
    random_places,
    train_geo_prior,
)
from inat.posthoc.label_shift import estimate_label_shift
from inat.predictions.file import PredictionFile
from inat.predictions.meta import Adjustment
from inat.runs.metrics_log import MetricsLog
from inat.runs.run import Run

HOMES = [
    (-35.0, 150.0, "02-10"),
    (60.0, 10.0, "07-01"),
    (5.0, -60.0, "05-20"),
    (40.0, 178.0, "10-01"),
]
"""Latitude, longitude and day of the four species of the world."""


def write_places(world: Path) -> None:
    """Gives each photo a place and a date near its species' home; a few photos lack them."""
    rng = np.random.default_rng(0)
    for name in ("train", "val"):
        split = load_split(world, name)
        rows: list[dict[str, Any]] = []
        for image_id, label in zip(split.image_ids.tolist(), split.labels.tolist(), strict=True):
            lat, lon, day = HOMES[label]
            lat, lon = lat + rng.normal(0, 2), (lon + rng.normal(0, 2) + 180) % 360 - 180
            row = {"id": image_id, "lat": lat, "lon": lon, "date": f"2016-{day} 12:00:00+00:00"}
            rows.append(row)
        rows[0]["lat"] = rows[0]["lon"] = None
        rows[1]["date"] = None
        rows[2].update(lat=None, lon=None, date=None)
        write_json(world / f"{name}2018_locations.json", rows[:-1])  # the last is not listed


@pytest.fixture(scope="module")
def placed_world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    world = make_world(tmp_path_factory.mktemp("placed"), counts=(30, 12, 6, 3), n_val=4)
    write_places(world)
    return world


GEO: dict[str, Any] = {"method": "geo_prior", "epochs": 20, "batch_size": 8, "lr_per_256": 0.064}


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, placed_world: Path) -> Run:
    return train_tiny(tmp_path_factory.mktemp("runs") / "run", placed_world)


@pytest.fixture(scope="module")
def geo(run: Run) -> Run:
    return inat.train_stage_two(run.path, run.path.parent / "geo", **GEO)


@pytest.fixture(scope="module")
def presence(geo: Run) -> PredictionFile:
    return inat.predict(geo.path, "val")


def refusal(call: Any, *words: Any, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        call(*words, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# --- places ----------------------------------------------------------------------------------


def test_places_are_longitude_latitude_and_share_of_the_year_from_minus_1_to_1(
    tmp_path: Path,
) -> None:
    world = make_world(tmp_path, counts=(6, 2), n_val=1)
    ids = load_split(world).image_ids.tolist()
    day = 1 / 366
    given: list[tuple[dict[str, Any], list[float]]] = [
        ({"lat": 45, "lon": -90, "date": "2016-01-01 00:00:00+00:00"}, [-0.5, 0.5, -1]),
        ({"lat": -90, "lon": 180, "date": "2016-12-31"}, [1, -1, 1 - 2 * day]),
        # Of another time zone: in UTC the next year has begun.
        ({"lat": 9, "lon": 18, "date": "2015-12-31 20:00:00-04:00"}, [0.1, 0.1, -1]),
        ({"lat": 9, "lon": 18, "date": "2015-07-02T12:00:00Z"}, [0.1, 0.1, 0]),
        ({"lat": 9, "lon": 18, "date": None}, [0.1, 0.1, math.nan]),
        ({"lat": None, "lon": 18, "date": "2016-01-01"}, [math.nan, math.nan, -1]),
        ({"lat": 9, "lon": None, "date": "when it rained"}, [math.nan] * 3),
        ({}, [math.nan] * 3),
    ]
    rows = [{"id": i, **row} for i, (row, _) in zip(ids, given, strict=True)]
    write_json(world / "train2018_locations.json", rows)
    found = places_of(load_split(world))
    np.testing.assert_allclose(found, [expected for _, expected in given], atol=1e-6)
    assert found.dtype == np.float32
    assert have_place(found).tolist() == [True] * 5 + [False] * 3


def test_date_c_is_taken_where_it_is_given_and_the_date_elsewhere(tmp_path: Path) -> None:
    world = make_world(tmp_path, counts=(3,), n_val=1)
    ids = load_split(world).image_ids.tolist()
    rows = [
        {"id": ids[0], "lat": 0, "lon": 0, "date_c": 0.25},
        {"id": ids[1], "lat": 0, "lon": 0, "date_c": 0.75, "date": "2016-01-01"},
        {"id": ids[2], "lat": 0, "lon": 0, "date_c": None, "date": "2016-01-01"},
    ]
    write_json(world / "train2018_locations.json", rows)
    assert places_of(load_split(world))[:, 2].tolist() == [-0.5, 0.5, -1]


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("lat", -90.5, "the lat -90.5, which is not within -90 and 90"),
        ("lon", 200, "the lon 200, which is not within -180 and 180"),
        ("date_c", 1.5, "the date_c 1.5, which is not within 0 and 1"),
    ],
)
def test_a_place_that_is_not_on_the_globe_is_refused(
    tmp_path: Path, name: str, value: float, text: str
) -> None:
    world = make_world(tmp_path, counts=(3,), n_val=1)
    ids = load_split(world).image_ids.tolist()
    rows = [{"id": i, "lat": 0, "lon": 0, "date_c": 0} for i in ids]
    rows[1][name] = value
    write_json(world / "train2018_locations.json", rows)
    assert refusal(places_of, load_split(world)) == (
        f"{world}: the locations of train give image {ids[1]} {text}; mend it, or make it null"
    )


def test_a_split_without_locations_says_what_to_fetch(world: Path) -> None:
    assert refusal(places_of, load_split(world)) == (
        f"{world}: it lacks locations of train, which a geo prior needs (train2018_locations.json "
        "and val2018_locations.json); fetch them: inat data download inaturalist-2018 --only "
        "locations"
    )
    assert refusal(places_of, load_split(world, "test")) == (
        f"{world}: inaturalist-2018 gives no locations for its test photos, so a geo prior says "
        "nothing of them; predict val or holdout"
    )


# --- the network -----------------------------------------------------------------------------


def test_the_encoding_is_sin_and_cos_of_pi_x_and_goes_round() -> None:
    places = torch.tensor([[0.3, -0.2, 0.9], [-1.0, 0.0, -1.0], [1.0, 0.0, 1.0]])
    found = encode(places)
    for row, place in zip(found.tolist(), places.tolist(), strict=True):
        by_hand = [math.sin(math.pi * x) for x in place] + [math.cos(math.pi * x) for x in place]
        assert row == pytest.approx(by_hand, abs=1e-6)
    assert found[1].tolist() == pytest.approx(found[2].tolist(), abs=1e-6)


def slow_logits(state: dict[str, np.ndarray], place: list[float]) -> np.ndarray:
    """The network of the paper, a matrix at a time, without dropout."""
    angles = [math.pi * x for x in place]
    hidden = np.array([*map(math.sin, angles), *map(math.cos, angles)])
    hidden = np.maximum(state["enter.weight"] @ hidden + state["enter.bias"], 0)
    for block in range(4):
        w1, b1, w2, b2 = (
            state[f"blocks.{block}.{layer}.{kind}"]
            for layer in ("first", "second")
            for kind in ("weight", "bias")
        )
        inner = np.maximum(w1 @ hidden + b1, 0)
        hidden = hidden + np.maximum(w2 @ inner + b2, 0)
    return state["classes.weight"] @ hidden


def test_the_network_is_the_paper_s() -> None:
    torch.manual_seed(0)
    network = GeoPrior(7)
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    assert n_parameters == (6 * 256 + 256) + 8 * (256 * 256 + 256) + 7 * 256
    assert [m.p for m in network.modules() if isinstance(m, torch.nn.Dropout)] == [0.5] * 4
    state = {name: tensor.double().numpy() for name, tensor in network.state_dict().items()}
    places = 2 * torch.rand(5, 3) - 1
    logits = network.eval()(places)
    for row, place in zip(logits, places.tolist(), strict=True):
        np.testing.assert_allclose(row.detach(), slow_logits(state, place), atol=1e-4)


def test_log_presence_without_a_date_is_that_of_the_mean_over_the_year_and_without_a_place_0() -> (
    None
):
    torch.manual_seed(0)
    network = GeoPrior(5)
    nan = math.nan
    places = torch.tensor([[0.1, 0.2, 0.3], [0.1, 0.2, nan], [nan, nan, 0.3], [nan, nan, nan]])
    found = log_presence(network, places)
    assert not network.training
    logits = network(places[:1])[0].tolist()
    assert found[0].tolist() == pytest.approx([-math.log(1 + math.exp(-z)) for z in logits])
    for species in range(5):
        presences = [
            network(torch.tensor([[0.1, 0.2, -1 + month / 6]]))[0, species].sigmoid().item()
            for month in range(12)
        ]
        assert found[1, species].item() == pytest.approx(math.log(sum(presences) / 12), rel=1e-5)
    assert found[2:].tolist() == [[0.0] * 5] * 2


# --- loss, places at random, draws -----------------------------------------------------------


def test_the_loss_is_the_presence_only_objective_of_a_slow_loop() -> None:
    rng = np.random.default_rng(0)
    here, elsewhere = rng.normal(0, 3, (2, 6, 4))
    here[0, 0], elsewhere[1, 1] = -40, 40  # log(p + 1e-5) keeps these finite
    labels = [0, 1, 1, 3, 2, 0]
    gain = 0.0
    for row, label in enumerate(labels):
        for species in range(4):
            s, r = (1 / (1 + math.exp(-z[row, species])) for z in (here, elsewhere))
            gain += 4 * math.log(s + 1e-5) if species == label else math.log(1 - s + 1e-5)
            gain += math.log(1 - r + 1e-5)
    found = presence_loss(torch.from_numpy(here), torch.from_numpy(elsewhere), torch.tensor(labels))
    assert found.item() == pytest.approx(-gain / (6 * 4))


def test_random_places_are_uniform_on_the_sphere_and_over_the_year() -> None:
    torch.manual_seed(0)
    lon, lat, date = random_places(40_000).numpy().T
    for values in (lon, date, np.sin(lat * math.pi / 2)):
        assert np.abs(values).max() <= 1
        np.testing.assert_allclose(np.histogram(values, 10, (-1, 1))[0] / 40_000, 0.1, atol=0.006)


def test_an_epoch_draws_at_most_100_photos_a_species_none_twice_and_others_the_next_time() -> None:
    labels = np.random.default_rng(0).permutation(np.repeat([0, 1, 3], (150, 100, 4)))
    first, again, second = (
        draw_epoch(labels, 7, 0),
        draw_epoch(labels, 7, 0),
        draw_epoch(labels, 7, 1),
    )
    assert np.bincount(labels[first]).tolist() == [100, 100, 0, 4]
    assert len(np.unique(first)) == 204
    assert first.tolist() == again.tolist()
    assert set(first) != set(second)
    assert not (np.diff(labels[first]) >= 0).all()  # shuffled, not species by species
    recipe = GeoRecipe(epochs=3, batch_size=50, learning_rate=1e-3, seed=0)
    assert n_steps(labels, recipe) == 3 * 5


def test_training_is_adam_on_that_loss_with_the_published_decay(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    places = rng.uniform(-1, 1, (10, 3)).astype(np.float32)
    labels = rng.integers(0, 3, 10)
    recipe = GeoRecipe(epochs=3, batch_size=4, learning_rate=1e-3, seed=5)
    log = MetricsLog(tmp_path / "metrics.jsonl")
    found = train_geo_prior(places, labels, 3, recipe, torch.device("cpu"), log)
    log.close()
    torch.manual_seed(5)
    network = GeoPrior(3).train()
    optimizer = torch.optim.Adam(network.parameters())
    for epoch in range(3):
        order = draw_epoch(labels, 5, epoch)
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * 0.98**epoch
        for part in (order[:4], order[4:8], order[8:]):
            both = torch.cat([torch.from_numpy(places[part]), random_places(len(part))])
            here, elsewhere = network(both).chunk(2)
            optimizer.zero_grad()
            presence_loss(here, elsewhere, torch.from_numpy(labels[part])).backward()
            optimizer.step()
    for name, tensor in network.state_dict().items():
        torch.testing.assert_close(found.state_dict()[name], tensor)
    lines = [orjson.loads(line) for line in (tmp_path / "metrics.jsonl").read_bytes().splitlines()]
    assert [(line["epoch"], line["step"]) for line in lines] == [(1, 3), (2, 6), (3, 9)]
    assert [line["learning_rate"] for line in lines] == pytest.approx([1e-3, 9.8e-4, 9.604e-4])


# --- the run and its predictions -------------------------------------------------------------


def test_the_run_learns_from_the_photos_with_a_place_that_were_trained_on(
    run: Run, geo: Run, capsys: pytest.CaptureFixture[str]
) -> None:
    facts = geo.facts.stage_two
    assert facts is not None
    part = places_of(load_split(run.config.data.root or Path()))  # 51 photos, held-out ones too
    assert facts.n_photos is not None
    assert facts.n_without_place is not None
    assert facts.n_photos + facts.n_without_place < len(part)
    assert facts.n_without_place <= int((~have_place(part)).sum()) == 3
    assert facts.learning_rate == pytest.approx(0.064 * 8 / 256)
    assert (facts.run, facts.method) == (str(run.path), "geo_prior")
    assert weights_facts(geo).logits_prior is None
    assert geo.config.data == run.config.data
    assert geo.species.equals(run.species)
    lines = [orjson.loads(line) for line in geo.metrics_path.read_bytes().splitlines()]
    assert [line["kind"] for line in lines] == ["train"] * 20 + ["validation"]
    assert lines[-1]["top1"] > 0.9


def test_the_same_seed_gives_the_same_weights_and_leaves_torch_s_generator(
    run: Run, geo: Run, tmp_path: Path
) -> None:
    torch.manual_seed(5)
    generator = torch.get_rng_state()
    again = inat.train_stage_two(run.path, tmp_path / "again", **GEO)
    assert torch.equal(torch.get_rng_state(), generator)
    first, second = (
        load_file(made.checkpoint("last") / "model.safetensors") for made in (geo, again)
    )
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = inat.train_stage_two(run.path, tmp_path / "other", **{**GEO, "epochs": 1}, seed=1)
    third = load_file(other.checkpoint("last") / "model.safetensors")
    assert not torch.equal(first["enter.weight"], third["enter.weight"])


def test_a_geo_prior_is_predicted_like_any_run_and_needs_no_photo(
    presence: PredictionFile, geo: Run, placed_world: Path
) -> None:
    split = load_split(placed_world, "val")
    places = places_of(split)
    placed = have_place(places)
    assert placed.sum() == 13  # two lack it, the last is not listed
    assert presence.ids.tolist() == split.image_ids.tolist()
    assert presence.meta.logits == "log presence"
    assert presence.logits_prior is None
    assert (presence.meta.n_without_place, presence.meta.n_without_date) == (3, 3)
    state = load_file(geo.checkpoint("last") / "model.safetensors")
    weights = {name: tensor.double().numpy() for name, tensor in state.items()}
    for row, place in zip(presence.logits, places.tolist(), strict=True):
        if math.isnan(place[0]):
            assert row.tolist() == [0.0] * 4
        elif not math.isnan(place[2]):
            logs = [-math.log1p(math.exp(-z)) for z in slow_logits(weights, place)]
            np.testing.assert_allclose(row, [z - max(logs) for z in logs], rtol=5e-3, atol=5e-3)
    assert (presence.logits.argmax(axis=1) == presence.labels)[placed].mean() > 0.9
    assert set(presence.photos["role"]) == {"unseen"}
    assert set(inat.predict(geo.path, "holdout").photos["role"]) == {"held out"}
    assert inat.predict(geo.path, "val").path == presence.path


def test_what_a_geo_prior_cannot_do_is_one_line(geo: Run, run: Run, tmp_path: Path) -> None:
    root = run.config.data.root
    assert refusal(inat.predict, geo.path, "test") == (
        f"{root}: inaturalist-2018 gives no locations for its test photos, so a geo prior says "
        "nothing of them; predict val or holdout"
    )
    text = (
        f"{geo.path}: is a geo prior, which sees places and no photos; give the run that it was "
        f"made from ({run.path})"
    )
    assert refusal(inat.predict, geo.path, "val", name="x", rank=0, world_size=2) == (
        f"{geo.path}: one process predicts a geo prior, in seconds, and not 2; call it without "
        "--world-size or torchrun"
    )
    assert refusal(inat.predict_photos, geo.path, (root or Path()) / "test2018") == text
    assert refusal(inat.train_stage_two, geo.path, tmp_path / "x", method="crt") == text
    assert [path.name for path in tmp_path.iterdir()] == [".x.lock"]


def test_data_without_a_place_is_refused_and_leaves_nothing(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", counts=(6, 3))
    plain = train_tiny(tmp_path / "run", world, **{"data.holdout": "none"})
    text = refusal(inat.train_stage_two, plain.path, tmp_path / "out", method="geo_prior")
    assert text.startswith(f"{world}: it lacks locations of train, which a geo prior needs")
    write_json(world / "train2018_locations.json", [])
    text = refusal(inat.train_stage_two, plain.path, tmp_path / "out", method="geo_prior")
    assert text == f"{world}: none of its 9 training photos has a place"
    assert not (tmp_path / "out").exists()


def test_places_without_dates_are_enough(tmp_path: Path) -> None:
    world = make_world(tmp_path / "world", counts=(6, 3))
    rows = [
        {"id": i, "lat": 50 - 100 * label, "lon": 10, "date": None}
        for name in ("train", "val")
        for i, label in zip(
            load_split(world, name).image_ids.tolist(),
            load_split(world, name).labels.tolist(),
            strict=True,
        )
    ]
    for name in ("train", "val"):
        write_json(world / f"{name}2018_locations.json", rows)
    plain = train_tiny(tmp_path / "run", world, **{"data.holdout": "none"})
    made = inat.train_stage_two(plain.path, tmp_path / "geo", **GEO)
    prediction = inat.predict(made.path, "val")
    assert (prediction.logits.argmax(axis=1) == prediction.labels).all()


def test_a_loss_that_is_not_finite_stops_it_and_leaves_nothing(run: Run, tmp_path: Path) -> None:
    with pytest.raises(WorldError) as caught:
        inat.train_stage_two(run.path, tmp_path / "out", **{**GEO, "lr_per_256": 1e38})
    assert str(caught.value) == "the loss of the geo prior is nan; give a lower --lr-per-256"
    assert [path.name for path in tmp_path.iterdir()] == [".out.lock"]


# --- the product rule ------------------------------------------------------------------------

LOGITS = np.random.default_rng(1).normal(0, 2, (5, 3)).astype(np.float32)
PRESENCE = np.array(
    [[-1, -8, -3], [-0.1, -0.2, -9], [0, 0, 0], [-5, -0.01, -7], [-40, -41, -2]], np.float32
)
IDS = [11, 18, 25, 32, 39]


def make_presence(path: Path, logits: Any = PRESENCE, **options: Any) -> PredictionFile:
    """A prediction file as a geo prior leaves it."""
    made = make_prediction(path, logits, logits_prior=None, **options)
    return restate(made, logits="log presence", checkpoint_sha256="abc")


def test_log_presence_is_added_and_photos_without_a_place_keep_their_logits(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS)
    geo = make_presence(tmp_path / "g")
    found = inat.adjust(prediction, tmp_path / "out", geo=geo.path)
    notes = found.notes
    for row, photo, place in zip(found.logits, prediction.logits, geo.logits, strict=True):
        summed = [float(z) + float(s) for z, s in zip(photo, place, strict=True)]
        assert row.tolist() == [float(np.float16(z - max(summed))) for z in summed]
        # The same as probabilities times presence, scaled to sum to 1.
        product = np.exp(photo.astype(float)) * np.exp(place.astype(float))
        shares = np.exp(row.astype(float)) / np.exp(row.astype(float)).sum()
        np.testing.assert_allclose(shares, product / product.sum(), rtol=5e-3, atol=1e-4)
    assert found.logits[2].tolist() == prediction.logits[2].tolist()
    assert notes[0] == "1 of 5 photos have no place and keep their own logits"
    power = found.meta.adjusted[0].presence_power
    assert notes[1].startswith(f"presence grows as the {power:.2f}th power of a species' training")
    assert found.logits_prior == pytest.approx(prediction.logits_prior)
    assert found.meta.adjusted == [
        Adjustment(
            of=str(prediction.path),
            geo=str(geo.path),
            geo_checkpoint_sha256="abc",
            n_without_place=1,
            presence_power=power,
        )
    ]
    assert structs.replace(found.meta, adjusted=[]) == prediction.meta


def test_tau_before_and_after_the_geo_prior_give_the_same(tmp_path: Path) -> None:
    prediction, geo = make_prediction(tmp_path / "p", LOGITS), make_presence(tmp_path / "g")
    one = inat.adjust(prediction, tmp_path / "a", tau=1.0)
    one = inat.adjust(one, tmp_path / "b", geo=geo)
    two = inat.adjust(prediction, tmp_path / "c", geo=geo)
    two = inat.adjust(two, tmp_path / "d", tau=1.0)
    np.testing.assert_allclose(one.logits, two.logits, rtol=2e-3, atol=2e-2)
    assert one.logits_prior == pytest.approx(two.logits_prior)


def test_the_class_prior_that_presence_brings_is_measured_and_recorded(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    counts = np.array([2, 5, 12, 40, 100, 300])
    likelihood = rng.normal(0, 2, (3000, 6))
    likelihood[7] = 0  # a photo without a place
    for power in (0.0, 0.2, 1.0):
        presence = likelihood + power * np.log(counts) * (likelihood != 0)
        photos = make_prediction(
            tmp_path / f"p{power}", rng.normal(size=(3000, 6)), train_counts=counts.tolist()
        )
        geo = make_presence(tmp_path / f"g{power}", presence, train_counts=counts.tolist())
        made = inat.adjust(photos, tmp_path / f"out{power}", geo=geo)
        notes = made.notes
        measured = made.meta.adjusted[0].presence_power
        # Saturation takes a part of it off.
        assert 0.6 * power - 0.02 < measured < power + 0.02
        assert f"as the {measured:.2f}th power" in notes[1]
    nowhere = make_presence(tmp_path / "nowhere", np.zeros((3000, 6)))
    made = inat.adjust(photos, tmp_path / "out", geo=nowhere)
    notes = made.notes
    assert made.meta.adjusted[0].presence_power is None
    assert len(notes) == 1


def test_photos_are_matched_by_their_id(tmp_path: Path) -> None:
    prediction = make_prediction(tmp_path / "p", LOGITS, ids=IDS)
    straight = make_presence(tmp_path / "g", ids=IDS)
    order = [3, 0, 4, 2, 1]
    shuffled = make_presence(tmp_path / "s", PRESENCE[order], ids=[IDS[k] for k in order])
    first = inat.adjust(prediction, tmp_path / "a", geo=straight)
    second = inat.adjust(prediction, tmp_path / "b", geo=shuffled)
    assert (first.logits == second.logits).all()


def test_a_photo_that_either_model_was_trained_on_counts_as_trained_on(tmp_path: Path) -> None:
    ours = ["unseen", "held out", "trained on", "held out", "chosen on"]
    theirs = ["unseen", "trained on", "held out", "unseen", "held out"]
    prediction = make_prediction(tmp_path / "p", LOGITS, role=ours, chosen={"tau": "by eye"})
    geo = make_presence(tmp_path / "g", role=theirs)
    found = inat.adjust(prediction, tmp_path / "out", geo=geo)
    assert found.photos["role"].tolist() == [
        "unseen", "trained on", "trained on", "held out", "chosen on"
    ]  # fmt: skip
    assert found.meta.chosen == {"tau": "by eye"}
    pd.testing.assert_frame_equal(
        found.photos.drop(columns="role"), prediction.photos.drop(columns="role")
    )


def test_what_is_no_geo_prior_of_these_photos_is_refused_in_one_line(tmp_path: Path) -> None:
    prediction, geo = make_prediction(tmp_path / "p", LOGITS), make_presence(tmp_path / "g")
    out = tmp_path / "out"

    def text(of: PredictionFile, **options: Any) -> str:
        return refusal(inat.adjust, of, out, **options)

    assert text(prediction, geo=prediction.path.parent / "none").endswith(
        "none: no prediction file (a folder with logits.npy and meta.json)"
    )
    other = make_prediction(tmp_path / "q", LOGITS)
    assert text(prediction, geo=other) == (
        f"{other.path}: is no prediction of a geo prior (inat stage-two RUN --method geo_prior, "
        "then inat predict)"
    )
    assert text(geo, geo=geo) == (
        f"{geo.path}: is of a geo prior itself; give a prediction of photos, and the geo prior's "
        "with --geo"
    )
    ids = make_presence(tmp_path / "ids", ids=[11, 18, 25, 32, 40])
    assert text(prediction, geo=ids) == (
        f"{ids.path}: its photos are not those of {prediction.path} (2 stand in one alone; "
        "first: 39); give predictions of one split"
    )
    fewer = make_presence(tmp_path / "fewer", PRESENCE[:4])
    assert "(1 stand in one alone; first: 39)" in text(prediction, geo=fewer)
    species = make_presence(tmp_path / "species", category_ids=[2, 10, 29])
    assert text(prediction, geo=species) == (
        f"{species.path}: its 3 species are not the 3 of {prediction.path}; give predictions of "
        "runs on one data set"
    )
    for options in ({"tau": 1.0}, {"target": "uniform"}, {"from_prior": "counts"}):
        assert text(prediction, geo=geo, **options) == (
            "--geo goes alone; adjust once more for --tau or --target"
        )
    assert not out.exists()
    once = inat.adjust(prediction, tmp_path / "once", geo=geo)
    assert text(once, geo=geo) == (
        f"{once.path}: a geo prior was added already, and a second would count the places twice; "
        "adjust the prediction that it was made from"
    )
    assert refusal(inat.adjust, prediction, geo.path, geo=geo, overwrite=True) == (
        f"{geo.path}: adjust does not write over its input; give another --out"
    )


def placed_photos(folder: Path, split: str, digest: str = "abc") -> PredictionFile:
    """300 photos of one run, its geo prior added; another number of them has no place each."""
    held, n_photos = split == "holdout", 300
    rng = np.random.default_rng(held)
    labels = rng.integers(0, 3, n_photos)
    logits = rng.normal(0, 1, (n_photos, 3)) + 2 * np.eye(3)[labels]
    presence = rng.normal(0, 1, (n_photos, 3)) + np.eye(3)[labels]
    presence[: 5 + held] = 0
    first = 10_000 * (1 + held)
    of = {"split": split, "ids": range(first, first + n_photos)}
    role = "held out" if held else "unseen"
    known = labels.tolist() if held else None
    photos = make_prediction(folder / split, logits, known, role=role, **of)
    geo = make_presence(folder / f"{split}-geo", presence, role=role, **of)
    restate(geo, checkpoint_sha256=digest)
    return inat.adjust(photos, folder / f"{split}-placed", geo=geo.path)


def test_after_a_geo_prior_the_target_is_estimated_with_calibration(tmp_path: Path) -> None:
    test, held = placed_photos(tmp_path, "test"), placed_photos(tmp_path, "holdout")
    assert [file.meta.adjusted[0].n_without_place for file in (test, held)] == [5, 6]
    made = inat.adjust(test, tmp_path / "out", target="estimated", fit=held)
    notes = made.notes
    by_hand = estimate_label_shift(
        test.logits,
        np.array([50, 49, 48]) / 147,
        held_out=(held.logits, held.labels),
    )
    assert made.meta.logits_prior == by_hand.prior.tolist()
    assert notes[0].startswith(f"calibrated on the 300 photos of {held.path}: temperature ")


def test_calibration_photos_with_another_geo_prior_are_refused(tmp_path: Path) -> None:
    test = placed_photos(tmp_path, "test")
    held = placed_photos(tmp_path, "holdout", digest="def")
    assert refusal(inat.adjust, test, tmp_path / "out", target="estimated", fit=held) == (
        f"{held.path}: its history of adjustments is not that of {test.path}; calibrate on a "
        "prediction of the same model, made and adjusted in the same way"
    )


def test_a_second_geo_prior_is_refused_for_an_ensemble_whose_members_had_one(
    tmp_path: Path,
) -> None:
    geo = make_presence(tmp_path / "g")
    plain = [make_prediction(tmp_path / f"p{i}", LOGITS, run=f"runs/{i}") for i in range(2)]
    placed = inat.adjust(plain[0], tmp_path / "placed", geo=geo)
    once = inat.ensemble([plain[1], placed], tmp_path / "once")
    nested = inat.ensemble([plain[0], once], tmp_path / "nested")
    for made in (once, nested):
        assert refusal(inat.adjust, made, tmp_path / "twice", geo=geo) == (
            f"{made.path}: a geo prior was added to a member already, and a second would count the "
            "places twice; make the ensemble of members without one"
        )
    without = inat.ensemble(plain, tmp_path / "without")
    found = inat.adjust(without, tmp_path / "first", geo=geo)
    summed = without.logits.astype(float) + geo.logits.astype(float)
    below = summed - summed.max(axis=1, keepdims=True)
    np.testing.assert_allclose(found.logits, below, rtol=2e-3, atol=2e-3)


def test_a_geo_prior_is_no_member_of_an_ensemble(tmp_path: Path) -> None:
    prediction, geo = make_prediction(tmp_path / "p", LOGITS), make_presence(tmp_path / "g")
    for members in ([prediction, geo], [geo, prediction]):
        assert refusal(inat.ensemble, members, tmp_path / "out", from_prior="uniform") == (
            f"{geo.path}: is of a geo prior, whose log presence is added to logits and not "
            "averaged with them; add it to the ensemble with inat adjust --geo"
        )
    assert not (tmp_path / "out").exists()


# --- the commands ----------------------------------------------------------------------------


def test_the_verbs_lead_from_places_to_an_evaluation(
    run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    geo, val = tmp_path / "geo", run.prediction("val")
    words = ["stage-two", str(run.path), "--method", "geo_prior", "--out", str(geo)]
    assert main([*words, "--epochs", "2"]) == 0
    shown = capsys.readouterr()
    assert shown.out == f"{geo}: geo_prior on {run.path}; next: inat predict {geo} --split val\n"
    assert re.search(r"geo prior  of the places of \d+ photos of .*/run; \d photos? ", shown.err)
    assert "2 steps are few (published on iNat-2018: 7,740)" in shown.err
    assert "by place and date alone, held out: top-1" in shown.err
    facts = read_json(geo / "model.json")["stage_two"]
    assert (facts["batch_size"], facts["learning_rate"]) == (1024, pytest.approx(5e-4))
    assert main(["predict", str(geo), "--split", "val"]) == 0
    assert main(["predict", str(run.path), "--split", "val"]) == 0
    out = str(tmp_path / "val-geo")
    assert main(["adjust", str(val), "--geo", str(geo / "predictions/val"), "--out", out]) == 0
    assert "3 of 16 photos have no place and keep their own logits" in capsys.readouterr().out
    assert main(["evaluate", out]) == 0
    capsys.readouterr()
    for verb in ("stage-two", "adjust"):
        assert main([verb, "--help"]) == 0
        text = capsys.readouterr().out.replace("│", " ")  # the frame of the list of options
        assert "The 2018 test set has no locations" in " ".join(text.split())
