"""What a training is going to do with the long tail: its draws, its loss, and the class prior that
its logits then carry, up to the prediction file."""

import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
from tiny_runs import weights_facts
from worlds import category_id, make_world

import inat
from inat.config.reading import build
from inat.config.schema import Config
from inat.config.values import merge
from inat.core.errors import InputError
from inat.core.files import read_json
from inat.losses.base import Loss
from inat.runs.run import Run
from inat.training.plan import StagePlan, make_plan

COUNTS = np.array([30, 8, 3, 2])  # of the world
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 8,
    "optim.warmup_epochs": 0.5,
    "data.workers": 0,
    "data.holdout": "none",
    "transforms.image_size": 32,
    "model.backbone": "test_efficientnet",
    "model.weights": "none",
}


def config_of(world: Path, **fields: Any) -> Config:
    return build(merge({}, {**SETTINGS, "data.root": str(world), **fields}), "test")


def plan_of(world: Path, **fields: Any) -> StagePlan:
    return make_plan(config_of(world, **fields)).stages[0]


def trained(world: Path, run: Path, **fields: Any) -> Run:
    return inat.train(config_of(world, **{"sampler.epoch_size": 16, **fields}), run)


def share(weights: Any) -> Any:
    return pytest.approx(np.array(weights, float) / np.sum(weights), rel=1e-9)


def drawn_by(name: str, **fields: Any) -> dict[str, Any]:
    return {"sampler.name": name, **fields}


def lost_by(name: str, **fields: Any) -> dict[str, Any]:
    return {"loss.name": name, **{f"loss.{key}": value for key, value in fields.items()}}


EVEN = np.ones(4)
N = COUNTS
EFFECTIVE = np.array([(1 - 0.9) / (1 - 0.9**n) for n in (30, 8, 3, 2)])


@pytest.mark.parametrize(
    ("fields", "left"),
    [
        (lost_by("ce"), N),
        (lost_by("ce", class_weights="inverse"), EVEN),
        (lost_by("ce", class_weights="effective_number", beta=0.9), EFFECTIVE * N),
        (lost_by("ce", class_weights="inverse", after="50%"), None),
        (lost_by("logit_adjusted"), EVEN),
        (lost_by("logit_adjusted", tau=0.5), N**0.5),
        (lost_by("logit_adjusted", tau=2.0), N**-1.0),
        (lost_by("balanced_softmax"), EVEN),
        (lost_by("focal"), None),
        (lost_by("seesaw"), None),
        (lost_by("balanced_bce"), None),
        ({**lost_by("ldam"), "model.head": "cosine"}, None),
        (drawn_by("class_balanced"), EVEN),
        (drawn_by("class_balanced_cycling"), EVEN),
        (drawn_by("square_root"), N**0.5),
        (drawn_by("effective_number", **{"sampler.beta": 0.9}), EFFECTIVE * N),
        (
            drawn_by("repeat_factor", **{"sampler.threshold": 12 / 43}),
            [30, 8 * 1.5**0.5, 3 * 2, 2 * 6**0.5],
        ),
        (drawn_by("progressive"), None),
        (drawn_by("square_root", **{"sampler.after": "50%"}), None),
        ({**drawn_by("square_root"), **lost_by("logit_adjusted")}, EVEN),
        ({**drawn_by("square_root"), **lost_by("logit_adjusted", tau=0.5)}, N**0.25),
        (
            {**drawn_by("square_root"),
             **lost_by("logit_adjusted", prior="counts", correct_twice=True)}, N**-0.5,
        ),
        (
            {**drawn_by("square_root"),
             **lost_by("ce", class_weights="inverse", correct_twice=True)}, N**-0.5,
        ),
    ],
)  # fmt: skip
def test_the_logits_carry_what_the_loss_leaves_of_the_draws_or_nothing_that_is_known(
    world: Path, fields: dict[str, Any], left: Any
) -> None:
    prior = plan_of(world, **fields).logits_prior
    assert prior is None if left is None else prior == share(left)


def test_the_draws_prior_is_that_of_the_photos_trained_on(world: Path) -> None:
    plan = plan_of(world, **{"data.holdout": "0.3"})
    assert plan.trained.class_counts.sum() < COUNTS.sum()
    assert plan.draws_prior == share(plan.trained.class_counts)
    assert plan_of(world, **drawn_by("progressive")).draws_prior is None


def test_an_epoch_of_repeat_factor_has_the_repeats_unless_the_config_says_otherwise(
    world: Path,
) -> None:
    # threshold x N / n = 120 / n: 4, 15, 40 and 60, so that r is their root.
    fields = drawn_by("repeat_factor", **{"sampler.threshold": 120 / 43})
    expected = sum(n * (120 / n) ** 0.5 for n in (30, 8, 3, 2))
    assert plan_of(world, **fields).epoch_size == round(expected) == 125
    assert plan_of(world, **fields).steps_per_epoch == 125 // 8
    assert plan_of(world, **fields, **{"sampler.epoch_size": 50}).epoch_size == 50
    assert plan_of(world).epoch_size == 43


