"""Kaggle's submission files: written, checked, scored and uploaded. Imports no torch."""

from inat.submission.csv_file import Score, check, score, write
from inat.submission.kaggle import status, upload
from inat.submission.kaggle_client import Submission

__all__ = ["Score", "Submission", "check", "score", "status", "upload", "write"]
