"""How many decoded photos fit into memory: training on small ones then waits for no decoder."""

import os

from inat.core.errors import InputError

LARGEST_SHARE = 0.5
"""Share of the machine's memory that cached photos may take: training needs the rest."""


def refuse_too_many(n_photos: int, size: int) -> None:
    """Refuses photos that, decoded, would take too much of the machine's memory."""
    memory = machine_memory()
    n_bytes = n_photos * size * size * 3
    if memory is not None and n_bytes > LARGEST_SHARE * memory:
        raise InputError(
            f"data.keep_photos: {n_photos} photos of {size} x {size} pixels take "
            f"{n_bytes / 1e9:.1f} GB, more than {LARGEST_SHARE:.0%} of this machine's "
            f"{memory / 1e9:.1f} GB; set data.keep_photos false"
        )


def machine_memory() -> int | None:
    """Bytes; None where the system does not report it."""
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):  # Windows has no sysconf
        return None