# --- priors from a file ----------------------------------------------------------------------


def prior_file(path: Path, priors: dict[int, float]) -> Path:
    lines = ["category_id,prior", *(f"{key},{value}" for key, value in priors.items())]
    path.write_text("\n".join(lines) + "\n")
    return path


def test_a_prior_from_a_file_is_taken_off_and_leaves_the_rest(world: Path, tmp_path: Path) -> None:
    weights = [4, 3, 2, 1]
    path = prior_file(
        tmp_path / "field.csv", {category_id(label): w for label, w in enumerate(weights)}
    )
    plan = plan_of(world, **lost_by("logit_adjusted", prior=str(path)))
    assert plan.loss_prior == share(weights)
    assert plan.logits_prior == share(COUNTS / np.array(weights))


def test_a_run_keeps_the_digest_of_its_prior_s_file_and_is_not_gone_on_with_by_another(
    world: Path, tmp_path: Path
) -> None:
    def write(*weights: float) -> Path:
        return prior_file(
            tmp_path / "field.csv", {category_id(n): w for n, w in enumerate(weights)}
        )

    path = write(1, 1, 1, 1)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    fields = {**lost_by("logit_adjusted", prior=str(path)), "sampler.epoch_size": 16, "epochs": 1}
    config, run = config_of(world, **fields), tmp_path / "run"
    assert inat.train(config, run).facts.loss_prior_sha256 == digest
    before = {file: file.read_bytes() for file in run.rglob("*") if file.is_file()}
    write(97, 1, 1, 1)
    for resume in (False, True):
        with pytest.raises(InputError) as caught:
            inat.train(config, run, resume=resume)
        assert str(caught.value) == (
            f"{run}: the run there was trained with another prior than {path} holds now "
            "(loss.prior); put back what was there, give another --run, or --overwrite to throw "
            "the run away"
        )
    assert {file: file.read_bytes() for file in run.rglob("*") if file.is_file()} == before
    write(1, 1, 1, 1)
    inat.train(config, run)  # trained already
    write(97, 1, 1, 1)
    again = inat.train(config, run, overwrite=True)
    assert again.facts.loss_prior_sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    assert weights_facts(again).logits_prior == share(COUNTS / np.array([97, 1, 1, 1]))


def test_a_run_of_an_older_version_says_no_digest_of_its_prior_and_is_gone_on_with(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = prior_file(tmp_path / "field.csv", {category_id(label): 1 for label in range(4)})
    fields = {**lost_by("logit_adjusted", prior=str(path)), "epochs": 1}
    run = trained(world, tmp_path / "run", **fields)
    facts = read_json(run.path / "model.json")
    older = {key: value for key, value in facts.items() if key != "loss_prior_sha256"}
    (run.path / "model.json").write_bytes(orjson.dumps(older))
    capsys.readouterr()
    trained(world, run.path, **fields)
    assert capsys.readouterr().err == (
        f"{run.path}: this config is trained already; --overwrite trains it again\n"
    )


def test_a_prior_s_file_counts_where_a_loss_of_any_stage_takes_it_off(
    world: Path, tmp_path: Path
) -> None:
    one, other = (
        prior_file(tmp_path / name, {category_id(label): label + weight for label in range(4)})
        for name, weight in (("one.csv", 1), ("other.csv", 2))
    )
    digests = [hashlib.sha256(path.read_bytes()).hexdigest() for path in (one, other)]
    assert plan_of(world).loss_prior_sha256 is None
    assert plan_of(world, **lost_by("logit_adjusted")).loss_prior_sha256 is None
    assert plan_of(world, **lost_by("ce", prior=str(one))).loss_prior_sha256 is None
    of_one = lost_by("balanced_softmax", prior=str(one))
    assert plan_of(world, **of_one).loss_prior_sha256 == digests[0]
    stages = (f"{{epochs: 1, loss: {{prior: {other}}}}}", f"{{epochs: 1, loss: {{prior: {one}}}}}")
    plan = make_plan(config_of(world, stages=stages, **of_one))
    assert [stage.loss_prior_sha256 for stage in plan.stages] == [" ".join(digests)] * 3


def test_a_prior_that_is_no_file_or_of_other_species_is_refused(
    world: Path, tmp_path: Path
) -> None:
    with pytest.raises(InputError) as caught:
        plan_of(world, **lost_by("logit_adjusted", prior="count"))
    assert str(caught.value) == (
        "loss.prior: 'count' is neither draws nor counts, nor a file; give a CSV category_id,prior"
    )
    path = prior_file(tmp_path / "other.csv", {category_id(0): 1.0})
    with pytest.raises(InputError) as caught:
        plan_of(world, **lost_by("logit_adjusted", prior=str(path)))
    assert str(caught.value) == f"{path}: category {category_id(1)} has no prior"


# --- what is printed -------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("fields", "draws", "loss"),
    [
        (
            lost_by("logit_adjusted", tau=0.5), "instance",
            "logit_adjusted (tau 0.5, prior of the draws)",
        ),
        (
            {**drawn_by("class_balanced"), **lost_by("balanced_softmax")}, "class_balanced",
            "balanced_softmax (prior of the draws), which is plain ce under class_balanced draws",
        ),
        (
            lost_by("focal", class_weights="inverse", after="80%"), "instance",
            "focal, class weights inverse after 80%",
        ),
        (drawn_by("square_root", **{"sampler.after": "3"}), "square_root after 3", "ce"),
    ],
)  # fmt: skip
def test_the_plan_says_what_is_drawn_and_what_is_minimised(
    world: Path, fields: dict[str, Any], draws: str, loss: str
) -> None:
    lines = plan_of(world, **fields).describe()
    assert f"draws      {draws}, 43 an epoch" in lines
    assert f"loss       {loss}" in lines


