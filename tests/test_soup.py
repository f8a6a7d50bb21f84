"""Soups: the mean of runs' weights, which runs greed keeps, what is refused."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import orjson
import pytest
import torch
from tiny_runs import restate, train_tiny, weights, weights_facts
from torch import Tensor, nn
from worlds import make_world

import inat
from inat.cli.app import main
from inat.core.errors import InputError
from inat.core.files import read_json
from inat.dataset.split import cut_holdout, load_split
from inat.evaluation.evaluate import evaluate
from inat.loader.batches import to_device
from inat.loader.loader import build_loader
from inat.runs.run import Run
from inat.training import soup as soup_module
from inat.training.soup import average_weights, has_batch_norm
from inat.training.verbs import soup

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, world: Path) -> list[Run]:
    """Three runs of other seeds."""
    folder = tmp_path_factory.mktemp("runs")
    return [train_tiny(folder / f"seed{seed}", world, seed=seed) for seed in range(3)]


@pytest.fixture(scope="module")
def made(runs: list[Run]) -> Run:
    return soup([run.path for run in runs[:2]], runs[0].path.parent / "soup")


def refusal(runs: list[Run], out: Path, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        soup([run.path for run in runs], out, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def changed(run: Run, path: Path, **model: Any) -> Run:
    """A copy of a run with other facts in its model.json."""
    shutil.copytree(run.path, path)
    (path / "model.json").write_bytes(orjson.dumps({**read_json(run.path / "model.json"), **model}))
    return Run(path)


# --- the mean --------------------------------------------------------------------------------


def test_the_mean_is_the_loop_over_tensors_and_counters_are_the_first_s() -> None:
    generator = torch.Generator().manual_seed(0)
    states = [
        {
            "weight": torch.randn(3, 2, generator=generator),
            "half": torch.randn(4, generator=generator).half(),
            "num_batches_tracked": torch.tensor(10 + number),
        }
        for number in range(3)
    ]
    before = [{name: tensor.clone() for name, tensor in state.items()} for state in states]
    found = average_weights(iter(states))
    for name in ("weight", "half"):
        flat = [state[name].double().flatten().tolist() for state in states]
        expected = [sum(values) / 3 for values in zip(*flat, strict=True)]
        assert found[name].dtype == states[0][name].dtype
        assert found[name].shape == states[0][name].shape
        exact = torch.tensor(expected, dtype=torch.float64).to(found[name].dtype)
        assert found[name].flatten().tolist() == exact.tolist()
    assert found["num_batches_tracked"].item() == 10
    assert all(
        torch.equal(state[name], old[name])
        for state, old in zip(states, before, strict=True)
        for name in old
    )


def test_a_soup_of_two_runs_has_the_mean_of_their_weights(runs: list[Run], made: Run) -> None:
    one, other, found = weights(runs[0]), weights(runs[1]), weights(made)
    assert found.keys() == one.keys()
    averaged = [name for name in one if not name.endswith(STATISTICS)]
    assert 0 < len(averaged) < len(one)
    for name in averaged:
        assert torch.equal(found[name], ((one[name].double() + other[name].double()) / 2).float())


def first_statistics(made: Run, first: Run) -> tuple[Tensor, Tensor, int]:
    """Mean and variance of the first batch norm, worked out by hand from the draws of the first
    run's training, and the number of batches."""
    config, facts = first.config, first.facts
    train, _ = cut_holdout(load_split(config.data.root or Path()), "0.3", config.data.holdout_seed)
    loader = build_loader(
        train, image_size=32, training=True, batch_size=8, workers=0, seed=config.seed,
        recipe=config.transforms,
    )  # fmt: skip
    state = weights(made)
    convolution = nn.functional.conv2d
    means, variances = [], []
    for batch in loader:
        images = to_device(batch, "cpu", facts.mean, facts.std)
        values = convolution(images, state["conv_stem.weight"], stride=2, padding=1)
        means.append(values.mean(dim=(0, 2, 3)))
        variances.append(values.var(dim=(0, 2, 3)))
    assert len(means) == len(train) // 8
    return torch.stack(means).mean(dim=0), torch.stack(variances).mean(dim=0), len(means)


def test_batch_norm_has_the_statistics_of_the_soup_itself(runs: list[Run], made: Run) -> None:
    mean, variance, n_batches = first_statistics(made, runs[0])
    state = weights(made)
    torch.testing.assert_close(state["bn1.running_mean"], mean)
    torch.testing.assert_close(state["bn1.running_var"], variance)
    assert state["bn1.num_batches_tracked"].item() == n_batches
    plain = (weights(runs[0])["bn1.running_mean"] + weights(runs[1])["bn1.running_mean"]) / 2
    assert not torch.allclose(state["bn1.running_mean"], plain)


def test_a_frozen_backbone_keeps_its_statistics(runs: list[Run], tmp_path: Path) -> None:
    heads = [
        inat.train_stage_two(
            runs[0].path, tmp_path / f"crt{seed}", method="crt", seed=seed, epochs=1
        )
        for seed in range(2)
    ]
    made = soup([head.path for head in heads], tmp_path / "soup")
    assert made.made_by == "inat soup"
    found, one = weights(made), weights(heads[0])
    for name in one:
        assert torch.equal(found[name], one[name]) is (not name.startswith("classifier."))


