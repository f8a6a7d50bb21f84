"""Training in stages: what each may change, what goes on, and what a resume repeats."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from safetensors.torch import save_file
from tiny_runs import TINY, log_lines, restate, same, tiny_config, weights, weights_facts

import inat
from inat.cli.app import main
from inat.config.reading import read_config
from inat.config.schema import Config, SamplerConfig
from inat.core.errors import InputError
from inat.core.files import read_json
from inat.core.priors import count_prior
from inat.dataset.split import load_split
from inat.models.backbone import build_backbone, frozen
from inat.models.heads import build_head
from inat.runs.run import Run
from inat.samplers import build_sampler
from inat.samplers.base import ORDER, epoch_order, stream
from inat.training import loop, run_files
from inat.training.accelerator import build_accelerator
from inat.training.plan import make_plan
from inat.training.trainer import build_trainer, next_trainer

COUNTS = np.array([30, 8, 3, 2])  # of the world
SETTINGS: dict[str, Any] = {
    "epochs": 2,
    "sampler.epoch_size": 16,
    "data.holdout": "none",
    "runtime.log_every": 1,
}
LARGER: dict[str, Any] = {
    "epochs": 1,
    "transforms": {"image_size": 48},
    "optim": {"lr_per_256": 0.01, "name": "sgd"},
}
BALANCED: dict[str, Any] = {
    "epochs": 2,
    "new_head": True,
    "sampler": {"name": "class_balanced"},
    "model": {"freeze": "backbone"},
}


def config_of(*stages: dict[str, Any], **fields: Any) -> Config:
    return tiny_config(**{**SETTINGS, **fields, "stages": list(stages)})


def trained(world: Path, run: Path, *stages: dict[str, Any], **fields: Any) -> Run:
    return inat.train(config_of(*stages, **{"data.root": str(world), **fields}), run)


# --- configs ---------------------------------------------------------------------------------


def test_each_stage_is_laid_over_the_one_before() -> None:
    stages = config_of(LARGER, BALANCED).all_stages
    seen = [
        (
            stage.config.epochs,
            stage.config.transforms.image_size,
            stage.config.optim.name,
            stage.config.sampler.name,
            stage.config.sampler.epoch_size,
            stage.config.model.freeze,
            stage.new_head,
        )
        for stage in stages
    ]
    assert seen == [
        (2, 32, "adamw", "instance", 16, "none", False),
        (1, 48, "sgd", "instance", 16, "none", False),
        (2, 48, "sgd", "class_balanced", 16, "backbone", True),
    ]
    assert all(stage.config.stages == () for stage in stages)


def test_a_config_without_stages_is_one_stage_of_itself() -> None:
    (stage,) = config_of().all_stages
    assert stage.config == config_of()
    assert not stage.new_head


def test_a_checkpoint_of_a_stage_that_the_config_does_not_have_is_refused() -> None:
    config = config_of(LARGER, BALANCED)
    stages = [config.stage(number).config for number in (1, 2, 3)]
    assert stages == [stage.config for stage in config.all_stages]
    for number in (0, 4):
        with pytest.raises(InputError, match=f"is of stage {number}, .* train again"):
            config.stage(number)


def test_a_stage_is_kept_as_what_it_changes_however_it_was_written(tmp_path: Path) -> None:
    written = {
        "stages:\n- {epochs: 4, optim: {lr_per_256: 1e-4, momentum: 0.9}, sampler: }",
        "stages:\n- optim:\n    lr_per_256: 0.0001\n  epochs: 4\n  new_head: false",
        "stages: ['{optim: {lr_per_256: 1.0e-4}, epochs: 4}']",
    }
    configs = []
    for text in written:
        path = tmp_path / "config.yaml"
        path.write_text(text)
        configs.append(read_config(path))
    assert {config.stages for config in configs} == {("{epochs: 4, optim: {lr_per_256: 0.0001}}",)}
    assert len({config.digest for config in configs}) == 1


def test_a_config_with_stages_reads_back_and_shows_them_as_keys(tmp_path: Path) -> None:
    config = config_of(LARGER, BALANCED)
    path = tmp_path / "config.yaml"
    path.write_text(config.to_yaml())
    assert read_config(path) == config
    shown = yaml.safe_load(config.to_yaml())["stages"]
    assert shown == [LARGER, BALANCED]


def test_no_stages_at_all_may_be_written_in_any_way(tmp_path: Path) -> None:
    for text in ("", "stages:", "stages: []"):
        (tmp_path / "config.yaml").write_text(text)
        assert read_config(tmp_path / "config.yaml") == Config()


KEYS = "valid: batch_size, epochs, loss, model, new_head, optim, sampler, transforms"
FIXED = (
    "cannot change between stages, since the same network and moving average go on; set it once, "
    "outside stages"
)


@pytest.mark.parametrize(
    ("stages", "sentence"),
    [
        ("3", "stages is a list; begin each stage with '- epochs: N'"),
        ("{epochs: 3}", "stages is a list; begin each stage with '- epochs: N'"),
        ("[3]", "stage 2: '3' has no epochs; give it its own, epochs: N"),
        ("[{epochs: }]", "stage 2: '{epochs: null}' has no epochs; give it its own, epochs: N"),
        ("[{epochs: 2}, {new_head: true}]",
         "stage 3: '{new_head: true}' has no epochs; give it its own, epochs: N"),
        ("['{epochs: 2, epochs: 3}']",
         "stage 2: not a stage: the key epochs stands twice, again in line 1"),
        ("[{epochs: 2, epoch: 3}]",
         f"stage 2: key: unknown name 'epoch'; did you mean epochs? {KEYS}"),
        ("[{epochs: 2, seed: 3}]", f"stage 2: key: unknown name 'seed'; {KEYS}"),
        ("[{epochs: 2, data: {holdout: none}}]", f"stage 2: key: unknown name 'data'; {KEYS}"),
        ("[{epochs: 2, stages: []}]",
         f"stage 2: key: unknown name 'stages'; {KEYS}"),
        ("[{epochs: 2, loss: {nam: ce}}]",
         "stage 2: unknown key loss.nam; did you mean loss.name?"),
        ("[{epochs: 2, new_head: 1}]", "stage 2: new_head takes true or false, not 1"),
        ("[{epochs: 2, model: {head: cosine}}]", f"stage 2: model.head {FIXED}"),
        ("[{epochs: 2, model: {backbone: resnet18}}]", f"stage 2: model.backbone {FIXED}"),
        ("[{epochs: 2, optim: {ema_decay: 0.9}}]", f"stage 2: optim.ema_decay {FIXED}"),
        ("[{epochs: 2}, {epochs: 1}]",
         "stage 3: optim.warmup_epochs (1) must be less than epochs (1); "
         "lower the first or raise the second"),
        ("[{epochs: 2, loss: {name: ldam}}]",
         "stage 2: loss.name ldam needs model.head cosine, and model.head is linear; "
         "set model.head cosine"),
    ],
)  # fmt: skip
def test_what_a_stage_may_not_say_is_refused_with_file_stage_and_field(
    tmp_path: Path, stages: str, sentence: str
) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(f"epochs: 3\nstages: {stages}\n")
    with pytest.raises(InputError) as caught:
        read_config(path)
    assert str(caught.value) == f"{path}: {sentence}"


def test_the_command_line_takes_and_replaces_stages(
    world: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(yaml.safe_dump({"stages": [LARGER]}))
    words = [f"--{name}={value}" for name, value in {**TINY, **SETTINGS}.items()]
    words += [f"--data.root={world}"]
    staged = tmp_path / "staged"
    stage = "{epochs: 1, loss: {name: focal}}"
    assert main(["train", str(path), "--run", str(staged), *words, "--stages", stage]) == 0
    assert Run(staged).config.stages == ("{epochs: 1, loss: {name: focal}}",)
    assert (
        main(["train", str(path), "--run", str(tmp_path / "one"), *words, "--stages", "none"]) == 0
    )
    assert Run(tmp_path / "one").config.stages == ()
    capsys.readouterr()
    assert main(["train", str(path), *words, "--stages", "{epochs: 1, seed: 2}"]) == 2
    assert capsys.readouterr().err == f"inat: {path}: stage 2: key: unknown name 'seed'; {KEYS}\n"


# --- plans -----------------------------------------------------------------------------------


def test_each_stage_is_planned_as_if_it_were_all(world: Path) -> None:
    fields = {"data.root": str(world)}
    staged = make_plan(config_of(LARGER, BALANCED, **fields))
    assert (staged.epochs, [stage.first_epoch for stage in staged.stages]) == (5, [0, 2, 3])
    for stage in staged.stages:
        (alone,) = make_plan(stage.config).stages
        for name in ("epoch_size", "global_batch", "steps_per_epoch", "learning_rate"):
            assert getattr(stage, name) == getattr(alone, name)
        assert stage.draws_prior == pytest.approx(alone.draws_prior)
        assert stage.logits_prior == pytest.approx(alone.logits_prior)
    assert staged.stages[-1].logits_prior == pytest.approx(np.full(4, 0.25))


def test_the_plan_shows_each_stage_in_turn(world: Path) -> None:
    plan = make_plan(config_of(LARGER, BALANCED, **{"data.root": str(world)}))
    assert plan.describe() == [
        f"data       {world.resolve()}: 4 species, 43 photos trained on, none held out",
        "stage      1 of 3",
        "draws      instance, 16 an epoch",
        "model      test_efficientnet at 32 px, weights none",
        "loss       ce",
        "optimiser  adamw, peak learning rate 3.13e-05 (0.001 per 256, linear, batch 8)",
        "steps      2 epochs x 2 = 4 steps, 32 photos",
        "stage      2 of 3",
        "draws      instance, 16 an epoch",
        "model      test_efficientnet at 48 px, weights of the stage before",
        "loss       ce",
        "optimiser  sgd, peak learning rate 0.000313 (0.01 per 256, linear, batch 8)",
        "steps      1 epochs x 2 = 2 steps, 16 photos",
        "stage      3 of 3",
        "draws      class_balanced, 16 an epoch",
        "model      test_efficientnet at 48 px, weights of the stage before, new classifier",
        "frozen     all but the classifier, batch norm at its stored statistics; after one epoch",
        "           inat stage-two ends in the same place, on features extracted once",
        "loss       ce",
        "optimiser  sgd, peak learning rate 0.000313 (0.01 per 256, linear, batch 8)",
        "steps      2 epochs x 2 = 4 steps, 32 photos",
    ]


def test_a_dry_run_takes_a_batch_of_each_stage(world: Path) -> None:
    lines = inat.dry_run(config_of(LARGER, BALANCED, **{"data.root": str(world)})).lines()
    batches = [line for line in lines if line.startswith("one batch  loss ")]
    assert len(batches) == 3


def test_draws_that_change_count_from_the_start_of_their_stage(world: Path) -> None:
    split = load_split(world)
    sampler = build_sampler(SamplerConfig(name="progressive"), split.labels, split.n_classes, 4)
    for epoch, progress in ((3, 0.0), (5, 0.5), (6, 0.75)):
        expected = sampler.draw(20, stream(9, epoch, ORDER), progress)
        order = epoch_order(sampler, 20, 9, epoch, 4, first_epoch=3)
        assert order.tolist() == expected.tolist()
    with pytest.raises(InputError, match=r"change over 4 epochs, counted from 3, and are not def"):
        epoch_order(sampler, 20, 9, 7, 4, first_epoch=3)


# --- training --------------------------------------------------------------------------------


def test_the_first_stage_is_the_same_with_or_without_later_ones(
    world: Path, tmp_path: Path
) -> None:
    alone = trained(world, tmp_path / "alone")
    staged = trained(world, tmp_path / "staged", LARGER)
    lines = log_lines(staged.path)
    assert lines[:4] == log_lines(alone.path)
    assert [(line["epoch"], line["step"]) for line in lines[4:]] == [(3, 5), (3, 6)]


def test_a_stage_that_changes_nothing_draws_other_photos_and_its_own_schedule(
    world: Path, tmp_path: Path
) -> None:
    run = trained(world, tmp_path / "run", {"epochs": 2})
    rates = [line["learning_rate"] for line in log_lines(run.path)]
    assert rates[:4] == pytest.approx(rates[4:])
    losses = [line["loss"] for line in log_lines(run.path)]
    assert losses[:4] != losses[4:]


RECIPE: dict[str, Any] = {
    "model.backbone": "test_vit",  # built for one size
    "model.dropout": 0.2,
    "data.holdout": "0.3",
    "optim.ema_decay": 0.5,
    "transforms.mixup": 0.2,
}
ROAD: tuple[dict[str, Any], ...] = (
    {
        "epochs": 2,
        "transforms": {"image_size": 48, "mixup": 0},
        "loss": {"name": "seesaw"},
        "sampler": {"name": "progressive"},
    },
    {"epochs": 1, "new_head": True, "loss": {"name": "ce"}, "model": {"freeze": "backbone"}},
    {"epochs": 1, "model": {"freeze": "none"}, "batch_size": 4, "optim": {"accumulate": 2}},
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, world: Path) -> Run:
    """A run along the whole road; beside it, in cut-N, what it was after each epoch N."""
    folder = tmp_path_factory.mktemp("whole")
    save = run_files.save_checkpoint

    def save_and_keep(place: Path, state: Any, *rest: Any, **options: Any) -> None:
        save(place, state, *rest, **options)
        if place.name == "last":
            shutil.copytree(folder / "run", folder / f"cut-{state.epoch}")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run_files, "save_checkpoint", save_and_keep)
        return trained(world, folder / "run", *ROAD, **RECIPE)


@pytest.mark.parametrize("epoch", [2, 3, 4, 5])
def test_a_resume_in_any_stage_and_between_two_ends_as_a_run_never_interrupted(
    world: Path, whole: Run, epoch: int
) -> None:
    cut = whole.path.with_name(f"cut-{epoch}")
    with (cut / "metrics.jsonl").open("ab") as log:
        log.write(b'{"kind": "train", "of": "the epoch that was cut off"}\n')
    config = config_of(*ROAD, **RECIPE, **{"data.root": str(world)})
    resumed = inat.train(config, cut, resume=True)
    for kind in ("model", "ema", "optimizer"):
        assert same(weights(whole, kind=kind), weights(resumed, kind=kind))
    assert log_lines(whole.path) == log_lines(resumed.path)
    assert whole.facts == resumed.facts


def test_a_new_head_is_new_in_network_and_average_and_all_else_goes_on(
    world: Path, tmp_path: Path
) -> None:
    config = config_of(BALANCED, **{"data.root": str(world), "optim.ema_decay": 0.9})
    plan = make_plan(config)
    with build_accelerator(config) as (accelerator, precision):
        trainer = build_trainer(plan, accelerator, precision)
        network, average = trainer.backbone.network, trainer.averaged
        assert average is not None
        with torch.no_grad():
            for parameter in (*network.parameters(), *average.parameters()):
                parameter += 1
        before = {name: value.clone() for name, value in network.state_dict().items()}
        after = next_trainer(trainer, plan.stages[1])
    assert after.backbone.network is network
    assert after.averaged is not average  # it begins again, with the network's weights
    average = after.averaged
    assert average is not None
    fresh = build_head("linear", 256, 4, seed=0).state_dict()
    for module in (network, average):
        state = module.state_dict()
        assert same({k: state[f"classifier.{k}"] for k in fresh}, fresh)
        assert all(
            torch.equal(state[k], before[k]) for k in before if not k.startswith("classifier.")
        )


def test_a_frozen_stage_trains_the_classifier_alone(world: Path, tmp_path: Path) -> None:
    before = weights(trained(world, tmp_path / "before"))
    after = weights(trained(world, tmp_path / "after", BALANCED))
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed == {"classifier.weight", "classifier.bias"}


def test_what_timm_holds_constant_stays_so_after_a_frozen_stage() -> None:
    model = config_of().model
    backbone = build_backbone(model, 4, seed=0)
    names = {name for name, _ in backbone.network.named_parameters()}
    backbone.network.get_parameter("conv_stem.weight").requires_grad_(False)
    object.__setattr__(backbone, "constants", frozenset({"conv_stem.weight"}))
    thawed = frozen(frozen(backbone, "backbone"), "none")
    trainable = {n for n, p in thawed.network.named_parameters() if p.requires_grad}
    assert trainable == names - {"conv_stem.weight"}
    assert not thawed.is_frozen


def test_priors_and_size_are_those_of_the_stage_that_the_checkpoint_is_of(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**LARGER, "sampler": {"name": "class_balanced"}}
    fields = {"model.backbone": "test_vit"}

    def lost(trainer: Any, stage: Any) -> Any:
        if trainer.plan.number == 1 and (tmp_path / "run" / "checkpoints").is_dir():
            raise KeyboardInterrupt
        return next_trainer(trainer, stage)

    monkeypatch.setattr(loop, "next_trainer", lost)
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path / "run", stage, **fields)
    monkeypatch.setattr(loop, "next_trainer", next_trainer)
    first = inat.predict(tmp_path / "run", "val", name="first")
    assert first.meta.views[0]["size"] == 32
    assert first.logits_prior == pytest.approx(count_prior(COUNTS))
    config = config_of(stage, **fields, **{"data.root": str(world)})
    run = inat.train(config, tmp_path / "run", resume=True)
    last = inat.predict(run.path, "val", name="last")
    assert last.meta.views[0]["size"] == 48
    assert last.meta.config_digest == config.digest
    assert last.logits_prior is None  # nothing is held out that would show it


def test_the_best_of_a_stage_goes_with_it_since_its_priors_are_others(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    stage = {**LARGER, "sampler": {"name": "class_balanced"}}
    fields = {
        "model.backbone": "test_vit",
        "runtime.checkpoint_steps": 1,
        "data.holdout": "0.3",
    }
    taken = loop.take_step

    def interrupted(trainer: Any, batches: Any, state: Any) -> Any:
        if trainer.plan.number == 2:
            assert best.is_dir() == (state.step == state.first_step)
            if state.step == state.first_step + 1:
                raise KeyboardInterrupt
        return taken(trainer, batches, state)

    best = Run(tmp_path / "run").checkpoint("best")
    monkeypatch.setattr(loop, "take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        trained(world, tmp_path / "run", stage, **fields)
    with pytest.raises(InputError, match="there is no checkpoint best; let an epoch end"):
        inat.predict(tmp_path / "run", "val", checkpoint="best")
    last = inat.predict(tmp_path / "run", "val")
    assert weights_facts(Run(tmp_path / "run")).stage == 2
    assert last.logits_prior is None  # after one step


def test_best_is_the_best_epoch_of_the_last_stage(whole: Run) -> None:
    scores = [
        line["mean_class_accuracy"]
        for line in log_lines(whole.path)
        if line["kind"] == "validation"
    ]
    assert len(scores) == 6
    best = read_json(whole.checkpoint("best") / "state.json")
    assert (best["epoch"], best["best_score"]) == (6, scores[5])


def test_the_last_validation_is_what_evaluate_says_of_the_held_out_part(whole: Run) -> None:
    evaluation = inat.evaluate(inat.predict(whole.path, "holdout"))
    line = [line for line in log_lines(whole.path) if line["kind"] == "validation"][-1]
    assert evaluation.mean_class_accuracy.value == pytest.approx(line["mean_class_accuracy"])


def test_stage_two_takes_a_run_of_several_stages(whole: Run, tmp_path: Path) -> None:
    made = inat.train_stage_two(whole.path, tmp_path / "ncm", method="ncm")
    assert made.config.stages == ()
    assert made.config.transforms.image_size == 48
    assert inat.predict(made.path, "val").meta.views[0]["size"] == 48


def test_a_soup_of_runs_of_several_stages_is_as_their_last(whole: Run, tmp_path: Path) -> None:
    other = Run(shutil.copytree(whole.path, tmp_path / "other"))
    moved = {name: tensor * 1.01 for name, tensor in weights(other).items()}
    save_file(moved, other.checkpoint("last") / "model.safetensors")
    restate(other)  # with its checksums
    made = inat.soup([whole.path, other.path], tmp_path / "soup", weights="raw")
    assert made.config == whole.config.all_stages[-1].config
    assert inat.predict(made.path, "val").meta.views[0]["size"] == 48


@pytest.mark.parametrize(
    ("stage", "fields", "sentence"),
    [
        (
            {"epochs": 1, "transforms": {"image_size": 40}}, {"model.backbone": "test_vit"},
            "transforms.image_size 40: the network does not take it (Input height (40) should be "
            "divisible by patch size (16).)",
        ),
        (
            {"epochs": 1, "batch_size": 64}, {},
            "an epoch of 16 photos is less than one global batch of 64; lower batch_size or raise "
            "sampler.epoch_size",
        ),
        (
            {"epochs": 1, "loss": {"name": "logit_adjusted", "prior": "nothing.csv"}}, {},
            "loss.prior: 'nothing.csv' is neither draws nor counts, nor a file; give a CSV "
            "category_id,prior",
        ),
    ],
)  # fmt: skip
def test_a_later_stage_that_cannot_be_trained_stops_the_run_before_the_first(
    world: Path, tmp_path: Path, stage: dict[str, Any], fields: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(InputError) as caught:
        trained(world, tmp_path / "run", stage, **fields)
    assert str(caught.value) == sentence
    assert not (tmp_path / "run").exists()
