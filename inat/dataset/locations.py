"""Where and when photos were taken, scaled as a geo prior takes it."""

import numpy as np
from jaxtyping import Bool, Float32

from inat.core.competitions import find_competition
from inat.core.errors import InputError
from inat.dataset.split import Split

LIMITS = {"lon": (-180, 180), "lat": (-90, 90), "date_c": (0, 1)}


def places_of(photos: Split) -> Float32[np.ndarray, "photos 3"]:
    """Longitude / 180, latitude / 90 and date (elapsed share of the year in UTC) of each photo,
    from -1 to 1; NaN where unknown. A photo that lacks one coordinate has no place. An InputError
    if the split has no locations, or one that is not on the globe."""
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
    dates = table["date"].dt.tz_localize(None).to_numpy("datetime64[us]")
    year = dates.astype("datetime64[Y]")
    begin, end = (moment.astype("datetime64[us]") for moment in (year, year + 1))
    share = (dates - begin) / (end - begin)
    if "date_c" in table:
        given = table["date_c"].to_numpy(np.float64)
        share = np.where(np.isnan(given), share, given)
    return np.stack([lon / 180, lat / 90, 2 * share - 1], axis=1).astype(np.float32)


def have_place(places: Float32[np.ndarray, "photos 3"]) -> Bool[np.ndarray, "photos"]:
    """Which photos have a place, dated or not."""
    return ~np.isnan(places[:, 0])
