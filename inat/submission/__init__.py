"""Kaggle's submission files: written, checked, scored and uploaded. Imports no torch."""

from inat.submission.csv_file import Checked, Score
from inat.submission.csv_file import check_submission as check
from inat.submission.csv_file import score_submission as score
from inat.submission.csv_file import write_submission as write
from inat.submission.estimate import Estimate
from inat.submission.estimate import estimate_score as estimate
from inat.submission.kaggle import submission_status as status
from inat.submission.kaggle import upload_submission as upload
from inat.submission.kaggle_client import Submission
from inat.submission.manifest import manifest_path, read_manifest

__all__ = [
    "Checked",
    "Estimate",
    "Score",
    "Submission",
    "check",
    "estimate",
    "manifest_path",
    "read_manifest",
    "score",
    "status",
    "upload",
    "write",
]
