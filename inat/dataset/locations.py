"""Where and when photos were taken, scaled as a geo prior takes it."""

import numpy as np
import pandas as pd
from jaxtyping import Bool, Float32, Float64

from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.dataset.split import Split

LIMITS = {"lon": (-180, 180), "lat": (-90, 90), "date_c": (0, 1)}


def places_of(photos: Split) -> Float32[np.ndarray, "photos 3"]:
    """Longitude / 180, latitude / 90 and date of each photo, from -1 to 1; NaN where unknown.

    The date is the share of its year that is over, in UTC: -1 when January begins, 1 when
    December ends. A photo that lacks one coordinate has no place.

    Raises:
        InputError: the split has no locations, or one that is not on the globe.
    """
    table = photos.locations
    if table is None:
        files = find_competition(photos.competition).locations_files
        if photos.name == "test" and "test" not in files:
            raise InputError(
                f"{photos.root}: {photos.competition} gives no locations for its test photos, so "
                "a geo prior says nothing of them; predict val or holdout"
            )
        wanted = " and ".join(files.values()) or "locations files"
        raise InputError(
            f"{photos.root}: it lacks locations of {photos.name}, which a geo prior needs "
            f"({wanted}); fetch them: inat data download {photos.competition} --only locations"
        )
    for name, (low, high) in LIMITS.items():
        values = table[name].to_numpy(np.float64) if name in table else np.empty(0)
        beyond = np.flatnonzero((values < low) | (values > high))
        if len(beyond):
            raise InputError(
                f"{photos.root}: the locations of {photos.name} give image "
                f"{photos.image_ids[beyond[0]]} the {name} {values[beyond[0]]:g}, which is not "
                f"within {low} and {high}; mend it, or make it null"
            )
    lon, lat = (table[name].to_numpy(np.float64) for name in ("lon", "lat"))
    lon, lat = np.where(np.isnan(lat), np.nan, lon), np.where(np.isnan(lon), np.nan, lat)
    scaled = np.stack([lon / 180, lat / 90, 2 * _shares_of_year(table) - 1], axis=1)
    places: Float32[np.ndarray, "photos 3"] = scaled.astype(np.float32)
    return places


def have_place(places: Float32[np.ndarray, "photos 3"]) -> Bool[np.ndarray, "photos"]:
    """Which photos have a place, dated or not."""
    placed: Bool[np.ndarray, photos] = ~np.isnan(places[:, 0])
    return placed


def _shares_of_year(table: pd.DataFrame) -> Float64[np.ndarray, "photos"]:
    date = table["date"].dt.tz_localize(None).to_numpy("datetime64[us]")
    year = date.astype("datetime64[Y]")
    begin, end = (moment.astype("datetime64[us]") for moment in (year, year + 1))
    share: Float64[np.ndarray, photos] = (date - begin) / (end - begin)
    if "date_c" not in table:
        return share
    given = table["date_c"].to_numpy(np.float64)
    return np.where(np.isnan(given), share, given)
