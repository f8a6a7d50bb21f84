"""On which photos a score says nothing, or flatters: one rule for whoever prints a score."""

import numpy as np

from inat.core.errors import InputError
from inat.predictions.file import PredictionFile
from inat.predictions.meta import Role, worst_roles


def roles_for(prediction: PredictionFile, *others: PredictionFile) -> np.ndarray:
    """The role of each photo, as text, for a score that is read as the others' too: a photo on
    which something was chosen for any of them is chosen on. A tau searched on the held-out photos
    for the test split flatters whatever is adjusted by it on these photos."""
    chosen = np.concatenate([each.chosen_keys for each in (prediction, *others)])
    of_choice = np.where(np.isin(prediction.photos["key"], chosen), Role.CHOSEN_ON, Role.UNSEEN)
    return worst_roles(prediction.roles, of_choice)


def refuse_seen_photos(
    prediction: PredictionFile, *others: PredictionFile, chosen_here: bool
) -> list[str]:
    """Refuses photos half of which, or more, were trained on or, without `chosen_here`, had
    something chosen on them; returns sentences to print with the score."""
    roles = roles_for(prediction, *others)
    trained_on = int((roles == Role.TRAINED_ON).sum())
    if 2 * trained_on >= len(prediction):  # fewer are copies in a split that was not trained on
        raise InputError(
            f"{prediction.path}: {trained_on} of its {len(prediction)} photos were trained on, "
            "and a score on them says nothing; predict val, test or the held-out part"
        )
    chosen_on = int((roles == Role.CHOSEN_ON).sum())
    if not chosen_on:
        return []
    if 2 * chosen_on < len(prediction):
        return [
            f"{chosen_on:,} of {len(prediction):,} photos are copies of photos on which something "
            "was chosen"
        ]
    made = [
        f"{what} by {how}"
        for each in (prediction, *others)
        for what, how in each.meta.chosen.items()
    ]
    chosen = "; ".join(dict.fromkeys(made))
    if not chosen_here:
        raise InputError(
            f"{prediction.path}: on {chosen_on} of its photos something was chosen ({chosen}), so "
            "a score on them flatters; predict val or test, or say --chosen-here"
        )
    return [f"chosen on these very photos: {chosen}; the figures flatter"]
