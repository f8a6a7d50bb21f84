"""Heads: each against a slow loop, their place in a network, and what their weights depend on."""

import math
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor, nn

from inat.core.errors import InputError
from inat.models.heads import (
    HEADS,
    CosineHead,
    NearestMeanHead,
    ScaledHead,
    build_head,
    classifier_names,
    put_classifier,
    single_classifier,
)

FEATURES = torch.from_numpy(np.random.default_rng(0).normal(0, 2, (5, 6))).float()


def made(name: str, scale: float = 30.0) -> nn.Module:
    """A head of 4 classes on 6 features, with every tensor filled with numbers."""
    head = build_head(name, 6, 4, seed=0, scale=scale)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in head.state_dict().values():
            tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return head


def test_the_cosine_head_gives_scale_times_the_cosine() -> None:
    head = made("cosine", scale=12.0)
    assert isinstance(head, CosineHead)
    logits = head(FEATURES)
    for i, feature in enumerate(FEATURES.tolist()):
        for j, weight in enumerate(head.weight.tolist()):
            dot = sum(f * w for f, w in zip(feature, weight, strict=True))
            cosine = dot / math.hypot(*feature) / math.hypot(*weight)
            assert logits[i, j].item() == pytest.approx(12 * cosine, abs=1e-5)


def test_a_new_cosine_head_has_weights_of_length_1_as_in_ldam() -> None:
    head = build_head("cosine", 6, 4, seed=3)
    assert head.get_parameter("weight").norm(dim=1).tolist() == pytest.approx([1.0] * 4)


def test_the_scaled_head_scales_the_whole_logit_bias_included() -> None:
    head = made("scaled")
    assert isinstance(head, ScaledHead)
    logits = head(FEATURES)
    for i, feature in enumerate(FEATURES.tolist()):
        for j, weight in enumerate(head.weight.tolist()):
            dot = sum(f * w for f, w in zip(feature, weight, strict=True))
            whole = head.scale[j].item() * (dot + head.bias[j].item())
            assert logits[i, j].item() == pytest.approx(whole, abs=1e-5)
    assert build_head("scaled", 6, 4, seed=0).get_parameter("scale").tolist() == [1.0] * 4


def nearest_mean() -> tuple[NearestMeanHead, Tensor, Tensor]:
    head = NearestMeanHead(6, 4)
    generator = torch.Generator().manual_seed(2)
    centre, means = torch.randn(6, generator=generator), torch.randn(4, 6, generator=generator) / 3
    head.set_means(centre, means, torch.tensor([True, True, False, True]))
    return head, centre, means


def test_the_nearest_mean_head_ranks_as_the_distances_do() -> None:
    head, centre, means = nearest_mean()
    logits = head(FEATURES)
    for i, feature in enumerate(FEATURES):
        unit = (feature - centre) / (feature - centre).norm()
        for j, mean in enumerate(means):
            distance = (unit - mean).norm().item()
            if j != 2:
                # 2 g m - ||m||^2 = 1 - distance^2, since g has length 1.
                assert logits[i, j].item() == pytest.approx(1 - distance**2, abs=1e-5)


def test_a_species_without_photos_is_never_the_nearest() -> None:
    head, _, _ = nearest_mean()
    logits = head(FEATURES)
    assert logits.isfinite().all()
    assert (logits.argsort(dim=1)[:, 0] == 2).all()
    assert torch.softmax(logits, dim=1)[:, 2].tolist() == [0.0] * 5


@pytest.mark.parametrize("name", ["cosine", "nearest_mean"])
def test_cosines_and_distances_are_float32_under_bfloat16(name: str) -> None:
    head: nn.Module = nearest_mean()[0] if name == "nearest_mean" else made(name)
    plain = head(FEATURES)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        mixed = head(FEATURES)
        rounded = head(FEATURES.bfloat16())
    assert mixed.dtype == rounded.dtype == torch.float32
    assert torch.equal(plain, mixed)
    assert torch.allclose(plain, rounded, atol=0.3)


@pytest.mark.parametrize("name", HEADS)
def test_new_weights_depend_on_the_seed_alone(name: str) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    first = build_head(name, 6, 4, seed=0)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(6)
    again, other = (build_head(name, 6, 4, seed=seed) for seed in (0, 1))
    states = [head.state_dict() for head in (first, again, other)]
    assert all(torch.equal(states[0][key], states[1][key]) for key in states[0])
    if name != "nearest_mean":  # which has no random weights
        assert not torch.equal(states[0]["weight"], states[2]["weight"])


def test_an_unknown_head_lists_those_there_are() -> None:
    with pytest.raises(InputError) as caught:
        build_head("cosin", 6, 4, seed=0)
    assert str(caught.value) == (
        "model.head: unknown name 'cosin'; did you mean cosine? "
        "valid: cosine, linear, nearest_mean, scaled"
    )


@pytest.mark.parametrize(
    "name", ["test_efficientnet", "test_resnet", "test_convnext", "test_mambaout", "test_vit"]
)
def test_without_its_classifier_a_network_gives_the_classifier_s_input(name: str) -> None:
    options = {"img_size": 64} if name == "test_vit" else {}
    network: Any = timm.create_model(name, num_classes=3, **options).eval()
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        logits = network(images)
        pre_logits = network.forward_head(network.forward_features(images), pre_logits=True)
        head = single_classifier(network, "the test")
        put_classifier(network, nn.Identity())
        features = network(images)
        assert torch.equal(features, pre_logits)
        assert torch.equal(head(features), logits)
        put_classifier(network, head)
        assert torch.equal(network(images), logits)


class Distilled(nn.Module):
    """Stands for timm's networks with two classifiers, or with a convolution for one."""

    def __init__(self, classifier: str | tuple[str, ...]) -> None:
        super().__init__()
        self.pretrained_cfg = {"classifier": classifier, "architecture": "stand_in"}
        self.head = nn.Linear(2, 3)
        self.head_dist = nn.Linear(2, 3)
        self.conv = nn.Conv2d(2, 3, 1)


def test_two_classifiers_or_a_convolution_are_refused_by_name() -> None:
    assert classifier_names(Distilled(("head", "head_dist"))) == ("head", "head_dist")
    for classifier, kinds in ((("head", "head_dist"), "Linear and Linear"), ("conv", "Conv2d")):
        with pytest.raises(InputError) as caught:
            single_classifier(Distilled(classifier), "model.head cosine")
        assert str(caught.value) == (
            "model.head cosine needs a network whose classifier is one linear layer; that of "
            f"stand_in is {kinds}; take another model.backbone"
        )
