"""A timm backbone with a new classifier, ready to be trained."""

from collections.abc import Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import Any, Literal

import timm
import torch
from torch import nn

from inat.config.schema import ModelConfig
from inat.core.competitions import Competition
from inat.core.errors import InputError, WorldError
from inat.models import cifar_resnet  # noqa: F401 - registers its networks in timm
from inat.models.device import first_line, is_of_memory
from inat.models.heads import build_head, classifier_names, put_classifier, single_classifier
from inat.models.weights import PACKAGES, Triple, load_weights


@dataclass(frozen=True)
class Backbone:
    network: nn.Module  # images `[batch, 3, height, width]` to logits `[batch, classes]`
    mean: Triple  # what to subtract from each channel, as a share of 255
    std: Triple  # what to divide each channel by, as a share of 255
    source: str  # where the weights come from, with their licence as far as it is known
    is_frozen: bool = False  # whether all but the classifier keeps the weights it came with
    constants: frozenset[str] = frozenset()  # parameters that timm does not train

    def head_parameters(self) -> set[int]:
        """Ids of the parameters."""
        heads = [self.network.get_submodule(name) for name in classifier_names(self.network)]
        return {id(parameter) for head in heads for parameter in head.parameters()}

    def still_if_frozen(self) -> None:
        """Puts a frozen network back into eval mode, for loops that have just left it: batch norm
        uses its stored statistics and leaves them, and nothing is dropped."""
        if self.is_frozen:
            self.network.eval()


def build_backbone(
    config: ModelConfig, n_classes: int, seed: int, image_size: int | None = None
) -> Backbone:
    """Builds the network that `config` names, with its weights and a new classifier.

    Random weights depend on `seed` alone; torch's global generator is left as it was.
    `image_size` (pixels) is for networks that are built for one size, as most ViTs are.

    Raises:
        InputError: an unknown backbone, an unusable weights file, a package that is not installed,
            a head that has no place in this network.
        WorldError: the hub cannot be reached.
    """
    name = config.backbone
    base_name = name.partition(".")[0]
    if not timm.is_model(base_name):
        near = timm.list_models(f"*{base_name}*")[:8] or timm.list_models(f"{base_name[:6]}*")[:8]
        known = f"it has {', '.join(near)} ..." if near else "timm.list_models() lists those it has"
        raise InputError(f"model.backbone: timm has no {base_name!r}; {known}")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _create(config, n_classes, image_size)
    if not classifier_names(network):
        raise InputError(
            f"model.backbone {name}: the network has no classifier; give one that has, such as "
            "resnet50"
        )
    source = load_weights(network, config.weights, base_name)
    own: Any = network.pretrained_cfg
    statistics = PACKAGES.get(config.weights)
    mean, std = (statistics.mean, statistics.std) if statistics else (own["mean"], own["std"])
    if config.head != "linear":  # timm's own is one
        old = single_classifier(network, f"model.head {config.head}")
        n_features = old.get_parameter("weight").shape[1]
        new = build_head(config.head, n_features, n_classes, seed=seed, scale=config.head_scale)
        put_classifier(network, new)
    constants = frozenset(n for n, p in network.named_parameters() if not p.requires_grad)
    backbone = Backbone(network, tuple(mean), tuple(std), source, constants=constants)
    return frozen(backbone, config.freeze)


def frozen(backbone: Backbone, freeze: Literal["none", "backbone"]) -> Backbone:
    """The backbone with what `model.freeze` says is trainable, and no more."""
    head = backbone.head_parameters()
    for name, parameter in backbone.network.named_parameters():
        trained = freeze == "none" or id(parameter) in head
        parameter.requires_grad_(trained and name not in backbone.constants)
    return replace(backbone, is_frozen=freeze == "backbone")


