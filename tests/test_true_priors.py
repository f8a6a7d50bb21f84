"""The class prior that a checkpoint states is the one that its logits carry.

The test bed: three species that look alike. Nothing but their prior tells them apart, so a model's
mean prediction is the prior that its logits carry.
"""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from tiny_runs import same, tiny_config, train_tiny, weights, weights_facts
from torch import nn
from worlds import make_world

import inat
from inat.core.errors import InputError
from inat.core.priors import log_softmax
from inat.models.backbone import build_backbone
from inat.predictions.file import PredictionFile
from inat.runs.run import Run
from inat.training import loop, run_files
from inat.training.averages import MovingAverage
from inat.training.earlier_prior import EarlierPriorShare
from inat.training.plan import make_plan

COUNTS = (200, 60, 20)
TRAIN_PRIOR = np.array(COUNTS) / sum(COUNTS)
UNIFORM = np.full(3, 1 / 3)
SETTINGS: dict[str, Any] = {
    "epochs": 4,
    "batch_size": 10,
    "data.holdout": "0.4",
    "optim.name": "sgd",
    "optim.lr_per_256": 1.0,
}
BALANCED: dict[str, Any] = {"epochs": 2, "sampler": {"name": "class_balanced"}}


@pytest.fixture(scope="module")
def alike(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("alike")
    return make_world(folder, COUNTS, n_val=10, size=(32, 32), alike=True)


@pytest.fixture(scope="module")
def run(alike: Path, tmp_path_factory: pytest.TempPathFactory) -> Run:
    return train_tiny(tmp_path_factory.mktemp("run") / "run", alike, **SETTINGS)


def carried(prediction: PredictionFile) -> np.ndarray:
    """The prior that the logits carry: the mean prediction."""
    return np.exp(log_softmax(prediction.logits.astype(np.float32))).mean(axis=0)


def far(one: np.ndarray, other: Any) -> float:
    return float(np.abs(one - np.array(other)).sum() / 2)


def test_a_training_carries_the_prior_that_it_states(run: Run) -> None:
    prediction = inat.predict(run.path, "val")
    assert prediction.logits_prior == pytest.approx(TRAIN_PRIOR, abs=0.01)
    assert far(carried(prediction), TRAIN_PRIOR) < 0.1


# --- learnable weight scaling ----------------------------------------------------------------


def scaled(run: Run, out: Path, epochs: int, **options: Any) -> PredictionFile:
    recipe: dict[str, Any] = {"epochs": epochs, "batch_size": 40, "lr_per_256": 1.0, **options}
    made = inat.train_stage_two(run.path, out, method="lws", **recipe)
    return inat.predict(made.path, "val")


@pytest.mark.parametrize("live", [False, True])
def test_lws_after_one_epoch_carries_the_old_prior_and_states_none(
    run: Run, tmp_path: Path, live: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    prediction = scaled(run, tmp_path / "few", 1, lr_per_256=0.01, live=live)
    assert "prior      unknown, so adjust needs --from-prior: share of" in capsys.readouterr().err
    assert far(carried(prediction), TRAIN_PRIOR) < 0.15
    assert prediction.logits_prior is None
    assert weights_facts(Run(tmp_path / "few")).draws_prior == pytest.approx(UNIFORM)
    with pytest.raises(InputError, match="--from-prior"):
        inat.adjust(prediction, tmp_path / "adjusted", tau=1)


def test_lws_after_many_steps_carries_the_uniform_prior_and_states_it(
    run: Run, tmp_path: Path
) -> None:
    prediction = scaled(run, tmp_path / "many", 60)
    assert far(carried(prediction), UNIFORM) < 0.1
    assert prediction.logits_prior == pytest.approx(UNIFORM)


def test_lws_without_held_out_photos_states_no_prior(alike: Path, tmp_path: Path) -> None:
    run = train_tiny(tmp_path / "run", alike, **{**SETTINGS, "data.holdout": "none", "epochs": 1})
    assert scaled(run, tmp_path / "out", 60).logits_prior is None


def test_lws_from_a_uniform_prior_needs_no_measurement(alike: Path, tmp_path: Path) -> None:
    settings = {**SETTINGS, "sampler.name": "class_balanced", "data.holdout": "none", "epochs": 1}
    run = train_tiny(tmp_path / "run", alike, **settings)
    assert scaled(run, tmp_path / "out", 1).logits_prior == pytest.approx(UNIFORM)


def test_crt_s_new_head_carries_the_uniform_prior_from_the_start(run: Run, tmp_path: Path) -> None:
    for epochs in (1, 40):
        out = tmp_path / f"crt-{epochs}"
        made = inat.train_stage_two(run.path, out, method="crt", epochs=epochs, batch_size=40)
        prediction = inat.predict(made.path, "val")
        assert prediction.logits_prior == pytest.approx(UNIFORM)
        assert far(carried(prediction), UNIFORM) < 0.15


@pytest.mark.parametrize("share", [0.0, 0.05, 0.3, 1.0])
def test_the_measured_share_is_that_of_the_earlier_prior_in_the_logits(share: float) -> None:
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), 300)
    evidence = rng.normal(size=(900, 3)) + 1.5 * np.eye(3)[labels]
    logits = 1.5 * evidence + share * np.log(TRAIN_PRIOR)  # 1.5 times: log p(x|j) of these normals
    measured = EarlierPriorShare(TRAIN_PRIOR, UNIFORM)
    for part in np.array_split(rng.permutation(900), 7):
        measured.add(logits[part], labels[part])
    found, error = measured.measure()
    assert abs(found - share) < max(3 * error, 0.3 * share)
    assert measured.is_gone() is (share <= 0.05)


