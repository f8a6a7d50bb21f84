"""The ResNets of CIFAR: their size, their arithmetic, and that timm and the kit take them."""

import math

import pytest
import timm
import torch
from timm.models import group_parameters
from torch import Tensor, nn
from torch.nn import functional

from inat.config.schema import ModelConfig
from inat.core.errors import InputError
from inat.models.backbone import Backbone, build_backbone
from inat.models.cifar_resnet import CifarBlock, CifarResNet

RESNET32 = ModelConfig(backbone="cifar_resnet32", weights="none")


def built(n_classes: int = 10, seed: int = 0, **fields: object) -> Backbone:
    config = ModelConfig(**{**vars(RESNET32), **fields})  # type: ignore[arg-type]
    return build_backbone(config, n_classes, seed)


def resnet20(n_classes: int = 10) -> CifarResNet:
    network = built(n_classes, backbone="cifar_resnet20").network
    assert isinstance(network, CifarResNet)
    return network


def photos(n: int, size: int = 32) -> Tensor:
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(0))


# --- the network ------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("depth", "n_parameters"), [(20, 269_722), (32, 464_154), (44, 658_586), (56, 853_018)]
)
def test_depth_and_parameters_are_those_of_the_papers_table_6(
    depth: int, n_parameters: int
) -> None:
    """0.27, 0.46, 0.66 and 0.85 million for 10 classes."""
    network = built(backbone=f"cifar_resnet{depth}").network
    assert sum(parameter.numel() for parameter in network.parameters()) == n_parameters
    layers = [m for m in network.modules() if isinstance(m, nn.Conv2d | nn.Linear)]
    assert len(layers) == depth
    norms = sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())
    assert norms == depth - 1


def slow_logits(network: CifarResNet, images: Tensor) -> Tensor:
    """The network in eval mode, written out from its weights."""
    state = network.state_dict()

    def norm(x: Tensor, name: str) -> Tensor:
        mean, variance = state[f"{name}.running_mean"], state[f"{name}.running_var"]
        x = (x - mean[:, None, None]) / torch.sqrt(variance[:, None, None] + 1e-5)
        return x * state[f"{name}.weight"][:, None, None] + state[f"{name}.bias"][:, None, None]

    x = functional.conv2d(images, state["conv1.weight"], padding=1)
    x = norm(x, "bn1").clamp(min=0)
    for stage in (1, 2, 3):
        for block in range(len(getattr(network, f"layer{stage}"))):
            name = f"layer{stage}.{block}"
            stride = 2 if stage > 1 and block == 0 else 1
            y = functional.conv2d(x, state[f"{name}.conv1.weight"], stride=stride, padding=1)
            y = norm(y, f"{name}.bn1").clamp(min=0)
            y = functional.conv2d(y, state[f"{name}.conv2.weight"], padding=1)
            y = norm(y, f"{name}.bn2")
            if stride == 2:
                quarter = y.shape[1] // 4
                inner = x[:, :, ::2, ::2]
                zeros = torch.zeros(len(x), quarter, *inner.shape[2:])
                x = torch.cat([zeros, inner, zeros], dim=1)
            x = (x + y).clamp(min=0)
    return x.mean(dim=(2, 3)) @ state["fc.weight"].T + state["fc.bias"]


def test_logits_are_those_of_the_network_written_out() -> None:
    network = resnet20(7)
    network(photos(4))  # so that the norms have statistics of their own
    network.eval()
    with torch.inference_mode():
        torch.testing.assert_close(
            network(photos(2)), slow_logits(network, photos(2)), rtol=1e-4, atol=1e-4
        )


def test_a_shortcut_has_no_parameters_and_takes_every_other_pixel_with_zeros_beside() -> None:
    block = CifarBlock(4, 8)
    assert {name.partition(".")[0] for name, _ in block.named_parameters()} == {
        "conv1", "bn1", "conv2", "bn2"
    }  # fmt: skip
    x = photos(2, 6)[:, :1].expand(2, 4, 6, 6) * torch.arange(1, 5)[:, None, None]
    found = block.shortcut(x)
    assert found.shape == (2, 8, 3, 3)
    for image in range(2):
        for channel in range(8):
            for row in range(3):
                for column in range(3):
                    value = found[image, channel, row, column]
                    if 2 <= channel < 6:
                        assert value == x[image, channel - 2, 2 * row, 2 * column]
                    else:
                        assert value == 0
    same = CifarBlock(4, 4)
    assert same.shortcut(x) is x


def test_convolutions_and_classifier_start_from_kaimings_normal_distribution() -> None:
    network = built(100).network
    for name, parameter in network.state_dict().items():
        if parameter.ndim > 1:
            fan_in = parameter[0].numel()
            expected = math.sqrt(2 / fan_in)
            # The spread of a standard deviation over n numbers is 1 / sqrt(2 n) of it.
            spread = expected / math.sqrt(2 * parameter.numel())
            assert abs(float(parameter.std()) - expected) < 5 * spread, name
            assert abs(float(parameter.mean())) < 5 * expected / math.sqrt(parameter.numel()), name