def test_heads_on_several_frozen_backbones_have_the_statistics_of_the_soup_itself(
    runs: list[Run], tmp_path: Path
) -> None:
    heads = [
        inat.train_stage_two(run.path, tmp_path / f"crt{number}", method="crt", epochs=1)
        for number, run in enumerate(runs[:2])
    ]
    assert all(head.config.model.freeze == "backbone" for head in heads)
    made = soup([head.path for head in heads], tmp_path / "soup")
    state, one, other = weights(made), weights(heads[0]), weights(heads[1])
    mean, variance, n_batches = first_statistics(made, heads[0])
    torch.testing.assert_close(state["bn1.running_mean"], mean)
    torch.testing.assert_close(state["bn1.running_var"], variance)
    assert state["bn1.num_batches_tracked"].item() == n_batches
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert not torch.allclose(state[name], (one[name] + other[name]) / 2)


def test_live_heads_on_one_backbone_keep_the_mean_of_the_statistics_they_gathered(
    runs: list[Run], tmp_path: Path
) -> None:
    """These are of class-balanced draws, which the first run's own training does not make."""
    heads = [
        inat.train_stage_two(
            runs[0].path, tmp_path / f"live{seed}", method="crt", seed=seed, epochs=1, live=True
        )
        for seed in range(2)
    ]
    state, one, other = (
        weights(run) for run in (soup([head.path for head in heads], tmp_path / "soup"), *heads)
    )
    for name in ("bn1.running_mean", "bn1.running_var"):
        assert not torch.equal(one[name], other[name])
        torch.testing.assert_close(state[name], (one[name] + other[name]) / 2)


def test_the_same_soup_has_the_same_bytes(runs: list[Run], made: Run, tmp_path: Path) -> None:
    before = torch.random.get_rng_state()
    again = soup([run.path for run in runs[:2]], tmp_path / "again", workers=2)
    assert torch.equal(torch.random.get_rng_state(), before)
    name = "checkpoints/last/model.safetensors"
    assert (again.path / name).read_bytes() == (made.path / name).read_bytes()


def test_networks_without_batch_norm_are_told_apart() -> None:
    assert has_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)))
    assert not has_batch_norm(nn.Sequential(nn.Conv2d(3, 4, 1), nn.LayerNorm(4)))


# --- the run ---------------------------------------------------------------------------------


def test_a_soup_is_a_run_that_is_predicted_and_evaluated(runs: list[Run], made: Run) -> None:
    prediction = inat.predict(made.path, "holdout")
    assert set(prediction.photos["role"]) == {"held out"}
    score = evaluate(prediction).mean_class_accuracy.value
    line = orjson.loads(made.metrics_path.read_bytes().splitlines()[-1])
    assert line["kind"] == "validation"
    assert line["mean_class_accuracy"] == pytest.approx(score)
    assert weights_facts(made) == weights_facts(runs[0])
    assert weights_facts(made).chosen == {}
    told = made.facts.soup
    assert told.how == "uniform"
    assert [one.run for one in told.runs] == [str(run.path) for run in runs[:2]]
    assert [one.used for one in told.runs] == [True, True]
    assert made.config.digest == runs[0].config.digest


def test_priors_that_differ_leave_that_of_the_soup_unknown(runs: list[Run], tmp_path: Path) -> None:
    adjusted = changed(runs[1], tmp_path / "la")
    restate(adjusted, logits_prior=[0.25] * 4)
    made = soup([runs[0].path, adjusted.path], tmp_path / "soup")
    assert weights_facts(made).logits_prior is None
    assert weights_facts(made).draws_prior == weights_facts(runs[0]).draws_prior


def test_a_soup_is_neither_trained_on_nor_has_a_best_checkpoint(made: Run) -> None:
    with pytest.raises(InputError) as caught:
        inat.train(made.config, made.path, resume=True)
    assert str(caught.value) == (
        f"{made.path}: the run there was made by inat soup; give another --run, or --overwrite to "
        "throw it away"
    )
    with pytest.raises(InputError) as caught:
        inat.predict(made.path, "val", checkpoint="best")
    assert str(caught.value) == (
        f"{made.path}: inat soup leaves no best checkpoint; use --checkpoint last"
    )


# --- greed -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("scores", "used"),
    [
        # Alone 0, 1, 2; then 1+2, and what was kept with 0.
        ([0.1, 0.5, 0.3, 0.6, 0.7], [0, 1, 2]),
        ([0.1, 0.5, 0.3, 0.4, 0.5], [0, 1]),
        ([0.1, 0.5, 0.3, 0.4, 0.4], [1]),
        ([0.5, 0.5, 0.5, 0.4, 0.5], [0, 2]),
    ],
)
def test_greed_keeps_a_run_where_it_does_not_lower_the_held_out_accuracy(
    runs: list[Run],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    scores: list[float],
    used: list[int],
) -> None:
    told, tasted = iter(scores), []

    def score(builder: Any, members: list[Any]) -> float:
        tasted.append([member.run.path for member in members])
        return next(told)

    monkeypatch.setattr(soup_module.SoupBuilder, "score", score)
    made = soup([run.path for run in runs], tmp_path / "out", how="greedy")
    found = [place for place, one in enumerate(made.facts.soup.runs) if one.used]
    assert found == used
    assert tasted[:3] == [[run.path] for run in runs]
    assert next(told, None) is None