def set_image_size(network: nn.Module, image_size: int) -> None:
    """Sets the image size (pixels) of networks that are built for one, as most ViTs are; timm
    interpolates their positions. Others take any size. Raises InputError where it cannot be set."""
    timm_network: Any = network
    if not timm_network.pretrained_cfg.get("fixed_input_size"):
        return
    name = timm_network.pretrained_cfg["architecture"]
    if not hasattr(network, "set_input_size"):
        raise InputError(
            f"transforms.image_size {image_size}: {name} keeps the size it was built for; give "
            "all stages the same"
        )
    timm_network.set_input_size(img_size=(image_size, image_size))


def try_batch(backbone: Backbone, image_size: int, batch_size: int) -> None:
    """Passes an empty image of that size (pixels) through the network, and, if it is to be trained
    on batches of one photo, one such batch through a copy in training mode. Raises InputError where
    the network does not take the size or the batch."""
    network = backbone.network
    parameter = next(network.parameters())
    image = parameter.new_zeros(1, 3, image_size, image_size)
    was_training = network.training
    try:
        with torch.no_grad():
            network.eval()(image)
    except Exception as error:  # networks check sizes with asserts, or fail in any way
        if is_of_memory(error):
            raise
        raise InputError(
            f"transforms.image_size {image_size}: the network does not take it "
            f"({first_line(error)})"
        ) from None
    finally:
        network.train(was_training)
    if batch_size > 1 or backbone.is_frozen:
        return
    try:
        with torch.no_grad(), torch.random.fork_rng(devices=[]):
            deepcopy(network).train()(image)
    except ValueError as error:
        if "more than 1 value per channel" not in str(error):
            raise
        raise InputError(
            "batch_size 1: batch norm cannot be trained on one photo at this image size; give "
            "batch_size 2 or more (optim.accumulate does not help), or model.freeze backbone"
        ) from None


def renew_head(networks: Sequence[nn.Module], config: ModelConfig, seed: int) -> None:
    """Gives the classifiers of networks of one build the same new random weights; the parameters
    stay the same objects. Raises InputError as `single_classifier` does."""
    for network in networks:
        old = single_classifier(network, "new_head")
        n_classes, n_features = old.get_parameter("weight").shape
        new = build_head(config.head, n_features, n_classes, seed=seed, scale=config.head_scale)
        old.load_state_dict(new.state_dict())


def rule_warning(config: ModelConfig, source: str, competition: Competition) -> str | None:
    """The sentence for weights that the competition's rules forbid; None where they are allowed."""
    if config.weights == "none":  # the tag in the backbone's name says nothing then
        return None
    text = f"{config.backbone} {source}".lower()
    for mark, reason in competition.forbidden_weights.items():
        if mark in text:
            return f"these weights ({source}) break the rules of {competition.slug}: {reason}"
    return None


def _create(config: ModelConfig, n_classes: int, image_size: int | None) -> nn.Module:
    options: dict[str, Any] = {"drop_rate": config.dropout, "drop_path_rate": config.drop_path}
    try:
        known = timm.get_pretrained_cfg(config.backbone)
    except RuntimeError as error:
        raise InputError(f"model.backbone {config.backbone}: {first_line(error)}") from None
    if known is not None and known.fixed_input_size:
        options["img_size"] = image_size  # most transformers must be told
    # Not every network knows every option; one that is off need not be given.
    given = {name: value for name, value in options.items() if value}
    try:
        network: nn.Module = timm.create_model(
            config.backbone, pretrained=config.weights == "hub", num_classes=n_classes, **given
        )
    except TypeError:
        raise InputError(
            f"model.backbone: {config.backbone} does not take {' and '.join(given)}; set model."
            "dropout and model.drop_path to 0"
        ) from None
    except (RuntimeError, ValueError, AssertionError) as error:
        raise InputError(f"model.backbone {config.backbone}: {first_line(error)}") from None
    except Exception as error:  # the hub's client has a dozen kinds of its own
        raise WorldError(
            f"model.weights: the hub gave no weights for {config.backbone} "
            f"({type(error).__name__}: {first_line(error):.120}); give a local file or none"
        ) from None
    return network
