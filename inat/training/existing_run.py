"""What a training finds in its run folder, and whether it may write there."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from inat.config.schema import MAY_DIFFER
from inat.core.errors import InputError
from inat.runs.run import Run, differing_fields, is_run
from inat.training.checkpoint import newest_checkpoint, read_state
from inat.training.plan import Plan, loss_prior_files

OTHERS = "give another --run, or --overwrite to throw it away"


@dataclass(frozen=True)
class ExistingRun:
    """The state of a run folder, as a training with a given plan sees it."""

    # fresh (nothing there to keep), finished, resumable, or refused
    status: Literal["fresh", "finished", "resumable", "refused"]
    reason: str = ""  # if refused, the sentence that says why
    changed: tuple[str, ...] = ()  # fields that differ from those of the run there, and may
    checkpoint: Path | None = None  # the newest intact one, from which a training resumes
    damage: str = ""  # what is wrong with the last checkpoint, if that is another


def existing_run(path: Path, plan: Plan, *, resume: bool, overwrite: bool) -> ExistingRun:
    """Judges a run folder; writes and prints nothing.

    The caller holds the folder's lock and has removed what killed writers left in it.
    """
    if not is_run(path):
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            reason = f"{path}: the folder is not empty and holds no run; give another --run"
            return ExistingRun("refused", reason)
        return ExistingRun("fresh")
    if overwrite:
        return ExistingRun("fresh")
    run = Run(path)
    if reason := _other_training(run, plan):
        return ExistingRun("refused", f"{path}: {reason}")
    last = run.checkpoint("last")
    try:
        newest, damage = newest_checkpoint(last, run.checkpoint_before)
    except InputError as error:
        return ExistingRun("refused", str(error))
    damage = "" if newest in (last, None) else damage or f"{last}: missing"
    changed = tuple(differing_fields(run.config, plan.config))
    if newest is not None and read_state(newest).epoch == plan.epochs:
        return ExistingRun("finished", "", changed, newest, damage)
    if not resume:
        return ExistingRun(
            "refused",
            f"{path}: there is an unfinished run; --resume goes on with it, --overwrite starts "
            "anew",
        )
    return ExistingRun("resumable", "", changed, newest, damage)


def _other_training(run: Run, plan: Plan) -> str:
    """In what the run there is of another training than the plan's; "" if it is not."""
    knows_model = (run.path / "model.json").is_file()
    if knows_model and run.made_by != "inat train":
        return f"the run there was made by {run.made_by}; {OTHERS}"
    if run.config.digest != plan.config.digest:
        differing = differing_fields(run.config, plan.config)
        free = [name for name in differing if name in MAY_DIFFER]
        fields = ", ".join(name for name in differing if name not in free)
        allowed = f"; {', '.join(free)} may differ" if free else ""
        return f"the run there was made with other settings ({fields}{allowed}); {OTHERS}"
    if knows_model and run.facts.trained != plan.trained.fingerprint:
        return (
            f"the run there was trained on other photos than those of {plan.config.data.root}; "
            f"{OTHERS}"
        )
    digest = plan.stages[0].loss_prior_sha256
    # Older runs do not state it.
    if knows_model and run.facts.loss_prior_sha256 not in (None, digest):
        files = " and ".join(map(str, loss_prior_files(plan.config)))
        return (
            f"the run there was trained with another prior than {files} holds now (loss.prior); "
            "put back what was there, give another --run, or --overwrite to throw the run away"
        )
    return ""