def test_images_in_channels_last_stay_so_and_give_the_same_logits() -> None:
    network = resnet20().eval()
    plain = network(photos(2))
    network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = photos(2).to(memory_format=torch.channels_last)
    assert network.forward_features(images).is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(network(images), plain, rtol=1e-4, atol=1e-4)


# --- as timm's networks are used --------------------------------------------------------------


def test_timm_lists_them_and_knows_their_input() -> None:
    assert timm.list_models("cifar_resnet*") == [
        f"cifar_resnet{depth}" for depth in (20, 32, 44, 56)
    ]
    config = timm.get_pretrained_cfg("cifar_resnet32")
    assert config is not None
    assert (config.input_size, config.classifier) == ((3, 32, 32), "fc")


def test_the_kit_takes_their_statistics_and_their_classifier() -> None:
    backbone = built(100)
    assert backbone.mean == (0.4914, 0.4822, 0.4465)
    assert backbone.std == (0.2023, 0.1994, 0.2010)
    assert backbone.source == "none: random weights"
    found = backbone.head_parameters()
    names = [name for name, p in backbone.network.named_parameters() if id(p) in found]
    assert names == ["fc.weight", "fc.bias"]
    again, other = built(100).network.state_dict(), built(100, seed=1).network.state_dict()
    for name, tensor in backbone.network.state_dict().items():
        assert torch.equal(tensor, again[name]), name
    assert not torch.equal(other["conv1.weight"], again["conv1.weight"])


def test_features_and_head_are_the_two_halves_of_the_network() -> None:
    network = resnet20().eval()
    features = network.forward_features(photos(2))
    assert features.shape == (2, 64, 8, 8)
    pooled = network.forward_head(features, pre_logits=True)
    assert pooled.shape == (2, network.num_features)
    assert torch.equal(network.get_classifier()(pooled), network(photos(2)))
    assert torch.equal(network.forward_head(features), network(photos(2)))


def test_a_classifier_is_replaced_or_taken_away() -> None:
    network = resnet20().eval()
    pooled = network.forward_head(network.forward_features(photos(2)), pre_logits=True)
    network.reset_classifier(5)
    assert network.num_classes == 5
    assert network(photos(2)).shape == (2, 5)
    network.reset_classifier(0)
    assert torch.equal(network(photos(2)), pooled)


def test_other_image_sizes_and_channels_are_taken() -> None:
    assert resnet20().eval()(photos(1, 64)).shape == (1, 10)
    grey = timm.create_model("cifar_resnet20", in_chans=1, num_classes=3).eval()
    assert grey(photos(2)[:, :1]).shape == (2, 3)


def test_checkpointed_gradients_are_those_of_the_plain_backward_pass() -> None:
    grads = []
    for checkpointed in (False, True):
        network = resnet20()
        network.set_grad_checkpointing(checkpointed)
        network.eval()  # a second forward pass would move the norms' statistics
        network(photos(2)).square().sum().backward()
        grads.append([parameter.grad for parameter in network.parameters()])
    for plain, recomputed in zip(*grads, strict=True):
        assert plain is not None and recomputed is not None
        torch.testing.assert_close(recomputed, plain)


def test_parameters_fall_into_groups_by_depth() -> None:
    network = resnet20()
    groups = group_parameters(network, network.group_matcher())
    assert len(groups) == 1 + 9 + 1  # stem, blocks, classifier
    assert groups[0] == ["conv1.weight", "bn1.weight", "bn1.bias"]
    assert groups[10] == ["fc.weight", "fc.bias"]
    coarse = group_parameters(network, network.group_matcher(coarse=True))
    assert len(coarse) == 1 + 3 + 1


def test_dropout_drops_features_in_training_alone() -> None:
    network = built(dropout=0.5).network
    assert isinstance(network, CifarResNet)
    features = torch.ones(1, 64, 8, 8)
    torch.manual_seed(0)
    kept = network.forward_head(features, pre_logits=True)
    assert set(kept.unique().tolist()) == {0.0, 2.0}
    network.eval()
    assert torch.equal(network.forward_head(features, pre_logits=True), torch.ones(1, 64))


@pytest.mark.parametrize(
    ("fields", "sentence"),
    [
        ({"drop_path": 0.1},
         "model.backbone: cifar_resnet32 does not take drop_path_rate; "
         "set model.dropout and model.drop_path to 0"),
        ({"weights": "hub"},
         "model.backbone cifar_resnet32: No pretrained weights exist for cifar_resnet32. "
         "Use `pretrained=False` for random init."),
    ],
)  # fmt: skip
def test_what_they_do_not_have_is_refused(fields: dict[str, object], sentence: str) -> None:
    with pytest.raises(InputError) as caught:
        built(**fields)  # type: ignore[arg-type]
    assert str(caught.value) == sentence
