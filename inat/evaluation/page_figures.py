"""The figures of the report as its tables print them."""

from collections.abc import Sequence
from dataclasses import dataclass

from inat.core.bands import BANDS
from inat.core.intervals import Interval
from inat.evaluation.evaluate import Evaluation


@dataclass(frozen=True)
class Headline:
    key: str  # its place in metrics.json: top1, bands.few
    name: str  # what the page calls it
    detail: str  # what it is a mean over, in a few words
    interval: Interval | None  # None where there is nothing to measure


def headline_rows(evaluation: Evaluation) -> list[Headline]:
    few_below, many_above = evaluation.band_edges
    edges = {
        "many": f"> {many_above} training photos",
        "medium": f"{few_below} to {many_above}",
        "few": f"< {few_below}",
    }
    photos = f"of {evaluation.n_images:,} photos"
    return [
        Headline("top1", "Top-1", photos, evaluation.top1),
        Headline("top3_error", "Top-3 error", photos, evaluation.top3_error_interval),
        Headline(
            "mean_class_accuracy",
            "Mean class",
            f"over {sum(evaluation.band_species.values()):,} species",
            evaluation.mean_class_accuracy,
        ),
        *(
            Headline(
                f"bands.{band}",
                band.capitalize(),
                f"{edges[band]}; {evaluation.band_species[band]:,} species",
                evaluation.bands[band],
            )
            for band in BANDS
        ),
    ]


def further_rows(evaluations: Sequence[Evaluation]) -> list[tuple[str, list[str]]]:
    """Name of a measure, and its figure of each evaluation."""
    columns = [_further(evaluation) for evaluation in evaluations]
    names = list(dict.fromkeys(name for column in columns for name in column))
    return [(name, [column.get(name, "–") for column in columns]) for name in names]


def _further(evaluation: Evaluation) -> dict[str, str]:
    means, distance = evaluation.means, evaluation.mistake_distance
    found = {
        f"{rank.rank.capitalize()} right, %": share_text(rank.accuracy.value)
        for rank in evaluation.ranks
    }
    if distance is not None and distance.mean is not None:
        found["Mistakes are away from the truth, ranks"] = f"{distance.mean:.2f}"
    found |= {
        "Top-5, %": share_text(evaluation.top_k[5].value),
        "Macro F1, %": share_text(means.macro_f1),
        "Harmonic mean of the species' accuracies, %": share_text(means.harmonic),
        "Geometric mean, %": share_text(means.geometric),
        "Species never right": f"{means.never_right:,}",
    }
    for name, reliability in evaluation.reliability.items():
        of = "all photos" if name == "all" else f"the {name} band"
        ece = None if reliability is None else reliability.ece
        found[f"Calibration error (ECE) of {of}, %"] = share_text(ece)
    for band, bias in evaluation.prediction_bias.items():
        ratio = "–" if bias.ratio is None else f"{bias.ratio:.2f}"
        found[f"{band.capitalize()} band guessed against occurring, ×"] = ratio
    return found


def share_text(share: float | None) -> str:
    """A share in per cent, 81.4; – where it is unknown."""
    return "–" if share is None else f"{100 * share:.1f}"


def interval_text(interval: Interval | None) -> str:
    """The ends of an interval in per cent, 79.3–83.5; nothing where there is none."""
    if interval is None:
        return ""
    return f"{100 * interval.low:.1f}–{100 * interval.high:.1f}"
