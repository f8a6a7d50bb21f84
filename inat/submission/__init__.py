"""Kaggle's submission files: written, checked, scored and uploaded. Imports no torch."""

from inat.submission.csv_file import Score, check, score, write
from inat.submission.kaggle import status, upload
from inat.submission.kaggle_client import Submission
from inat.submission.manifest import manifest_path, read_manifest

__all__ = [
    "Score",
    "Submission",
    "check",
    "manifest_path",
    "read_manifest",
    "score",
    "status",
    "upload",
    "write",
]
