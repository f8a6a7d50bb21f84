"""The literature's shot bands: many, medium and few training photos (Liu et al. 2019)."""

FEW_BELOW = 20
"""few has fewer training photos than this."""

MANY_ABOVE = 100
"""many has more training photos than this; medium is what lies between."""

BANDS = ("many", "medium", "few")
