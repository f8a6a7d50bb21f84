"""Photos that made trouble in a training: listed in its run, and too many of them stop it."""

from dataclasses import dataclass

from inat.core.files import read_json_as, write_json
from inat.loader.loader import PhotoEvent
from inat.runs.run import Run
from inat.training.processes import by_first, gathered
from inat.training.trainer import Trainer


@dataclass(frozen=True)
class _Listed:
    """bad_photos.json."""

    skipped: list[PhotoEvent]
    recovered: list[PhotoEvent]
    slow: list[PhotoEvent]


def list_bad_photos(trainer: Trainer, run: Run) -> None:
    """Writes the photos that made trouble into the run, and stops it if they are too many."""
    loaders = trainer.loaders
    bad = _unique([event for loader in loaders for event in loader.bad_photos])
    listed = {
        "skipped": bad,
        "recovered": _unique([e for loader in loaders for e in loader.recovered_photos]),
        "slow": _unique([e for loader in loaders for e in loader.slow_photos]),
    }
    if any(listed.values()):
        by_first(lambda: write_json(run.path / "bad_photos.json", listed))
    plan = trainer.plan
    n_photos = len(plan.trained) + (len(plan.held_out) if plan.held_out else 0)
    plan.config.data.refuse_too_many(bad, n_photos, str(run.path / "bad_photos.json"))


def recall_bad_photos(trainer: Trainer, run: Run) -> None:
    """Goes on with the photos that made trouble before."""
    path = run.path / "bad_photos.json"
    if path.is_file():
        listed = read_json_as(path, _Listed, "delete it to resume without it")
        loader = trainer.loader
        loader.bad_photos += listed.skipped
        loader.recovered_photos += listed.recovered
        loader.slow_photos += listed.slow


def _unique(events: list[PhotoEvent]) -> list[PhotoEvent]:
    """The events of all processes, one a photo."""
    everywhere = [event for those in gathered(events) for event in those]
    return list({event.image_id: event for event in everywhere}.values())
