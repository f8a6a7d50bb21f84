"""A prediction while it is made: whole parts of its rows, from which a later call goes on.

They lie beside the prediction, in a hidden folder of its name, and go when it is in its place.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import orjson
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save

from inat.core.errors import InputError
from inat.core.files import open_file, write_bytes

PART_IMAGES = 2048
"""Images, views counted, of one part: what a kill costs at most, a minute or so on a CPU."""


@dataclass(frozen=True)
class Troubles:
    """What befell the photos of a part: those not read, read after a repair, read slowly."""

    bad: list[str] = field(default_factory=list)
    recovered: list[str] = field(default_factory=list)
    slow: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Parts:
    """The parts of one prediction, each a file whose header names the settings it was made with."""

    folder: Path
    digest: str  # of the settings; a part of others counts as missing
    n_photos: int  # rows of all parts together
    length: int  # photos of a part; the last may have fewer

    def __len__(self) -> int:
        return -(-self.n_photos // self.length)

    def rows(self, number: int) -> slice:
        return slice(number * self.length, min((number + 1) * self.length, self.n_photos))

    def missing(self, numbers: Iterable[int]) -> list[int]:
        """Parts of other settings count as missing."""
        return [number for number in numbers if self._header(number).get("digest") != self.digest]

    def write(
        self, number: int, logits: Float[np.ndarray, "rows classes"], troubles: Troubles
    ) -> None:
        header = {"digest": self.digest, "troubles": orjson.dumps(vars(troubles)).decode()}
        write_bytes(self._path(number), save({"logits": logits}, header))

    def read(self, number: int) -> tuple[Float[np.ndarray, "rows classes"], Troubles]:
        logits: np.ndarray = load_file(self._path(number))["logits"]
        return logits, Troubles(**orjson.loads(self._header(number)["troubles"]))

    def remove(self) -> None:
        shutil.rmtree(self.folder, ignore_errors=True)

    def _path(self, number: int) -> Path:
        return self.folder / f"{number:06}.safetensors"

    def _header(self, number: int) -> dict[str, str]:
        try:
            with open_file(self._path(number)), safe_open(self._path(number), "numpy") as part:
                header: dict[str, str] = part.metadata() or {}
        except (OSError, InputError, SafetensorError):  # missing or damaged: it is made again
            return {}
        return header


def parts_folder(prediction: Path) -> Path:
    return prediction.with_name(f".parts-{prediction.name}")
