"""The command line: one verb, one function that parses, calls and prints.

Nothing heavy is imported here: a verb imports what it calls, so that --help answers at once.
"""

import builtins
import os
import sys
import traceback
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal, TextIO

from cyclopts import App, CycloptsError, MissingArgumentError, Parameter, UnknownOptionError
from cyclopts.argument import ArgumentCollection, update_argument_collection

from inat.config.schema import (
    CheckpointName,
    Config,
    EnsembleRule,
    Precision,
    SoupRecipe,
    StageTwoMethod,
    ViewMean,
    Weights,
    WeightSearch,
)
from inat.core.bands import BandName
from inat.core.errors import FaultsFound, InatError, InputError, WorldError, one_line, shown

if TYPE_CHECKING:
    from inat.predictions.file import PredictionFile

app = App(
    name="inat",
    help="Fine-grained species classification: from long-tailed photos to a scored Kaggle "
    "submission.",
    version_flags=["--version"],
    # No --data.empty-band-edges: lists have lengths of their own, and --stages none has a word.
    default_parameter=Parameter(negative_iterable=()),
)
data = App(name="data", help="Make, import and look at data sets.")
submission = App(
    name="submission", help="Write, check, score and upload Kaggle's submission files."
)
app.command(data)
app.command(submission)


def print(line: str, file: TextIO | None = None) -> None:
    """One line for a terminal, to which names from strangers in it do no harm."""
    builtins.print(shown(line), file=file)


@app.command
def demo(*, out: Path = Path("demo"), seed: int = 0) -> None:
    """The whole road in five minutes: a synthetic world, two models, a scored submission.

    From Python: inat.run_demo.

    Parameters
    ----------
    out
        Folder for the world and the runs; the CSV goes into submissions/ of the folder you are in.
    seed
        Seed of the world and of the trainings.
    """
    from inat.demo import run_demo

    for line in run_demo(out, seed=seed).lines():
        print(line)