def test_few_held_out_photos_prove_nothing() -> None:
    measured = EarlierPriorShare(TRAIN_PRIOR, UNIFORM)
    measured.add(np.zeros((3, 3)), np.arange(3))
    assert measured.measure()[0] == pytest.approx(0, abs=1e-6)
    assert not measured.is_gone()


def test_species_that_are_certain_tell_nothing_of_the_prior() -> None:
    measured = EarlierPriorShare(TRAIN_PRIOR, UNIFORM)
    measured.add(np.eye(3) * 1e4, np.arange(3))
    assert not measured.is_gone()


# --- stages ----------------------------------------------------------------------------------


def test_a_stage_of_other_draws_states_its_prior_once_held_out_photos_show_it(
    alike: Path, tmp_path: Path
) -> None:
    stage = {**BALANCED, "epochs": 6}
    settings = {**SETTINGS, "optim.ema_decay": 0.95, "stages": [stage]}
    run = train_tiny(tmp_path / "run", alike, **settings)
    for kind in ("ema", "raw"):
        prediction = inat.predict(run.path, "val", weights=kind, name=kind)
        stated = prediction.logits_prior
        assert stated is None or far(carried(prediction), stated) < 0.15, kind
    assert weights_facts(run).stage == 2


def test_a_stage_that_has_hardly_begun_states_no_prior(alike: Path, tmp_path: Path) -> None:
    stage = {**BALANCED, "epochs": 1, "optim": {"lr_per_256": 1e-6}}
    run = train_tiny(tmp_path / "run", alike, **SETTINGS, stages=[stage])
    prediction = inat.predict(run.path, "val")
    assert far(carried(prediction), TRAIN_PRIOR) < 0.15
    assert prediction.logits_prior is None
    with pytest.raises(InputError, match="--from-prior"):
        inat.adjust(prediction, tmp_path / "adjusted", tau=1)