def test_a_greedy_soup_says_what_it_chose_on(
    runs: list[Run], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = ["soup", *(str(run.path) for run in runs), "--how", "greedy"]
    assert main([*words, "--out", str(tmp_path / "out")]) == 0
    captured = capsys.readouterr()
    made = Run(tmp_path / "out")
    lines = [orjson.loads(line) for line in made.metrics_path.read_bytes().splitlines()]
    assert [line["kind"] for line in lines] == ["soup"] * 5 + ["validation"]
    alone = [line["mean_class_accuracy"] for line in lines[:3]]
    for run, accuracy in zip(runs, alone, strict=True):
        expected = evaluate(inat.predict(run.path, "holdout")).mean_class_accuracy.value
        assert accuracy == pytest.approx(expected)
    assert lines[-1]["mean_class_accuracy"] >= max(alone)
    used = [str(run.path) for run in runs if str(run.path) in captured.out]
    assert captured.out == (
        f"{made.path}: the mean of {', '.join(used)}; next: inat predict {made.path} --split test\n"
    )
    assert "(the runs were chosen on them)" in captured.err
    by = "mean class accuracy on the held-out part of train"
    assert weights_facts(made).chosen == {"runs": by}
    prediction = inat.predict(made.path, "holdout")
    with pytest.raises(InputError, match=f"something was chosen \\(runs by {by}\\)"):
        evaluate(prediction)


# --- what is refused -------------------------------------------------------------------------


def test_tensors_of_other_names_or_shapes_are_refused() -> None:
    state = {"a": torch.zeros(2, 3)}
    for other, told in (({"a": torch.zeros(3, 2)}, "(3, 2)"), ({}, "None")):
        with pytest.raises(InputError) as caught:
            average_weights([state, other])
        assert str(caught.value) == (
            f"the runs' networks are not of one architecture: a is (2, 3) in one and {told} in "
            "another; give runs of the same model and image size"
        )
    with pytest.raises(InputError, match="b is None in one and \\(1,\\) in another"):
        average_weights([state, {**state, "b": torch.zeros(1)}])


def test_runs_of_another_kind_are_refused(runs: list[Run], world: Path, tmp_path: Path) -> None:
    first, out = runs[0], tmp_path / "out"
    cosine = train_tiny(tmp_path / "cosine", world, **{"model.head": "cosine"})
    assert refusal([first, cosine], out) == (
        f"{cosine.path}: its model.head is cosine, and that of {first.path} is linear; a soup "
        "needs one architecture (inat ensemble averages predictions of any)"
    )
    for key, value, what in (
        ("category_ids", [1, 2, 3, 4], "species are"),
        ("trained", "others", "training photos are"),
        ("mean", [0, 0, 0], "pixel means are"),
        ("std", [1, 1, 1], "pixel deviations are"),
    ):
        other = changed(runs[1], tmp_path / key, **{key: value})
        assert refusal([first, other], out) == (
            f"{other.path}: its {what} not those of {first.path}; give runs that differ in seed "
            "and recipe alone"
        )
    assert not out.exists()


def test_options_and_places_that_do_not_do_are_refused(
    runs: list[Run], made: Run, world: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    assert refusal(runs[:1], out) == "a soup has two runs or more, and 1 was given"
    assert refusal(runs, out, how="best") == ("--how: unknown name 'best'; valid: greedy, uniform")
    assert refusal(runs[:2], made.path) == (
        f"{made.path}: there is a run already; give another --out, or --overwrite to throw it away"
    )
    assert refusal(runs, runs[1].path, overwrite=True) == (
        f"{runs[1].path}: holds the run {runs[1].path}; give another --out"
    )
    whole = [
        train_tiny(tmp_path / f"whole{seed}", world, seed=seed, **{"data.holdout": "none"})
        for seed in range(2)
    ]
    assert refusal(whole, out, how="greedy") == (
        f"{whole[0].path}: nothing was held out (data.holdout none), so there are no photos to be "
        "greedy on; use --how uniform"
    )
    other = make_world(tmp_path / "other", seed=5)
    assert refusal(runs, out, root=other) == (
        f"{other}: its train photos are not those that {runs[0].path} was trained on; give the "
        "data set it was trained on (--data.root)"
    )
    copy = Run(shutil.copytree(runs[0].path, tmp_path / "copy"))
    for twice in (runs[0], copy):
        assert refusal([runs[0], twice], out) == (
            f"{twice.path}: its weights are those of {runs[0].path}; a soup averages runs that "
            "differ, so give each run once"
        )
    assert not out.exists()
    made_whole = soup([run.path for run in whole], out)
    assert made_whole.metrics_path.read_bytes() == b""
    assert np.isfinite(inat.predict(made_whole.path, "val").logits).all()
