"""Photos and labels: read, made, imported, described, drawn, loaded."""

from typing import TYPE_CHECKING

from inat.lazy import lazy_names

if TYPE_CHECKING:
    from inat.data.annotations import Split, cut_holdout, load_split
    from inat.data.downloading import Downloaded, download
    from inat.data.importing import Imported, import_folders
    from inat.data.loader import Loader, build_loader, to_device
    from inat.data.packing import Packed, pack_photos
    from inat.data.synthetic import World, synth
    from inat.data.tail_profile import TailProfile, describe, draw_profile
    from inat.data.verifying import Verified, verify

__all__ = [
    "Downloaded",
    "Imported",
    "Loader",
    "Packed",
    "Split",
    "TailProfile",
    "Verified",
    "World",
    "build_loader",
    "cut_holdout",
    "describe",
    "download",
    "draw_profile",
    "import_folders",
    "load_split",
    "pack_photos",
    "synth",
    "to_device",
    "verify",
]

_find = lazy_names(
    __name__,
    {
        "Downloaded": "inat.data.downloading",
        "Imported": "inat.data.importing",
        "Loader": "inat.data.loader",
        "Packed": "inat.data.packing",
        "Split": "inat.data.annotations",
        "TailProfile": "inat.data.tail_profile",
        "Verified": "inat.data.verifying",
        "World": "inat.data.synthetic",
        "build_loader": "inat.data.loader",
        "cut_holdout": "inat.data.annotations",
        "describe": "inat.data.tail_profile",
        "download": "inat.data.downloading",
        "draw_profile": "inat.data.tail_profile",
        "import_folders": "inat.data.importing",
        "load_split": "inat.data.annotations",
        "pack_photos": "inat.data.packing",
        "synth": "inat.data.synthetic",
        "to_device": "inat.data.loader",
        "verify": "inat.data.verifying",
    },
)


def __getattr__(name: str) -> object:
    return _find(name)


def __dir__() -> list[str]:
    return list(__all__)
