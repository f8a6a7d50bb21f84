"""What a submission was made of: predictions and their hashes, config, commit."""

import hashlib
import re
from pathlib import Path
from typing import Any

from inat.core.competitions import Competition
from inat.core.errors import InputError
from inat.core.files import sha256, to_plain
from inat.core.priors import is_uniform
from inat.predictions.file import CHOSEN_ON, FILES, PredictionFile, read_prediction
from inat.predictions.meta import Origin
from inat.runs.run import versions

MADE_BY = ("run", "checkpoint", "checkpoint_sha256", "weights", "weights_source", "views",
           "view_mean", "folds", "adjusted", "chosen", "config_digest", "versions", "how",
           "fit")  # fmt: skip
CHECKOUT = Path(__file__).parents[2]


def provenance(
    name: str, digest: str, prediction: PredictionFile, spec: Competition
) -> dict[str, Any]:
    """What the manifest states of a CSV of that name and SHA-256, and of what it was made of."""
    meta, prior = to_plain(prediction.meta), prediction.logits_prior
    carried = {"kind": "unknown"}
    if prior is not None:
        carried["kind"] = "uniform" if is_uniform(prior) else "not uniform"
        carried["sha256"] = hashlib.sha256(prior.tobytes()).hexdigest()
    made_of = {
        "path": str(prediction.path),
        "files": _hashes(prediction),
        "logits_prior": carried,
        **{key: meta[key] for key in MADE_BY if key in meta},
    }
    return {
        "competition": spec.slug,
        "metric": spec.metric_name,
        "file": name,
        "sha256": digest,
        "rows": len(prediction),
        "prediction": made_of,
        "members": [_member(member, prediction) for member in prediction.meta.members],
        "versions": versions(),
        "git_commit": _git_commit(),
    }


def _member(origin: Origin, ensemble: PredictionFile) -> dict[str, Any]:
    """A member as the ensemble knows it: prediction, weight, run ..., and the hashes of its files
    where it is there still. Of a folder that is no such prediction nothing is read."""
    files = None
    try:
        member = read_prediction(origin.prediction)
        if member.logits.shape == ensemble.logits.shape:
            files = _hashes(member)
    except (InputError, OSError):
        pass
    return {**to_plain(origin), "files": files}


def _hashes(prediction: PredictionFile) -> dict[str, str]:
    names = [*FILES, CHOSEN_ON] if len(prediction.chosen_keys) else FILES
    return {name: sha256(prediction.path / name) for name in sorted(names)}


def _git_commit() -> str | None:
    """The commit of the kit's own checkout, read as text, or None: git itself runs programs that a
    repository's config names, and a folder from a stranger may hold a repository."""
    git = CHECKOUT / ".git"
    try:
        if git.is_file():  # a worktree
            git = git.parent / git.read_text().removeprefix("gitdir:").strip()
        commit = (git / "HEAD").read_text().strip()
        if commit.startswith("ref: "):
            name = commit.removeprefix("ref: ")
            if (git / "commondir").is_file():
                git /= (git / "commondir").read_text().strip()
            if (git / name).is_file():
                commit = (git / name).read_text().strip()
            else:
                lines = (git / "packed-refs").read_text().splitlines()
                commit = next((line.split()[0] for line in lines if line.endswith(f" {name}")), "")
    except (OSError, UnicodeDecodeError):
        return None
    return commit if re.fullmatch("[0-9a-f]{40,64}", commit) else None
