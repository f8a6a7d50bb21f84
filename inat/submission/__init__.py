"""Kaggle's submission files: written, checked and scored. Imports no torch."""

from inat.submission.csv_file import Score, check, score, write

__all__ = ["Score", "check", "score", "write"]
