"""`train_stage_two`. torch is imported when it is called, not before."""

from pathlib import Path

from inat.config.schema import CheckpointName, Precision, StageTwoMethod, Weights
from inat.runs.run import Run


def train_stage_two(
    run: Run | Path | str,
    out: Path | str,
    *,
    method: StageTwoMethod,
    epochs: int | None = None,
    epoch_size: int | None = None,
    batch_size: int | None = None,
    lr_per_256: float | None = None,
    weight_decay: float | None = None,
    tau: float | None = None,
    feature_views: int = 2,
    live: bool = False,
    seed: int | None = None,
    checkpoint: CheckpointName = "last",
    weights: Weights = "auto",
    root: Path | str | None = None,
    workers: int | None = None,
    precision: Precision | None = None,
    feature_batch_size: int | None = None,
    overwrite: bool = False,
) -> Run:
    """Gives a trained run a new head, in a run of its own that every verb takes (Kang et al. 2020).

    The backbone stays as it is; its features are extracted once, with batch norm at its stored
    statistics, and kept in RUN/features. geo_prior looks at no photo (Mac Aodha et al. 2019): it
    learns from the locations files where and when the run's training photos were taken. `inat
    predict` then writes the log presence of each species, for `inat adjust --geo`. The 2018 test
    set has no locations: report what is gained on val separately.

    Args:
        run: a folder that `inat train` made.
        out: folder of the new run.
        method: crt: a new linear head on class-balanced draws; lws: a scale per species on the
            old head's logits, trained likewise; tau_norm: the old head's weights divided by their
            norm to the power tau, without its bias; ncm: the nearest class mean; geo_prior: a
            network from place and date to the presence of each species.
        epochs: epochs of crt and geo_prior (None: 30) and lws (None: 5).
        epoch_size: draws per epoch of crt and lws; None: the number of photos trained on.
        batch_size: draws per step of crt and lws (None: 512), at most an epoch, and of geo_prior
            (None: 1,024).
        lr_per_256: learning rate for a batch of 256, scaled in proportion, of crt and lws (None:
            0.1), where it falls to zero as a cosine, and of geo_prior (None: 1.25e-4), where it
            falls by 2 % per epoch.
        weight_decay: weight decay of crt and lws (None: 1e-4), biases and scales included.
        tau: exponent of tau_norm; None: the one of 0, 0.1 ... 2 with the best mean class accuracy
            on the held-out part.
        feature_views: features per photo for crt, lws and ncm: 1: the centre crop; 2: its mirror
            image too; more: passes of the run's training recipe too.
        live: the published form of crt and lws: augment as the head trains, in training mode, so
            that batch norm uses and updates the statistics of each batch; no features are kept.
        seed: seed of the draws and of the new head's weights; None: the run's.
        checkpoint: last, or best on the held-out part of train.
        weights: ema (moving average) or raw; auto: ema where the run kept one.
        root: folder of the data set, if it is not the run's.
        workers: threads or processes that read photos; None: the run's.
        precision: precision of the backbone's forward passes; auto: what the device does best;
            None: the run's, if the device has it.
        feature_batch_size: photos per forward pass of the backbone while features are extracted
            or the head is scored; None: twice those of a process of the training, at most 512.
        overwrite: throw away the run that is at `out`.

    Raises:
        InputError: no such run or checkpoint, an option that the method does not take, no
            held-out part to choose tau on, a head that the method cannot start from, no
            locations, `out` exists.
        WorldError: a photo cannot be read, the loss is not finite, another process writes `out`.
    """
    from inat.runs.trained import open_trained
    from inat.stage_two.options import Options
    from inat.stage_two.train import make_run

    options = Options(
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
    )
    source = open_trained(
        run,
        checkpoint,
        weights,
        root=root,
        batch_size=feature_batch_size,
        workers=workers,
        precision=precision,
    )
    return make_run(source, Path(out), options, overwrite=overwrite)
