"""The configs that ship: each is of a network that exists, and trains."""

from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from worlds import make_world

import inat
from inat.config.reading import read_config
from inat.config.schema import Config, ModelConfig
from inat.config.strict_yaml import parse_yaml
from inat.core.files import read_json
from inat.models.backbone import build_backbone
from inat.models.heads import classifier_names
from inat.models.weights import PACKAGES

FOLDER = Path(__file__).parents[1] / "configs"
SHIPPED = sorted(FOLDER.rglob("*.yaml"))
N_SPECIES = {"inat2018": 8142, "mini_inat": 65, "small": 64, "cifar100_lt": 100}
WIDTH = {
    "resnet50": 2048,
    "vit_base_patch16_224": 768,
    "convnext_base": 1024,
    "mobilenetv2_100": 1280,
    "mobilenetv3_large_100": 1280,
    **{f"tf_efficientnet_lite{size}": 1280 for size in range(3)},
    "cifar_resnet32": 64,
}
SMALL = {
    "resnet50": "test_resnet",
    "vit_base_patch16_224": "test_vit",
    "convnext_base": "test_convnext",
    "mobilenetv2_100": "mobilenetv2_035",
    "mobilenetv3_large_100": "mobilenetv3_small_050",
    **{f"tf_efficientnet_lite{size}": "test_efficientnet" for size in range(3)},
    "cifar_resnet32": "cifar_resnet32",
}

each = pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}/{path.stem}")


def family(model: ModelConfig) -> str:
    return model.backbone.partition(".")[0]


@cache
def classifier_shape(model: ModelConfig, n_species: int, image_size: int) -> torch.Size:
    with torch.device("meta"):
        network = build_backbone(model, n_species, 0, image_size).network
    (name,) = classifier_names(network)
    return network.get_parameter(f"{name}.weight").shape


@each
def test_the_network_has_a_classifier_of_all_species_at_its_real_size(path: Path) -> None:
    config = read_config(path)
    model = replace(config.model, weights="none")
    n_species = N_SPECIES[path.parent.name]
    found = classifier_shape(model, n_species, config.transforms.image_size)
    assert found == (n_species, WIDTH[family(model)])


@each
def test_the_weights_that_are_asked_for_exist(path: Path) -> None:
    model = read_config(path).model
    if model.weights == "hub":
        known = timm.get_pretrained_cfg(model.backbone)
        assert known is not None
        assert known.has_weights
    else:
        assert model.weights in ("none", *PACKAGES)


@pytest.fixture(scope="module")
def small_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("small"), size=(32, 32))


def in_two_steps(config: Config) -> dict[str, Any]:
    """Overrides that leave one epoch of two steps of a config, and of each of its stages."""
    stages = []
    for text in config.stages:
        stage = parse_yaml(text)
        stage |= {"epochs": 1, "optim": {**stage.get("optim", {}), "warmup_epochs": 0}}
        stage.pop("batch_size", None)
        for field in ("accumulate", "device_batch"):
            stage.get("optim", {}).pop(field, None)
        if "transforms" in stage:
            stage["transforms"] |= {"image_size": 48}
        stages.append(stage)
    return {
        "epochs": 1,
        "batch_size": 4,
        "sampler.epoch_size": 8,
        "optim.accumulate": 1,
        "optim.device_batch": None,
        "transforms.image_size": 32,
        "model.backbone": SMALL[family(config.model)],
        "model.weights": "none",
        "optim.warmup_epochs": 0,
        "optim.milestones": (),
        "data.workers": 0,
        "stages": stages,
    }


@each
def test_it_takes_two_steps_of_each_stage(path: Path, small_photos: Path, tmp_path: Path) -> None:
    config = read_config(path)
    overrides = {**in_two_steps(config), "data.root": small_photos}
    run = inat.train(path, tmp_path / "run", overrides=overrides)
    n_stages = len(config.all_stages)
    state = read_json(run.checkpoint("last") / "state.json")
    assert (state["epoch"], state["step"]) == (n_stages, 2 * n_stages)
    # All else is as it ships.
    for section in ("loss", "sampler"):
        shipped, used = vars(getattr(config, section)), vars(getattr(run.config, section))
        assert {**shipped, "epoch_size": 0} == {**used, "epoch_size": 0}
    assert [stage.new_head for stage in run.config.all_stages] == [
        stage.new_head for stage in config.all_stages
    ]