def test_a_kill_before_a_stage_s_first_checkpoint_leaves_the_prior_of_the_weights(
    alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    save = run_files.save_checkpoint

    def killed(folder: Path, state: Any, *rest: Any, **options: Any) -> None:
        if state.weights.stage == 2:
            raise KeyboardInterrupt
        save(folder, state, *rest, **options)

    monkeypatch.setattr(run_files, "save_checkpoint", killed)
    stage = {**BALANCED, "epochs": 1, "new_head": True}
    with pytest.raises(KeyboardInterrupt):
        train_tiny(tmp_path / "run", alike, **SETTINGS, stages=[stage])
    prediction = inat.predict(tmp_path / "run", "val")
    assert prediction.logits_prior == pytest.approx(TRAIN_PRIOR, abs=0.01)
    assert far(carried(prediction), prediction.logits_prior) < 0.1


# --- the moving average ----------------------------------------------------------------------


class Tiny(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.norm = nn.BatchNorm2d(4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        found: torch.Tensor = self.norm(self.body(images))
        return found


@pytest.mark.parametrize("decay", [0.5, 0.9999])
def test_the_average_is_the_slow_loop_and_integer_buffers_are_the_network_s(decay: float) -> None:
    torch.manual_seed(0)
    network = Tiny()
    average = MovingAverage(network, decay)
    expected = {name: value.clone() for name, value in network.state_dict().items()}
    optimizer = torch.optim.SGD(network.parameters(), 0.1)
    for n in range(15):
        network(torch.randn(2, 3, 5, 5)).square().sum().backward()
        optimizer.step()
        average.update(n)
        now = min(decay, (1 + n) / (10 + n))
        for name, value in network.state_dict().items():
            if value.is_floating_point():
                expected[name] = expected[name] + (1 - now) * (value - expected[name])
            else:
                expected[name] = value.clone()
    found = average.module.state_dict()
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, rtol=1e-6, atol=1e-7)
    assert found["norm.num_batches_tracked"] == 15
    assert not any(parameter.requires_grad for parameter in average.module.parameters())
    assert not average.module.training


def test_an_average_that_is_longer_than_the_training_still_is_of_trained_weights(
    alike: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_tiny(tmp_path / "run", alike, **SETTINGS, **{"optim.ema_decay": 0.9999})
    assert "64 steps are few for decay 0.9999 (decay^steps is 0.99)" in capsys.readouterr().err
    raw, average = weights(run), weights(run, kind="ema")
    first = build_backbone(tiny_config(**SETTINGS).model, 3, 0, 32)
    initial = first.network.state_dict()
    names = [name for name, value in raw.items() if value.ndim == 4]

    def way(one: dict[str, torch.Tensor]) -> float:
        return float(sum(((one[name] - initial[name]) ** 2).sum() for name in names) ** 0.5)

    assert way(average) > 0.8 * way(raw)


def test_an_average_begins_again_where_prior_or_head_change_and_only_there(alike: Path) -> None:
    def begins(**stage: Any) -> bool:
        settings = {**SETTINGS, "data.root": alike, "optim.ema_decay": 0.9}
        config = tiny_config(**settings, stages=[{"epochs": 1, **stage}])
        return make_plan(config).stages[1].begins_average

    assert begins(sampler={"name": "class_balanced"})
    assert begins(loss={"name": "balanced_softmax"})
    assert begins(new_head=True)
    assert not begins(transforms={"image_size": 48})
    assert not begins(optim={"lr_per_256": 0.01})


def test_an_average_that_began_again_resumes_to_the_bit(
    alike: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stages = [{"epochs": 1}, {**BALANCED, "epochs": 1}]
    settings = {**SETTINGS, "epochs": 1, "stages": stages, "optim.ema_decay": 0.99,
                "runtime.checkpoint_steps": 3, "sampler.epoch_size": 80}  # fmt: skip
    whole = train_tiny(tmp_path / "whole", alike, **settings)
    taken = loop.take_step

    for n_steps in (4, 8, 13, 16, 20):  # in, at the end of and between the stages

        def interrupted(trainer: Any, batches: Any, state: Any, n_steps: int = n_steps) -> Any:
            if state.step == n_steps:
                raise KeyboardInterrupt
            return taken(trainer, batches, state)

        monkeypatch.setattr(loop, "take_step", interrupted)
        with pytest.raises(KeyboardInterrupt):
            train_tiny(tmp_path / "cut", alike, resume=n_steps > 4, **settings)
    monkeypatch.setattr(loop, "take_step", taken)
    cut = train_tiny(tmp_path / "cut", alike, resume=True, **settings)
    for kind in ("model", "ema"):
        assert same(weights(cut, kind=kind), weights(whole, kind=kind))
    assert weights_facts(cut) == weights_facts(whole)
