"""Classifiers on a backbone's features, by name, and how one takes the place of timm's.

Each takes features `[batch, features]` and gives logits `[batch, classes]`.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.nn import functional

from inat.core.errors import InputError, unknown_name

NEVER = -1e4
"""Offset of a species that is never to be guessed; finite, so that softmax and float16 hold it."""


class CosineHead(nn.Module):
    """scale * cos(feature, class weight): how long either is says nothing.

    The NormedLinear of LDAM (Cao et al. 2019, their code), with its scale of 30 in the head, so
    that its logits are those of a softmax everywhere.
    """

    def __init__(self, n_features: int, n_classes: int, scale: float) -> None:
        super().__init__()
        self.scale = scale
        directions = torch.empty(n_classes, n_features).uniform_(-1, 1)
        self.weight = nn.Parameter(functional.normalize(directions))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        # In float32: bfloat16 would round a logit near 30 to the next eighth.
        with torch.autocast(features.device.type, enabled=False):
            directions = functional.normalize(self.weight.float())
            return self.scale * functional.linear(
                functional.normalize(features.float()), directions
            )


class ScaledHead(nn.Linear):
    """scale_j * (w_j f + b_j): one scale a class on the whole logit, bias included.

    Learnable weight scaling, LWS (Kang et al. 2020, sec. 4.1 and their code).
    """

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__(n_features, n_classes)
        self.scale = nn.Parameter(torch.ones(n_classes))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        return self.scale * super().forward(features)


class NearestMeanHead(nn.Module):
    """2 g m_j - ||m_j||^2 with g = (f - centre) / ||f - centre||: the species whose mean m_j is
    nearest to g in Euclidean distance has the largest logit.

    ||g - m||^2 = ||g||^2 - (2 g m - ||m||^2), and ||g||^2 is the same for all species. Nothing in
    it is trained (Kang et al. 2020, sec. 4.1, NCM).
    """

    centre: Tensor
    weight: Tensor
    bias: Tensor

    def __init__(self, n_features: int, n_classes: int) -> None:
        super().__init__()
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("weight", torch.zeros(n_classes, n_features))
        self.register_buffer("bias", torch.full((n_classes,), NEVER))

    def set_means(
        self,
        centre: Float[Tensor, "features"],
        means: Float[Tensor, "classes features"],
        present: Tensor,
    ) -> None:
        """Takes the centre and the class means; species that are not `present` have none, and
        are never guessed."""
        self.centre.copy_(centre)
        self.weight.copy_(means)
        self.bias.copy_(torch.where(present, -(means**2).sum(dim=1), NEVER))

    def forward(self, features: Float[Tensor, "batch features"]) -> Float[Tensor, "batch classes"]:
        # In float32: the distances to neighbouring means differ by less than bfloat16 resolves.
        with torch.autocast(features.device.type, enabled=False):
            unit = functional.normalize(features.float() - self.centre)
            return functional.linear(2 * unit, self.weight, self.bias)


HEADS: dict[str, Callable[[int, int, float], nn.Module]] = {
    "linear": lambda n_features, n_classes, _: nn.Linear(n_features, n_classes),
    "cosine": CosineHead,
    "scaled": lambda n_features, n_classes, _: ScaledHead(n_features, n_classes),
    "nearest_mean": lambda n_features, n_classes, _: NearestMeanHead(n_features, n_classes),
}


def build_head(
    name: str, n_features: int, n_classes: int, *, seed: int, scale: float = 30.0
) -> nn.Module:
    """A new classifier (linear, cosine, scaled or nearest_mean), whose random weights depend on
    `seed` alone; torch's global generator is left as it was. `scale` is the cosine head's largest
    logit."""
    if name not in HEADS:
        raise InputError(unknown_name("model.head", name, HEADS))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return HEADS[name](n_features, n_classes, scale)


def classifier_names(network: nn.Module) -> tuple[str, ...]:
    """The dotted names of a timm network's classifiers: one, two in a distilled network, or none
    in an encoder."""
    timm_network: Any = network
    named = timm_network.pretrained_cfg["classifier"]
    return (named,) if isinstance(named, str) else tuple(named or ())


def single_classifier(network: nn.Module, asker: str) -> nn.Module:
    """The one classifier of a timm network, which takes a vector of features per photo; raises
    InputError, which `asker` begins, where there are several or it is a convolution."""
    found = [network.get_submodule(name) for name in classifier_names(network)]
    if len(found) == 1 and isinstance(found[0], nn.Linear | CosineHead | NearestMeanHead):
        return found[0]
    kinds = " and ".join(type(module).__name__ for module in found)
    timm_network: Any = network
    raise InputError(
        f"{asker} needs a network whose classifier is one linear layer; that of "
        f"{timm_network.pretrained_cfg['architecture']} is {kinds}; take another model.backbone"
    )


@contextmanager
def classifiers_in_float32(network: nn.Module) -> Iterator[None]:
    """Has the network's classifiers multiply in float32 amid whatever autocast is on: bfloat16
    would round a logit near 10 to the next sixteenth, and tie neighbours."""
    modules = [network.get_submodule(name) for name in classifier_names(network)]
    # Sharded weights are gathered in the precision of the forward pass alone.
    modules = [] if isinstance(network, FSDPModule) else modules

    def in_float32(forward: Callable[[Tensor], Tensor], features: Tensor) -> Tensor:
        with torch.autocast(features.device.type, enabled=False):
            return forward(features.float())

    for module in modules:
        module.forward = partial(in_float32, module.forward)
    try:
        yield
    finally:
        for module in modules:
            del module.forward


def put_classifier(network: nn.Module, head: nn.Module) -> None:
    (name,) = classifier_names(network)
    network.set_submodule(name, head)
