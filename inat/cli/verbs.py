"""The verbs that do more than call one function and show its result."""

import os
import sys
from pathlib import Path
from typing import Annotated, Any

from cyclopts import Parameter

from inat.cli.show import print_line, show
from inat.config.schema import Config
from inat.core.errors import InputError, WorldError


def train(
    config: Path,
    *,
    run: Path | None = None,
    folds: int | None = None,
    resume: bool = False,
    overwrite: bool = False,
    dry_run: bool = False,
    settings: Annotated[Config, Parameter(name="*", consume_multiple=True)] = Config(),  # noqa: B008
) -> None:
    """Trains what a config says, and leaves a run folder.

    Every field of the config is a flag below; a flag overrules the file.

    Args:
        dry_run: print the plan, run one batch of each stage, print the peak memory, and stop; of
            folds the first.
    """
    from inat import training
    from inat.training.folds import fold_config

    speaks = os.environ.get("RANK", "0") == "0"  # one of several processes prints
    if dry_run:
        plan = training.dry_run(settings if folds is None else fold_config(settings, 1, folds))
        if speaks:
            show(plan)
        return
    run = run or Path("runs") / config.stem
    if folds is not None:
        show(training.train_folds(settings, folds, run, resume=resume, overwrite=overwrite))
        return
    made = training.train(settings, run, resume=resume, overwrite=overwrite)
    from inat.training.processes import leave_processes

    leave_processes()
    if speaks:
        show(made)


def predict(run: Path, *, split: str = "test", photos: Path | None = None, **options: Any) -> None:
    """Predicts a split into RUN/predictions/NAME, or prints the likeliest species of photos.

    An interrupted call resumes when it is made again, and the file is the same. Several processes
    share the work (torchrun --nproc-per-node 2 --no-python inat predict RUN). In a folder that
    inat train --folds made, the run of each fold predicts; its --split oof is all photos of train
    in one prediction, each by the run that held it out. With --photos the three likeliest species
    of each photo are printed instead.
    """
    from inat.predictions.folds import OUT_OF_FOLD, predict_folds, predict_out_of_fold
    from inat.predictions.verbs import predict as predict_split
    from inat.predictions.verbs import predict_photos
    from inat.runs.folds import holds_folds

    if photos is not None:
        shared = ("checkpoint", "weights", "views", "view_mean", "precision")
        given = {name: options[name] for name in shared if name in options}
        found = predict_photos(run, photos, **given)
        show(found)
        for event in found.unreadable:
            print_line(f"not read: {event}", file=sys.stderr)
        if not found.guesses:
            raise WorldError(
                f"{photos}: none of its {len(found.unreadable):,} photos could be read"
            )
        return
    if not holds_folds(run):
        predictions = [predict_split(run, split, **options)]
    elif split == OUT_OF_FOLD:
        predictions = [predict_out_of_fold(run, **options)]
    else:
        predictions = predict_folds(run, split, **options)
    for made in predictions:
        show(made)
        for photo in made.meta.bad_photos or []:
            print_line(f"not read, predicted as the class prior: {photo}", file=sys.stderr)


def evaluate(
    prediction: Path,
    *predictions: Path,
    out: Path | None = None,
    report: Path | None = None,
    root: Path | None = None,
    **options: Any,
) -> None:
    """Prints accuracy, top-3 error and shot bands of predictions, and saves every measure.

    Args:
        predictions: more of them; each is a row of the table.
        out: folder for metrics.json and per_class.csv; None: evaluation/ in each prediction.
        report: an HTML file that shows the predictions next to each other with charts, for any
            browser, without a network; None: none.
    """
    from inat.evaluation.evaluate import evaluate as evaluate_one
    from inat.evaluation.table import evaluation_table, further_figures, print_table

    paths = [prediction, *predictions]
    if out is not None and len(paths) > 1:
        raise InputError("--out takes one prediction; without it each has its own evaluation/")
    results, faults = [], []
    for path in paths:
        try:
            results.append(evaluate_one(path, **options))
        except InputError as error:
            faults.append(error)
    if not results:
        raise faults[0]
    folders = [out or result.prediction / "evaluation" for result in results]
    for result, folder in zip(results, folders, strict=True):
        result.save(folder)
    if report is not None:
        from inat.evaluation.page_photos import NO_ROOT
        from inat.evaluation.report import write_report

        write_report(results, report, root=root)
    print_table(evaluation_table({str(result.prediction): result for result in results}))
    for result, folder in zip(results, folders, strict=True):
        print_line(f"{result.prediction}: {further_figures(result)}")
        for note in result.notes:
            print_line(f"note: {result.prediction}: {note}")
        print_line(f"saved {folder / 'metrics.json'}, {folder / 'per_class.csv'}")
    if report is not None:
        print_line(f"saved {report}")
        if root is None:
            print_line(f"note: {report}: {NO_ROOT}")
    for fault in faults[1:]:
        print_line(f"inat: {fault}", file=sys.stderr)
    if faults:
        raise faults[0]


def compare(first: Path, second: Path, *, out: Path | None = None, **options: Any) -> None:
    """Tests whether the second prediction is better than the first, and for which species.

    Both are of the same photos. A difference is claimed where its paired 95 % interval excludes 0
    and McNemar's p is below 0.05.

    Args:
        out: a JSON file for the comparison; None: none.
    """
    from inat.evaluation.compare import compare as compare_predictions
    from inat.evaluation.table import comparison_table, moved_species_lines, print_table

    found = compare_predictions(first, second, **options)
    if out is not None:
        found.save(out)
    print_line(found.sentence())
    print_table(comparison_table(found))
    for line in moved_species_lines(found):
        print_line(line)
    if out is not None:
        print_line(f"saved {out}")


def runs(folder: Path = Path("runs"), *, csv: bool = False, **options: Any) -> None:
    """Lists the runs in a folder with their scores, one row per evaluated prediction.

    Args:
        csv: print all columns as CSV.
    """
    from inat.core.arrays import csv_cells
    from inat.evaluation.table import print_table
    from inat.runs.listing import list_runs, runs_table

    table = list_runs(folder, **options)
    if csv:
        sys.stdout.write(csv_cells(table).to_csv(index=False))
    else:
        print_table(runs_table(table))


def describe(root: Path, *, plot: Path = Path("tail_profile.png"), **options: Any) -> None:
    """Prints the tail profile of a data set and draws it to a PNG.

    Args:
        plot: the PNG.
    """
    from inat.dataset.profile import describe as profile_of
    from inat.dataset.profile import draw_profile

    profile = profile_of(root, **options)
    draw_profile(profile, plot)
    show(profile)
    print_line(f"drawn             {plot}")


def write(prediction: Path, *, out: Path, **options: Any) -> None:
    """Writes a prediction as the competition's CSV, and a manifest next to it.

    The manifest, NAME.manifest.json (of NAME.csv.gz: NAME.csv.gz.manifest.json), states what the
    file was made of.
    """
    from inat.submission.csv_file import write_submission

    print_line(f"wrote {write_submission(prediction, out, **options)}")
    print_line(f"the score to expect: inat submission estimate {prediction}")
