"""Photos that are decoded once and kept in memory: training on small ones waits for no decoder."""

import os
from collections.abc import Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

import numpy as np
from jaxtyping import UInt8

from inat.core.errors import InputError
from inat.core.shared_arrays import SharedArray
from inat.core.threads import in_order, stretches

Event = TypeVar("Event")

LARGEST_SHARE = 0.5
"""Share of the machine's memory that kept photos may take: training needs the rest."""

PHOTOS_AT_ONCE = 256
"""Photos that a thread decodes before it takes the next."""


@dataclass(frozen=True)
class KeptPhotos(Generic[Event]):
    """Decoded photos.

    Attributes:
        pixels: uint8 `[photos, size, size, 3]`, black where a photo could not be decoded.
        events: what was noted of a photo while it was decoded, by its position.
    """

    pixels: SharedArray
    events: dict[int, list[Event]]


def keep_photos(
    decode: Callable[[int, UInt8[np.ndarray, "size size 3"]], list[Event]],
    n_photos: int,
    size: int,
    workers: int,
) -> KeptPhotos[Event]:
    """Decodes every photo once.

    Args:
        decode: writes the photo of a position into an array, and gives what is to be noted of it.
        n_photos: how many there are.
        size: side of each, in pixels.
        workers: threads that decode; 0 decodes in the calling thread.
    """
    pixels = np.zeros((n_photos, size, size, 3), np.uint8)

    def decode_some(photos: range) -> list[tuple[int, list[Event]]]:
        return [(photo, decode(photo, pixels[photo])) for photo in photos]

    parts = in_order(decode_some, stretches(n_photos, PHOTOS_AT_ONCE), workers)
    noted = {photo: events for part in parts for photo, events in part if events}
    return KeptPhotos(SharedArray(pixels), noted)


def refuse_too_many(n_photos: int, size: int) -> None:
    """Refuses photos that would take too much of the machine's memory, decoded.

    Raises:
        InputError: they do.
    """
    memory = machine_memory()
    n_bytes = n_photos * size * size * 3
    if memory is not None and n_bytes > LARGEST_SHARE * memory:
        raise InputError(
            f"data.keep_photos: {n_photos} photos of {size} x {size} pixels take "
            f"{n_bytes / 1e9:.1f} GB, more than {LARGEST_SHARE:.0%} of this machine's "
            f"{memory / 1e9:.1f} GB; set data.keep_photos false"
        )


def machine_memory() -> int | None:
    """Bytes of memory that the machine has; None where the system does not say."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