# --- through training and prediction ---------------------------------------------------------


@pytest.mark.parametrize(
    "fields",
    [
        lost_by("seesaw"),
        {**lost_by("ldam", class_weights="effective_number", after="50%"), "model.head": "cosine"},
    ],
)
def test_a_run_whose_logits_carry_no_known_prior_says_null_and_adjust_asks(
    world: Path, tmp_path: Path, fields: dict[str, Any]
) -> None:
    run = trained(world, tmp_path / "run", epochs=2, **fields)
    assert weights_facts(run).logits_prior is None
    prediction = inat.predict(run.path, "val")
    assert prediction.logits_prior is None
    assert orjson.loads((prediction.path / "meta.json").read_bytes())["logits_prior"] is None
    with pytest.raises(InputError) as caught:
        inat.adjust(prediction, tmp_path / "adjusted", tau=1)
    assert str(caught.value) == (
        f"{prediction.path}: which prior its logits carry is not known; "
        "say what to assume: --from-prior uniform|counts|FILE"
    )
    moved = inat.adjust(prediction, tmp_path / "adjusted", tau=1, from_prior="counts")
    assert moved.logits_prior == share(EVEN)


def test_an_unreadable_photo_is_predicted_as_the_counts_where_the_draws_have_no_one_prior(
    tmp_path: Path,
) -> None:
    counts = (30, 12, 6, 4)
    world = make_world(tmp_path / "world", counts=counts)
    image = orjson.loads((world / "test2018.json").read_bytes())["images"][0]
    photo = world / image["file_name"]
    photo.write_bytes(photo.read_bytes()[:200])
    skip = {"data.on_bad_photo": "skip", "data.bad_photo_limit": 0.5, "epochs": 1}
    run = trained(world, tmp_path / "run", **skip, **drawn_by("progressive"))
    assert weights_facts(run).draws_prior is None
    prediction = inat.predict(run.path, "test")
    row = prediction.logits[prediction.ids.tolist().index(image["id"])]
    assert row == pytest.approx(np.log(np.array(counts) / 30), abs=2e-3)


def test_the_loss_is_told_before_every_epoch_how_much_of_the_training_is_over(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[float] = []
    weighted: list[bool] = []
    set_progress = Loss.set_progress

    def note(loss: Loss, progress: float) -> None:
        set_progress(loss, progress)
        told.append(progress)
        weighted.append(loss.is_weighted)

    monkeypatch.setattr(Loss, "set_progress", note)
    trained(world, tmp_path / "run", **lost_by("ce", class_weights="inverse", after="50%"))
    assert told[-4:] == [0.0, 0.25, 0.5, 0.75]
    assert weighted[-4:] == [False, False, True, True]


def test_deferred_draws_change_the_training_from_the_switch_on(world: Path, tmp_path: Path) -> None:
    def losses(run: Run) -> list[tuple[int, float]]:
        lines = [orjson.loads(line) for line in run.metrics_path.read_bytes().splitlines()]
        return [(line["epoch"], line["loss"]) for line in lines if line["kind"] == "train"]

    plain = losses(trained(world, tmp_path / "plain"))
    fields = drawn_by("class_balanced", **{"sampler.after": "50%"})
    deferred = losses(trained(world, tmp_path / "deferred", **fields))
    assert [loss for epoch, loss in plain if epoch <= 2] == [
        loss for epoch, loss in deferred if epoch <= 2
    ]
    assert plain[-1] != deferred[-1]