@data.command
def download(
    competition: str,
    *,
    root: Path,
    only: Literal["annotations", "train_val", "test", "locations"] | None = None,
    base_url: str | None = None,
    keep_archives: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Fetch a competition's data, check it and unpack it; go on where an earlier call stopped.

    From Python: inat.download.

    Parameters
    ----------
    competition
        Kaggle name: inaturalist-2018, 160 GB.
    root
        Folder for the data; it, train_val2018 and test2018 in it may be links to a larger disk.
    only
        annotations, train_val (photos), test (photos) or locations; unset: all.
    base_url
        Address of a mirror; unset: the organisers'.
    keep_archives
        Leave the archives beside what they held.
    """
    from inat.acquire.download import download as fetch

    done = fetch(competition, root, only=only, base_url=base_url, keep_archives=keep_archives)
    print(
        f"{root}: {done.n_files:,} files of {len(done.fetched)} archives, "
        f"{len(done.complete)} archives were there already"
    )


@data.command
def synth(
    *,
    out: Path,
    profile: Literal["tiny", "small", "inat2018"] = "small",
    seed: int = 0,
    photos: int | None = None,
    workers: int | None = None,
) -> None:
    """Write a synthetic species world with known truth, in the iNat layout.

    From Python: inat.synth.

    Parameters
    ----------
    out
        Folder of the world.
    profile
        tiny (36 species, 256 px), small (64 species, 800 px), inat2018 (8,142 species, the real
        competition's shape).
    seed
        Seed of everything in it.
    photos
        Photo files that the rows of inat2018 share; unset: 2,000.
    workers
        Processes that draw; 0 draws in this one; unset: one a processor.
    """
    from inat.synthetic.world import synth as make_world

    world = make_world(out, profile=profile, seed=seed, photos=photos, workers=workers)
    print(
        f"{world.root}: {world.n_species:,} species, {world.n_train:,} train, "
        f"{world.n_val:,} val, {world.n_test:,} test, {world.n_photo_files:,} photo files"
    )


@data.command(name="import")
def import_(
    *,
    train: Path,
    out: Path,
    test: Path | None = None,
    species: Literal["top", "leaf"] | None = None,
    val_share: float = 0.1,
    imbalance_factor: float | None = None,
    seed: int = 0,
) -> None:
    """Turn folders of photos, one per species, into a data set in the iNat layout.

    The content of a file decides whether it is a photo. Links are followed; hidden and system
    folders are not searched. Photos are hard-linked where the disk allows it, else copied; their
    pixels and color profile stay as they are. HEIC photos become JPEG with the extra heic (pip
    install 'inat[heic]'). Whatever is passed over is counted, and listed in OUT/passed_over.csv.

    From Python: inat.import_folders.

    Parameters
    ----------
    train
        Folder with one folder of photos per species.
    out
        Folder of the new data set.
    test
        Folder of test photos, or of species' folders; labels then go to solution.csv.
    species
        Which folders are species where they are nested: top, those directly in TRAIN; leaf, each
        folder that holds photos. Unset: folders that hold only folders of photos are refused.
    val_share
        Share of each species' photos that becomes val; 0 makes none.
    imbalance_factor
        Thin the species out exponentially, until the first has so many times the photos of the
        last; unset keeps all.
    seed
        Seed of the val share and of the thinning.
    """
    from inat.acquire.import_folders import import_folders

    made = import_folders(
        train,
        out,
        test=test,
        species=species,
        val_share=val_share,
        imbalance_factor=imbalance_factor,
        seed=seed,
    )
    for line in made.lines():
        print(line)


@data.command
def describe(
    root: Path, *, plot: Path | None = None, competition: str = "inaturalist-2018"
) -> None:
    """Print the tail profile of a data set and draw it to a PNG.

    From Python: inat.describe.

    Parameters
    ----------
    root
        Folder of the data set.
    plot
        The PNG; unset: tail_profile.png in this folder.
    competition
        Kaggle name; it decides the names of the annotation files.
    """
    from inat.dataset.profile import describe as look
    from inat.dataset.profile import draw_profile

    profile = look(root, competition=competition)
    plot = plot or Path("tail_profile.png")
    draw_profile(profile, plot)
    for line in profile.lines():
        print(line)
    print(f"drawn             {plot}")


@data.command
def pack(
    root: Path,
    *,
    out: Path,
    short_side: int = 384,
    quality: int = 92,
    part: str = "1/1",
    workers: int | None = None,
    competition: str = "inaturalist-2018",
) -> None:
    """Pack the photos of a data set into large files, which every verb takes for the folder.

    Photos are shrunk to a short side; those small enough are stored byte for byte. Run again
    after an interruption it goes on; N machines each pack one --part. From Python:
    inat.pack_photos.

    Parameters
    ----------
    root
        Folder of the data set.
    out
        Folder of the pack.
    short_side
        Short side of the shrunk photos, in pixels.
    quality
        JPEG quality of the shrunk photos, 1 to 100.
    part
        I/N: the I-th of N stretches of the sorted file names.
    workers
        Threads that read, shrink and encode; 0 does it in this one; unset: one a processor.
    competition
        Kaggle name; it decides the names of the annotation files.
    """
    from inat.acquire.pack import pack_photos

    packed = pack_photos(
        root,
        out,
        short_side=short_side,
        quality=quality,
        part=part,
        workers=workers,
        competition=competition,
    )
    print(packed.line())
    if faults := packed.faults():
        raise FaultsFound(faults)


@data.command
def verify(
    root: Path,
    *,
    part: str = "1/1",
    workers: int | None = None,
    report: Path | None = None,
    competition: str = "inaturalist-2018",
) -> None:
    """Look at every photo of a data set or pack: is it there, whole, of its size, and no copy?

    Run again after an interruption it goes on. From Python: inat.verify.

    Parameters
    ----------
    root
        Folder of the data set, or a pack.
    part
        I/N: the I-th of N stretches of the sorted file names.
    workers
        Threads that read and decode; 0 does it in this one; unset: one a processor.
    report
        The JSON with all findings; unset: verify.json in ROOT.
    competition
        Kaggle name; it decides the names of the annotation files.
    """
    from inat.acquire.verify import verify as look_at_all

    verified = look_at_all(root, part=part, workers=workers, report=report, competition=competition)
    print(verified.line())
    if faults := verified.faults():
        raise FaultsFound(faults)


@app.command
def train(
    config: Path,
    *,
    run: Path | None = None,
    folds: int | None = None,
    resume: Annotated[bool, Parameter(negative="")] = False,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
    dry_run: Annotated[bool, Parameter(negative="")] = False,
    settings: Annotated[Config, Parameter(name="*", consume_multiple=True)] = Config(),  # noqa: B008
) -> None:
    """Train what a config says, and leave a run folder.

    Every field of the config is a flag below; a flag overrules the file. From Python:
    inat.train, inat.train_folds, inat.dry_run.

    Parameters
    ----------
    config
        A YAML file (configs/...).
    run
        The run folder; unset: runs/ and the config file's name.
    folds
        Train so many runs, RUN/fold_1 and on, each with data.holdout another fold, and predict
        every photo by the run that had held it out into RUN/predictions/oof. Unset: one run.
    resume
        Go on from the last whole checkpoint.
    overwrite
        Throw away the run that is there.
    dry_run
        Print the plan, run one batch of each stage, print the peak memory, and stop; of folds the
        first.
    """
    from inat import training
    from inat.config.reading import with_canonical_stages
    from inat.training.folds import fold_config
    from inat.training.processes import leave_processes

    speaks = os.environ.get("RANK", "0") == "0"  # of several processes one does
    settings = with_canonical_stages(settings, str(config))
    if dry_run:
        for line in training.dry_run(
            settings if folds is None else fold_config(settings, 1, folds)
        ):
            if speaks:
                print(line)
        return
    run = run or Path("runs") / config.stem
    if folds is not None:
        training.train_folds(settings, folds, run, resume=resume, overwrite=overwrite)
        print(f"{run}: {folds} folds trained; next: inat evaluate {run}/predictions/oof")
        return
    training.train(settings, run, resume=resume, overwrite=overwrite)
    leave_processes()
    if speaks:
        print(f"{run}: trained; next: inat predict {run} --split test")


@app.command
def stage_two(
    run: Path,
    *,
    method: StageTwoMethod,
    out: Path,
    epochs: int | None = None,
    epoch_size: int | None = None,
    batch_size: int | None = None,
    lr_per_256: float | None = None,
    weight_decay: float | None = None,
    tau: float | None = None,
    feature_views: int = 2,
    live: Annotated[bool, Parameter(negative="")] = False,
    seed: int | None = None,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    root: Annotated[Path | None, Parameter(name="--data.root")] = None,
    workers: int | None = None,
    precision: Precision | None = None,
    feature_batch_size: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Give a trained run a new head, in a run of its own that every verb takes.

    The backbone stays as it is; its features are extracted once and kept in RUN/features, with
    batch norm at its stored statistics. geo_prior looks at no photo: it learns from the
    locations files where and when the run's training photos were taken; inat predict then writes
    the log presence of each species, for inat adjust --geo. The 2018 test set has no locations:
    what is gained on val is reported apart. From Python: inat.train_stage_two.

    Parameters
    ----------
    run
        A folder that inat train made.
    method
        crt (a new linear head on class-balanced draws), lws (a scale for each species on the old
        head's logits), tau_norm (the old head's weights divided by their length to the power
        tau, without its bias), ncm (the nearest class mean) or geo_prior (a network from place
        and date to the presence of each species).
    out
        The new run.
    epochs
        Of crt and geo_prior (unset: 30) and lws (unset: 5).
    epoch_size
        Draws an epoch of crt and lws; unset: the number of photos trained on.
    batch_size
        Draws a step of crt and lws (unset: 512), at most an epoch, and of geo_prior (unset:
        1,024).
    lr_per_256
        Learning rate for a batch of 256, in proportion for others, of crt and lws (unset: 0.1)
        and geo_prior (unset: 1.25e-4).
    weight_decay
        Of crt and lws (unset: 1e-4), biases and scales included.
    tau
        Of tau_norm; unset: the one of 0, 0.1 ... 2 with the best mean class accuracy on the
        held-out part.
    feature_views
        Features a photo: 1 the centre crop, 2 its mirror image too, more: passes of the run's
        training recipe too.
    live
        The published form of crt and lws: augment as the head trains; batch norm goes on using
        and gathering the statistics of each batch.
    seed
        Seed of the draws and the new head's weights; unset: the run's.
    checkpoint
        last, or best on the held-out part of train.
    weights
        ema (moving average) or raw; auto: ema where the run kept one.
    root
        Folder of the data set, where it is another than the run's.
    workers
        Threads or processes that read photos; unset: the run's.
    precision
        Of the forward passes; auto: what the device does best; unset: the run's, where the device
        has it.
    feature_batch_size
        Photos a forward pass of the backbone while features are extracted or the head is scored;
        unset: twice those of a process of the training, at most 512.
    overwrite
        Throw away the run that is at --out.
    """
    from inat.stage_two import train_stage_two

    made = train_stage_two(
        run,
        out,
        method=method,
        epochs=epochs,
        epoch_size=epoch_size,
        batch_size=batch_size,
        lr_per_256=lr_per_256,
        weight_decay=weight_decay,
        tau=tau,
        feature_views=feature_views,
        live=live,
        seed=seed,
        checkpoint=checkpoint,
        weights=weights,
        root=root,
        workers=workers,
        precision=precision,
        feature_batch_size=feature_batch_size,
        overwrite=overwrite,
    )
    split = "val" if made.is_geo_prior else "test"
    print(f"{made.path}: {method} on {run}; next: inat predict {made.path} --split {split}")


@app.command
def soup(
    run: Path,
    *runs: Path,
    out: Path,
    how: SoupRecipe = "uniform",
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    root: Annotated[Path | None, Parameter(name="--data.root")] = None,
    workers: int | None = None,
    precision: Precision | None = None,
    batch_size: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Average the weights of runs of one architecture into a run that every verb takes.

    Batch norm's statistics are gathered anew from some 10,000 draws of the first run's training;
    its counters are the first run's. From Python: inat.soup.

    Parameters
    ----------
    run
        A folder that inat train made; the new run has its settings.
    runs
        More of them, trained on the same photos.
    out
        The new run.
    how
        uniform (all of them), or greedy (from the best on the held-out part on, each of the
        others where it does not lower the mean class accuracy there).
    checkpoint
        last, or best on the held-out part of train.
    weights
        ema (moving average) or raw; auto: ema where a run kept one.
    root
        Folder of the data set, where it is another than the first run's.
    workers
        Threads or processes that read photos; unset: the first run's.
    precision
        Of the forward passes; auto: what the device does best; unset: the first run's, where the
        device has it.
    batch_size
        Photos a forward pass; unset: twice those of a process of the first run's training, at most
        512.
    overwrite
        Throw away the run that is at --out.
    """
    from inat.training.soup import soup as average

    made = average(
        [run, *runs],
        out,
        how=how,
        checkpoint=checkpoint,
        weights=weights,
        root=root,
        workers=workers,
        precision=precision,
        batch_size=batch_size,
        overwrite=overwrite,
    )
    assert made.facts.soup is not None
    used = [member.run for member in made.facts.soup.runs if member.used]
    print(
        f"{made.path}: the mean of {', '.join(used)}; next: inat predict {made.path} --split test"
    )


@app.command
def predict(
    run: Path,
    *,
    split: str = "test",
    photos: Path | None = None,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    views: str = "centre",
    view_mean: ViewMean = "logprob",
    name: str | None = None,
    root: Annotated[Path | None, Parameter(name="--data.root")] = None,
    batch_size: int | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
    float32: Annotated[bool, Parameter(negative="")] = False,
    rank: int | None = None,
    world_size: int | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Predict a split into RUN/predictions/NAME, or print the likeliest species of photos.

    Run again after an interruption it goes on, and the file is the same. Several processes share
    the work (torchrun --nproc-per-node 2 --no-python inat predict RUN). From Python:
    inat.predict, inat.predict_photos; inat.predict_folds, inat.predict_out_of_fold.

    Parameters
    ----------
    run
        A folder that inat train made; of one with --folds, each fold's run predicts.
    split
        test, val, train, holdout or fold:i/K; of folds oof too, all photos of train in one
        prediction, each by the run that had held it out.
    photos
        A photo, or a folder of photos: print the three likeliest species of each instead.
    checkpoint
        last, or best on the held-out part of train.
    weights
        ema (moving average) or raw; auto: ema where the run kept one.
    views
        What is seen of each photo, from one decode: parts joined by +. Crops add up: centre,
        five-crop (corners and centre), full (the whole photo, squeezed), random:N (of seed:S).
        flip adds the mirror image of each, scales:A,B shows each in each size; ten-crop is
        five-crop+flip. Examples: flip; ten-crop; scales:224,256,288+flip; full+random:8+seed:1.
    view_mean
        What is averaged over the views: logprob (log-probabilities) or prob (probabilities).
    name
        Name of the prediction; unset: the split's.
    root
        Folder of the data set, where it is another than the run's.
    batch_size
        Images a forward pass, views counted; unset: twice those of a process of the training, at
        most 512.
    workers
        Threads or processes that read photos; unset: the run's.
    precision
        Of the forward passes; auto: what the device does best; unset: the run's, where the device
        has it.
    float32
        Keep the logits as float32 instead of float16, in twice the space.
    rank
        Number of this process among several that predict together, from 0; unset: RANK and
        WORLD_SIZE of the environment, or the only one.
    world_size
        How many processes predict together.
    overwrite
        Replace a prediction of that name that was made with other settings.
    """
    from inat.photos.search import readable
    from inat.predictions.folds import OUT_OF_FOLD, predict_folds, predict_out_of_fold
    from inat.predictions.predict import predict as predict_split
    from inat.predictions.predict import predict_photos
    from inat.runs.folds import holds_folds

    if photos is not None:
        guesses, unreadable = predict_photos(
            run,
            photos,
            checkpoint=checkpoint,
            weights=weights,
            views=views,
            view_mean=view_mean,
            precision=precision,
        )
        for guess in guesses:
            likely = zip(guess.names, guess.probabilities, strict=True)
            print(
                f"{readable(guess.path)}: "
                + ", ".join(f"{who} {share:.1%}" for who, share in likely)
            )
        for event in unreadable:
            print(f"not read: {event}", file=sys.stderr)
        if not guesses:
            raise WorldError(f"{photos}: none of its {len(unreadable):,} photos could be read")
        return
    options: dict[str, Any] = {
        "checkpoint": checkpoint,
        "weights": weights,
        "views": views,
        "view_mean": view_mean,
        "name": name,
        "root": root,
        "batch_size": batch_size,
        "workers": workers,
        "precision": precision,
        "float32": float32,
        "rank": rank,
        "world_size": world_size,
        "overwrite": overwrite,
    }
    if not holds_folds(run):
        predictions = [predict_split(run, split, **options)]
    elif split == OUT_OF_FOLD:
        predictions = [predict_out_of_fold(run, **options)]
    else:
        predictions = predict_folds(run, split, **options)
    for made in predictions:
        _print_made(made)
        for photo in made.meta.bad_photos or []:
            print(f"not read, predicted as the class prior: {photo}", file=sys.stderr)


@app.command
def adjust(
    prediction: Path,
    *,
    out: Path,
    tau: float | Literal["search"] | None = None,
    target: str | None = None,
    from_prior: str | None = None,
    fit: Path | None = None,
    geo: Path | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Move a prediction's logits to another class prior (post-hoc logit adjustment).

    From Python: inat.adjust.

    Parameters
    ----------
    prediction
        A prediction file.
    out
        The new prediction file.
    tau
        Subtract tau log(prior); 1 takes the whole prior off. search: the one of 0, 0.1 ... 2 with
        the best mean class accuracy on photos that were held out.
    target
        The prior to move to: uniform, a CSV category_id,prior, or estimated from these photos'
        predictions alone; the estimate is left in OUT/estimated_prior.csv.
    from_prior
        uniform, counts, or a CSV: what the logits carry, where the file does not know.
    fit
        The same model's prediction of labelled photos that were not trained on (holdout, oof).
        With --tau search: what tau is chosen on; unset: the prediction itself. With --target
        estimated: its labels calibrate the logits and check the estimate; an oof is that of the
        folds that made the prediction, or of its config.
    geo
        A geo prior's prediction of the same photos: instead of moving the prior, add its log
        presence (photos without a place keep their own). The 2018 test set has no locations.
    overwrite
        Replace what stands at --out.
    """
    from inat.posthoc.adjust import adjust as move_prior

    made, notes = move_prior(
        prediction,
        out,
        tau=tau,
        target=target,
        from_prior=from_prior,
        fit=fit,
        geo=geo,
        overwrite=overwrite,
    )
    _print_made(made, notes)


@app.command
def ensemble(
    prediction: Path,
    *predictions: Path,
    out: Path,
    how: EnsembleRule = "mean_logprob",
    weights: str = "equal",
    search: WeightSearch = "greedy",
    fit: Annotated[list[Path] | None, Parameter(consume_multiple=True, negative="")] = None,
    from_prior: str | None = None,
    overwrite: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """Average the predictions of several models.

    Members are moved to the uniform prior first. With --fit a temperature for each is fitted, and
    the gain is told on photos that it was not chosen on. From Python: inat.ensemble.

    Parameters
    ----------
    prediction
        A prediction file, the first member.
    predictions
        The other members, of the same photos.
    out
        The new prediction file.
    how
        mean_logprob (mean of log-probabilities), mean_prob (of probabilities) or rank (of ranks,
        those from the 100th on alike).
    weights
        equal, search, or a number for each member: 0.5,0.3,0.2.
    search
        greedy (picks with replacement, by mean class accuracy) or convex (least class-mean log
        loss); for --weights search.
    fit
        Predictions of held-out photos, one for each member in the members' order: --split
        holdout, or out-of-fold ones.
    from_prior
        uniform, counts, or a CSV: what logits carry whose file does not know.
    overwrite
        Replace what stands at --out.
    """
    from inat.posthoc.ensemble import ensemble as pool

    made, notes = pool(
        [prediction, *predictions],
        out,
        how=how,
        weights=weights,
        search=search,
        fit=fit,
        from_prior=from_prior,
        overwrite=overwrite,
    )
    _print_made(made, notes)


@app.command
def evaluate(
    prediction: Path,
    *predictions: Path,
    solution: Path | None = None,
    bands: BandName | None = None,
    band_edges: tuple[int, int] | None = None,
    chosen_here: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
    report: Path | None = None,
    root: Annotated[Path | None, Parameter(name="--data.root")] = None,
) -> None:
    """Print accuracy, top-3 error and shot bands of predictions, and save every measure.

    From Python: inat.evaluate, and inat.write_report for the page.

    Parameters
    ----------
    prediction
        A prediction file.
    predictions
        More of them; each is a row of the table.
    solution
        The organisers' CSV id,expected,usage, where the prediction knows no labels.
    bands
        Named band edges: literature (few < 20, many > 100) or mislas (few <= 20).
    band_edges
        few has fewer training photos than the first, many has more than the second; unset: the
        run's data.band_edges.
    chosen_here
        Evaluate even on photos on which something was chosen.
    out
        Folder for metrics.json and per_class.csv; unset: evaluation/ in each prediction.
    report
        An HTML file that shows the predictions side by side with charts, for any browser,
        without a network; unset: none.
    root
        Folder of the data set, whose photos the report shows; unset: it shows none.
    """
    from inat.evaluation.evaluate import evaluate as score_prediction
    from inat.evaluation.table import evaluation_table, further_figures, print_table

    paths = [prediction, *predictions]
    if out is not None and len(paths) > 1:
        raise InputError("--out takes one prediction; without it each has its own evaluation/")
    results, faults = [], []
    for path in paths:
        try:
            result = score_prediction(
                path, solution=solution, bands=bands, band_edges=band_edges, chosen_here=chosen_here
            )
            results.append(result)
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
        print(f"{result.prediction}: {further_figures(result)}")
        for note in result.notes:
            print(f"note: {result.prediction}: {note}")
        print(f"saved {folder / 'metrics.json'}, {folder / 'per_class.csv'}")
    if report is not None:
        print(f"saved {report}")
        if root is None:
            print(f"note: {report}: {NO_ROOT}")
    for fault in faults[1:]:
        print(f"inat: {fault}", file=sys.stderr)
    if faults:
        raise faults[0]


@app.command
def compare(
    first: Path,
    second: Path,
    *,
    solution: Path | None = None,
    bands: BandName | None = None,
    band_edges: tuple[int, int] | None = None,
    chosen_here: Annotated[bool, Parameter(negative="")] = False,
    out: Path | None = None,
) -> None:
    """Say whether the second prediction is better than the first, and for which species.

    Both are of the same photos. A difference is claimed where its paired 95 % interval leaves
    0 out and McNemar's p is below 0.05. From Python: inat.compare.

    Parameters
    ----------
    first
        The prediction to compare with.
    second
        The prediction that may be better.
    solution
        The organisers' CSV id,expected,usage, where the predictions know no labels.
    bands
        Named band edges: literature (few < 20, many > 100) or mislas (few <= 20).
    band_edges
        few has fewer training photos than the first, many has more than the second; unset: the
        runs' data.band_edges.
    chosen_here
        Compare even on photos on which something was chosen.
    out
        A JSON file for the comparison; unset: none.
    """
    from inat.evaluation.compare import compare as compare_predictions
    from inat.evaluation.table import comparison_table, moved_species_lines, print_table

    found = compare_predictions(
        first,
        second,
        solution=solution,
        bands=bands,
        band_edges=band_edges,
        chosen_here=chosen_here,
    )
    if out is not None:
        found.save(out)
    print(found.sentence())
    print_table(comparison_table(found))
    for line in moved_species_lines(found):
        print(line)
    if out is not None:
        print(f"saved {out}")


@app.command
def runs(
    folder: Path = Path("runs"),
    *,
    sort: str = "run",
    reverse: Annotated[bool, Parameter(negative="")] = False,
    where: Annotated[list[str] | None, Parameter(negative="")] = None,
    csv: Annotated[bool, Parameter(negative="")] = False,
) -> None:
    """List the runs in a folder with their scores, a row an evaluated prediction.

    From Python: inat.list_runs.

    Parameters
    ----------
    folder
        Folder that holds runs, at most three levels deep.
    sort
        A column, see --csv; scores best first, the rest ascending; unknown ones last.
    reverse
        Turn the order round.
    where
        Only rows with this: COLUMN=PATTERN (method=logit*), COLUMN!=PATTERN, COLUMN>NUMBER, or
        with >=, <, <= (few>=0.4). Given again, all must hold.
    csv
        Print all columns as CSV.
    """
    from inat.core.arrays import csv_cells
    from inat.evaluation.table import print_table
    from inat.runs.listing import list_runs, runs_table

    table = list_runs(folder, sort=sort, reverse=reverse, where=where or ())
    if csv:
        sys.stdout.write(csv_cells(table).to_csv(index=False))
    else:
        print_table(runs_table(table))


@submission.command
def write(
    prediction: Path,
    *,
    out: Path,
    competition: str | None = None,
    estimate_on: Path | None = None,
) -> None:
    """Write a prediction as the competition's CSV, and a manifest beside it.

    The manifest, NAME.manifest.json (of NAME.csv.gz: NAME.csv.gz.manifest.json), says what the
    file was made of and which score may be expected. From Python: inat.submission.write.

    Parameters
    ----------
    prediction
        A prediction file of the test split.
    out
        The file, NAME.csv or NAME.csv.gz; one that is there is replaced.
    competition
        Kaggle name; unset: the prediction's own.
    estimate_on
        Labelled prediction, made in the same way, on which the score is estimated; unset: the
        best one beside the prediction.
    """
    from inat.submission import read_manifest
    from inat.submission import write as write_csv

    path = write_csv(prediction, out, competition=competition, estimate_on=estimate_on)
    print(f"wrote {path}")
    print(read_manifest(path)["estimate"]["line"])


@submission.command
def check(
    csv: Path,
    *,
    root: Annotated[Path, Parameter(name="--data.root")],
    competition: str | None = None,
) -> None:
    """Refuse what Kaggle would refuse or silently score wrongly.

    From Python: inat.submission.check.

    Parameters
    ----------
    csv
        The submission.
    root
        Folder of the data set, for its test photos and categories.
    competition
        Kaggle name; unset: what the manifest beside the CSV says, or else inaturalist-2018.
    """
    from inat.submission import check as check_csv

    print(f"{csv}: {check_csv(csv, root, competition=competition):,} rows, nothing wrong")


@submission.command
def score(csv: Path, *, solution: Path, competition: str | None = None) -> None:
    """Score a submission as Kaggle does, public and private.

    From Python: inat.submission.score.

    Parameters
    ----------
    csv
        The submission.
    solution
        The organisers' CSV id,expected,usage.
    competition
        Kaggle name; unset: what the manifest beside the CSV says, or else inaturalist-2018.
    """
    from inat.submission import score as score_csv

    result = score_csv(csv, solution, competition=competition)
    for usage, value in (("public", result.public), ("private", result.private)):
        print(f"{usage} {result.metric}  {'–' if value is None else f'{value:.5f}'}")


@submission.command
def upload(
    csv: Path,
    *,
    message: Annotated[str, Parameter(alias="-m")],
    root: Annotated[Path, Parameter(name="--data.root")],
    again: Annotated[bool, Parameter(negative="")] = False,
    wait: float = 10.0,
    competition: str | None = None,
) -> None:
    """Check a CSV, send it to Kaggle, wait for its score, and note all that in its manifest.

    Nothing is ever asked. The credentials are those of the kaggle client: a token from
    https://www.kaggle.com/settings/api in ~/.kaggle/access_token. From Python:
    inat.submission.upload.

    Parameters
    ----------
    csv
        The submission.
    message
        Description that Kaggle shows; a mark of the content is put behind it.
    root
        Folder of the data set, for its test photos and categories.
    again
        Send it although the same bytes were sent before.
    wait
        Minutes to wait for the score; 0 leaves without.
    competition
        Kaggle name; unset: the manifest's, or else inaturalist-2018.
    """
    from inat.submission import upload as send

    made = send(csv, root, message=message, competition=competition, again=again, wait=wait)
    print(made.line())


@submission.command
def status(csv: Path | None = None, *, competition: str | None = None) -> None:
    """List the own submissions to a competition with their scores, the newest first.

    From Python: inat.submission.status.

    Parameters
    ----------
    csv
        List only the uploads of this submission, and bring its manifest up to date.
    competition
        Kaggle name; unset: the manifest's, or else inaturalist-2018.
    """
    from inat.submission import status as ask

    for known in ask(csv, competition=competition):
        print(known.line())


@dataclass
class YamlSource:
    """Feeds the YAML of `inat train CONFIG` to the parser, below the flags.

    Attributes:
        path: the file, once it was seen.
    """

    path: Path | None = None

    def __call__(self, app: App, commands: tuple[str, ...], arguments: ArgumentCollection) -> None:
        """Called by cyclopts between the parsing of the tokens and their conversion."""
        if commands != ("train",):
            return
        tokens = next(a.tokens for a in arguments if a.field_info.name == "config")
        if not tokens:
            return
        from inat.config.reading import read_yaml

        self.path = Path(tokens[0].value)
        tree = read_yaml(self.path)
        # Not by cyclopts.config.Dict: it leaves out keys that are also verbs, so that the
        # config's section `data` would be ignored because there is an `inat data`.
        update_argument_collection(
            tree,
            str(self.path),
            arguments,
            app.app_stack.stack[-1],
            root_keys=(),
            allow_unknown=False,
        )


def _print_made(made: "PredictionFile", notes: Sequence[str] = ()) -> None:
    for note in notes:
        print(note)
    print(f"{made.path}: {len(made):,} photos x {made.n_classes:,} species")


def main(tokens: Sequence[str] | None = None) -> int:
    """Runs one command line; gives the exit status: 0, 1 (the world, faults found) or 2 (input)."""
    words = list(sys.argv[1:] if tokens is None else tokens)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except InatError as error:
        return _told(str(error), error.exit_status, debug=debug)
    except KeyboardInterrupt:
        return _told("interrupted", 130, debug=debug)
    except OSError as error:
        from inat.core.files import system_sentence

        return _told(system_sentence(error), 1, debug=debug)
    except Exception as error:
        text = (
            f"{type(error).__name__}: {one_line(error)} (a fault of the kit; --debug shows where)"
        )
        return _told(text, 1, debug=debug)


def _run(words: list[str]) -> int:
    source = YamlSource()
    app.config = (source,)
    # The list of verbs holds no paragraphs to fill, and importing what fills them takes a quarter
    # of the time to its appearance.
    app.help_format = "plaintext" if words in ([], ["--help"]) else None
    try:
        command, bound, _ = app.parse_args(words, print_error=False, exit_on_error=False)
    except CycloptsError as error:
        raise InputError(_sentence(error)) from None
    except InputError as error:
        # An error between two fields does not know the file that they came from.
        known = source.path is None or str(error).startswith(str(source.path))
        raise InputError(str(error) if known else f"{source.path}: {error}") from None
    result: Any = command(*bound.args, **bound.kwargs)
    return result if isinstance(result, int) else 0


def _sentence(error: CycloptsError) -> str:
    """The parser's words, or better ones for what people run into most."""
    if isinstance(error, MissingArgumentError) and error.argument and error.keyword is None:
        verb = " ".join(error.command_chain or ())
        name, field = error.argument.name, error.argument.field_info
        if field.kind is not field.KEYWORD_ONLY:
            name = name.removeprefix("--").upper()
        return f"{verb} needs {name}; see inat {verb} --help"
    if isinstance(error, UnknownOptionError) and error.token.keyword:
        # The parser would offer a name that is merely near: --optim for --optim.lr.
        given = error.token.keyword
        names = sorted({name for known in error.argument_collection for name in known.names})
        if longer := [name for name in names if name.startswith(given)]:
            return f"Unknown option: {given}. Did you mean {' or '.join(longer)}?"
    return one_line(error)


def _told(text: str, status: int, *, debug: bool) -> int:
    if debug:
        for line in traceback.format_exc().splitlines():
            print(line, file=sys.stderr)
    print(f"inat: {one_line(text)}", file=sys.stderr)
    return status
