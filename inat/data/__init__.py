"""Photos and labels: read, made, imported, described, drawn, loaded."""

from typing import TYPE_CHECKING

from inat.lazy import lazy_names

if TYPE_CHECKING:
    from inat.data.annotations import Split, cut_holdout, load_split
    from inat.data.importing import Imported, import_folders
    from inat.data.loader import Loader, build_loader, to_device
    from inat.data.synthetic import World, synth
    from inat.data.tail_profile import TailProfile, describe, draw_profile

__all__ = [
    "Imported",
    "Loader",
    "Split",
    "TailProfile",
    "World",
    "build_loader",
    "cut_holdout",
    "describe",
    "draw_profile",
    "import_folders",
    "load_split",
    "synth",
    "to_device",
]

_find = lazy_names(
    __name__,
    {
        "Imported": "inat.data.importing",
        "Loader": "inat.data.loader",
        "Split": "inat.data.annotations",
        "TailProfile": "inat.data.tail_profile",
        "World": "inat.data.synthetic",
        "build_loader": "inat.data.loader",
        "cut_holdout": "inat.data.annotations",
        "describe": "inat.data.tail_profile",
        "draw_profile": "inat.data.tail_profile",
        "import_folders": "inat.data.importing",
        "load_split": "inat.data.annotations",
        "synth": "inat.data.synthetic",
        "to_device": "inat.data.loader",
    },
)


def __getattr__(name: str) -> object:
    return _find(name)
