"""The photos on the report: confused pairs and mistakes, with pictures where there are any."""

import base64
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import pyarrow as pa
import simplejpeg

from inat.core.errors import InputError
from inat.evaluation.confusion import ConfusedPair, Mistake
from inat.evaluation.evaluate import Evaluation
from inat.predictions.file import read_prediction

N_PAIRS = 12
N_PHOTOS = 3
N_MISTAKES = 24
MOST_PICTURES = 300
"""On a page, whatever the number of predictions; a picture takes about 8 kB of it."""

NO_ROOT = "photos are not shown; --data.root DATA shows those of the data set in DATA"
SIZE = 160
QUALITY = 75


@dataclass(frozen=True)
class ShownPhotos:
    pairs: list[list[ConfusedPair]]  # of each evaluation, with the photos that are shown
    mistakes: list[list[Mistake]]  # of each evaluation, in the few band
    pictures: dict[int, str]  # JPEGs of 160 x 160 pixels in base 64, by image id
    notes: list[str]  # why photos have no picture


def shown_photos(evaluations: Sequence[Evaluation], root: Path | None) -> ShownPhotos:
    """Picks what is shown of each evaluation, and reads its pictures below `root`."""
    pairs = [
        [
            ConfusedPair(
                pair.n,
                *(
                    replace(side, image_ids=side.image_ids[:N_PHOTOS])
                    for side in (pair.first, pair.second)
                ),
            )
            for pair in evaluation.confused_pairs[:N_PAIRS]
        ]
        for evaluation in evaluations
    ]
    mistakes = [evaluation.worst_mistakes[:N_MISTAKES] for evaluation in evaluations]
    pictures: dict[int, str] = {}
    notes: dict[str, None] = {}  # each once, in their order
    for evaluation, own_pairs, own_mistakes in zip(evaluations, pairs, mistakes, strict=True):
        sides = [side for pair in own_pairs for side in (pair.first, pair.second)]
        wanted = [image_id for side in sides for image_id in side.image_ids]
        wanted += [mistake.image_id for mistake in own_mistakes]
        missing = [image_id for image_id in dict.fromkeys(wanted) if image_id not in pictures]
        room = MOST_PICTURES - len(pictures)
        if len(missing) > room:
            notes[f"the page holds {MOST_PICTURES} photos; further ones are not shown"] = None
        read, why = _read_pictures(evaluation.prediction, root, missing[:room])
        pictures |= read
        notes |= dict.fromkeys(why)
    return ShownPhotos(pairs, mistakes, pictures, list(notes))


def _read_pictures(
    prediction: Path, root: Path | None, image_ids: list[int]
) -> tuple[dict[int, str], list[str]]:
    """The pictures by image id, and what was in the way of others."""
    if not image_ids:
        return {}, []
    # A prediction names its data root too, but one from a stranger may name any folder.
    if root is None:
        return {}, [NO_ROOT]
    if not root.is_dir():
        return {}, [f"photos are not shown: {root} is not there"]
    # Only here: decoding rests on torch, which the figures do without.
    from inat.photos.decode import BadPhoto
    from inat.photos.sources import open_photos

    names = read_prediction(prediction).photos.set_index("id")["file_name"].loc[image_ids]
    try:
        source = open_photos(root, pa.array(names.tolist(), pa.string()))
    except InputError as error:
        return {}, [f"photos are not shown: {error}"]
    pictures, bad = {}, []
    for row, image_id in enumerate(image_ids):
        try:
            pictures[image_id] = _picture(source.read(row))
        except BadPhoto as error:
            bad.append(f"{source.path(row)}: {error}")
    more = f"; and {len(bad) - 1} more" if len(bad) > 1 else ""
    return pictures, [f"photos that cannot be read: {bad[0]}{more}"] if bad else []


def _picture(content: bytes | memoryview) -> str:
    """The middle square of a photo as a small JPEG in base 64."""
    from inat.photos.decode import Box, decode, read_header

    header = read_header(content)
    (height, width), side = header.size, min(header.size)
    middle = Box((height - side) / 2, (width - side) / 2, side, side)
    (pixels,), _ = decode(header, [middle], [SIZE])
    return base64.b64encode(simplejpeg.encode_jpeg(pixels, quality=QUALITY)).decode()
