"""Features of a run's photos, extracted once and kept: float16 on the disk, memory-mapped.

They lie in RUN/features/<split>-<digest>/, and are used again for as long as the digest of
config, checkpoint, photos and views is the same. View 0 is the centre crop that predictions use,
view 1 the same mirrored, view v from 2 on what epoch v of the run's own training recipe drew.
"""

import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import msgspec
import numpy as np
import orjson
import pandas as pd
import torch
from jaxtyping import Float, Float16, Int64
from numpy.lib.format import open_memmap
from torch import Tensor

from inat.core.arrays import read_array
from inat.core.errors import InputError, WorldError
from inat.core.files import atomic_folder, read_json_as, reserve, to_plain, write_json
from inat.core.progress import Bar, progress_bar, say
from inat.dataset.split import Split
from inat.loader.loader import Loader
from inat.loader.reader import PhotoIssue
from inat.models.device import freed_memory_kept
from inat.stage_two.extractor import FeatureExtractor

FORMAT = 1
CHUNK_BYTES = 64_000_000


@dataclass(frozen=True, eq=False)
class Features:
    path: Path
    values: Float16[np.ndarray, "views photos features"]  # float16, memory-mapped
    labels: Int64[np.ndarray, "photos"]
    readable: Int64[np.ndarray, "readable"]  # positions; the others have no features
    bad_photos: list[str]  # those, with the reason
    n_classes: int

    @property
    def n_views(self) -> int:
        return len(self.values)

    def chunks(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Features (float32) and labels of the readable photos, one view behind the other; about
        64 MB at a time, and so are the logits."""
        rows = max(1, CHUNK_BYTES // (4 * max(self.values.shape[2], self.n_classes)))
        for view in self.values:
            for begin in range(0, len(self.readable), rows):
                photos = self.readable[begin : begin + rows]
                values = torch.from_numpy(view[photos].astype(np.float32))
                yield values, torch.from_numpy(self.labels[photos])


class _Meta(msgspec.Struct):
    """meta.json: the digest in the folder's name is that of all fields before `bad_ids`."""

    format: int
    config: str
    checkpoint_sha256: str
    precision: str
    data_root: str
    photos: str
    order: str
    views: int
    bad_ids: list[int] = []
    bad_photos: list[str] = []
    recovered_photos: list[str] = []
    slow_photos: list[str] = []


def cached_features(extractor: FeatureExtractor, photos: Split, n_views: int) -> Features:
    """The features of `photos` in `n_views` views, extracted where they are not there yet."""
    source = extractor.source
    meta = _Meta(
        format=FORMAT,
        config=source.config.digest,
        checkpoint_sha256=source.checkpoint.digest,
        precision=source.model.precision,
        data_root=str(photos.root.resolve()),
        photos=photos.fingerprint,
        # The fingerprint is that of a set, and the features are a list.
        order=hashlib.sha256(np.stack([photos.image_ids, photos.keys]).tobytes()).hexdigest(),
        views=n_views,
    )
    key = {name: getattr(meta, name) for name in meta.__struct_fields__[:8]}
    digest = hashlib.sha256(orjson.dumps(key)).hexdigest()[:12]
    name = photos.name.replace(":", "-").replace("/", "-of-")
    path = source.run.path / "features" / f"{name}-{digest}"
    if not (path / "meta.json").is_file():
        began = time.monotonic()
        _extract(extractor, photos, path, meta)
        say(
            f"features   {path}: {len(photos)} photos x {n_views} views x {extractor.n_features}, "
            f"extracted in {time.monotonic() - began:.1f} s"
        )
    remedy = "remove its folder, and the features are extracted again"
    meta = read_json_as(path / "meta.json", _Meta, remedy)
    values = read_array(path / "features.npy", remedy, np.float16, ndim=3)
    if values.shape[1] != len(photos):
        raise InputError(f"{path}: has {values.shape[1]} photos, not {len(photos)}; {remedy}")
    return Features(
        path=path,
        values=values,
        labels=photos.labels,
        readable=np.flatnonzero(~np.isin(photos.image_ids, meta.bad_ids)),
        bad_photos=meta.bad_photos,
        n_classes=photos.n_classes,
    )


def _extract(extractor: FeatureExtractor, photos: Split, path: Path, meta: _Meta) -> None:
    n_views = meta.views
    shape = (n_views, len(photos), extractor.n_features)
    extractor.network.eval()
    with (
        atomic_folder(path) as partial,
        progress_bar(f"features of {photos.name}", n_views * len(photos), "photos") as bar,
        freed_memory_kept(),
    ):
        values = open_memmap(partial / "features.npy", mode="w+", dtype=np.float16, shape=shape)
        reserve(partial / "features.npy")
        loader = extractor.loader(photos)
        _fill_center(extractor, photos, loader, values[:2], bar)
        bad = {event.image_id: str(event) for event in loader.bad_photos}
        for view in range(2, n_views):
            for event in _fill_augmented(extractor, photos, values[view], view, bar):
                bad[event.image_id] = str(event)
        values.flush()
        extractor.source.config.data.refuse_too_many(list(bad.values()), len(photos))
        meta.bad_ids, meta.bad_photos = list(bad), list(bad.values())
        meta.recovered_photos = [str(event) for event in loader.recovered_photos]
        meta.slow_photos = [str(event) for event in loader.slow_photos]
        write_json(partial / "meta.json", to_plain(meta))


def _fill_center(
    extractor: FeatureExtractor,
    photos: Split,
    loader: Loader,
    values: Float16[np.ndarray, "views photos features"],
    bar: Bar,
) -> None:
    """The center crop and, where two views are wanted, its mirror image: a photo is read once."""
    places = pd.Index(photos.image_ids)
    for batch in loader:
        images = extractor.source.model.images(batch)
        rows = places.get_indexer(batch["image_id"].numpy())
        for view, seen in zip(values, (images, images.flip(3)), strict=False):
            view[rows] = _as_stored(extractor(seen))
            bar.advance(len(rows))


def _fill_augmented(
    extractor: FeatureExtractor,
    photos: Split,
    values: Float16[np.ndarray, "photos features"],
    epoch: int,
    bar: Bar,
) -> list[PhotoIssue]:
    """The photos as an epoch of the run's recipe draws them, each once.

    A training loader leaves out the last, shorter batch; so it is asked for whole batches, and
    the draws beyond the last photo, which are of photos that were there already, are left out.
    """
    size = min(extractor.source.batch_size, len(photos))
    whole_batches = -(-len(photos) // size) * size
    loader = extractor.loader(photos, training=True, epoch_size=whole_batches)
    loader.set_epoch(epoch)
    places = pd.Index(photos.image_ids)
    is_new = np.ones(len(photos), bool)
    for batch in loader:
        images = extractor.source.model.images(batch)
        rows = places.get_indexer(batch["image_id"].numpy())
        first = np.unique(rows, return_index=True)[1]
        first = first[is_new[rows[first]]]
        values[rows[first]] = _as_stored(extractor(images))[first]
        is_new[rows] = False
        bar.advance(len(first))
    return loader.bad_photos


def _as_stored(features: Float[Tensor, "batch features"]) -> Float16[np.ndarray, "batch features"]:
    stored = features.half()
    if not bool(stored.isfinite().all()):
        raise WorldError(
            "a feature is not finite, or too large for float16; take another checkpoint or "
            "--weights raw, or give --live, which stores none"
        )
    half: Float16[np.ndarray, "batch features"] = stored.cpu().numpy()
    return half
