"""The ResNets of CIFAR (He et al. 2016, sec. 4.2), registered in timm under names of their own.

timm has those of ImageNet alone. Importing this module registers cifar_resnet20, cifar_resnet32,
cifar_resnet44 and cifar_resnet56, as importing timm does with its own.
"""

from typing import Any

from jaxtyping import Float
from timm.layers import create_classifier
from timm.models import build_model_with_cfg, checkpoint_seq, generate_default_cfgs, register_model
from torch import Tensor, nn
from torch.nn import functional

STAGES = (16, 32, 64)
"""Channels of the three stages; the second and third halve height and width."""


class CifarBlock(nn.Module):
    """Two 3 x 3 convolutions and a shortcut that has no parameters (option A): where the block
    halves the image, every other pixel, with zeros for the channels that are new."""

    def __init__(self, in_channels: int, channels: int) -> None:
        super().__init__()
        self.stride = 1 if in_channels == channels else 2
        self.new_channels = channels - in_channels
        self.conv1 = _conv3x3(in_channels, channels, self.stride)
        self.bn1 = nn.BatchNorm2d(channels)
        self.conv2 = _conv3x3(channels, channels)
        self.bn2 = nn.BatchNorm2d(channels)

    def forward(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        branch = functional.relu(self.bn1(self.conv1(x)))
        branch = self.bn2(self.conv2(branch))
        return functional.relu(branch + self.shortcut(x))

    def shortcut(self, x: Float[Tensor, "batch _ _ _"]) -> Float[Tensor, "batch _ _ _"]:
        if self.stride == 1:
            return x
        # The zeros stand on both sides of the channels, as in LDAM's code.
        half = self.new_channels // 2
        return functional.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, half, half))


class CifarResNet(nn.Module):
    """A ResNet with three stages of basic blocks, with the interface of timm's networks.

    He et al. 2016, sec. 4.2: 6 n + 2 layers with n blocks a stage. Convolutions and classifier
    start from Kaiming's normal distribution, as in LDAM's code (Cao et al. 2019). `num_classes` 0
    gives features instead of logits.
    """

    def __init__(
        self,
        blocks_per_stage: int,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.num_classes = num_classes
        self.num_features = self.head_hidden_size = STAGES[-1]
        self.drop_rate = drop_rate
        self.grad_checkpointing = False
        self.conv1 = _conv3x3(in_chans, STAGES[0])
        self.bn1 = nn.BatchNorm2d(STAGES[0])
        self.layer1 = _stage(STAGES[0], STAGES[0], blocks_per_stage)
        self.layer2 = _stage(STAGES[0], STAGES[1], blocks_per_stage)
        self.layer3 = _stage(STAGES[1], STAGES[2], blocks_per_stage)
        self.fc: nn.Module
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, global_pool)
        self.apply(_init_weights)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv1|bn1", "blocks": r"^layer(\d+)" + ("" if coarse else r"\.(\d+)")}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.fc

    def reset_classifier(self, num_classes: int, global_pool: str = "avg") -> None:
        self.num_classes = num_classes
        self.global_pool, self.fc = create_classifier(self.num_features, num_classes, global_pool)
        _init_weights(self.fc)

    def forward_features(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch features _ _"]:
        """A quarter as high and wide as the images."""
        x = functional.relu(self.bn1(self.conv1(x)))
        for stage in (self.layer1, self.layer2, self.layer3):
            x = checkpoint_seq(stage, x) if self.grad_checkpointing else stage(x)
        return x

    def forward_head(
        self, x: Float[Tensor, "batch features _ _"], pre_logits: bool = False
    ) -> Float[Tensor, "batch ..."]:
        """`pre_logits`: the classifier's input instead of logits."""
        x = functional.dropout(self.global_pool(x), self.drop_rate, self.training)
        logits: Tensor = x if pre_logits else self.fc(x)
        return logits

    def forward(
        self, x: Float[Tensor, "batch channels height width"]
    ) -> Float[Tensor, "batch ..."]:
        return self.forward_head(self.forward_features(x))


def _conv3x3(in_channels: int, channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, channels, 3, stride, padding=1, bias=False)


def _stage(in_channels: int, channels: int, n_blocks: int) -> nn.Sequential:
    rest = [CifarBlock(channels, channels) for _ in range(n_blocks - 1)]
    return nn.Sequential(CifarBlock(in_channels, channels), *rest)


def _init_weights(module: nn.Module) -> None:
    if isinstance(module, nn.Conv2d | nn.Linear):
        nn.init.kaiming_normal_(module.weight)


_STATISTICS = {
    "input_size": (3, 32, 32),
    "pool_size": (8, 8),
    "num_classes": 10,
    "crop_pct": 1.0,
    "mean": (0.4914, 0.4822, 0.4465),
    "std": (0.2023, 0.1994, 0.2010),
    "first_conv": "conv1",
    "classifier": "fc",
}

DEPTHS = (20, 32, 44, 56)

# timm looks for this name in the module of a network that is registered.
default_cfgs = generate_default_cfgs({f"cifar_resnet{depth}": _STATISTICS for depth in DEPTHS})


def _register(depth: int) -> None:
    name = f"cifar_resnet{depth}"

    def create(pretrained: bool = False, **options: Any) -> CifarResNet:
        network: CifarResNet = build_model_with_cfg(
            CifarResNet, name, pretrained, blocks_per_stage=(depth - 2) // 6, **options
        )
        return network

    create.__name__ = name
    register_model(create)


for _depth in DEPTHS:
    _register(_depth)
