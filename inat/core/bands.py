"""The shot bands: many, medium and few training photos (Liu et al. 2019), and their edges."""

from typing import Literal

FEW_BELOW = 20
"""few has fewer training photos than this."""

MANY_ABOVE = 100
"""many has more training photos than this; medium is what lies between."""

BANDS = ("many", "medium", "few")

BandName = Literal["literature", "mislas"]

BAND_EDGES: dict[BandName, tuple[int, int]] = {
    "literature": (FEW_BELOW, MANY_ABOVE),
    "mislas": (21, MANY_ABOVE),  # Zhong et al. 2021: 20 photos are few
}
