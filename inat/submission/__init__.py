"""Kaggle's submission files: written, checked and scored. Imports no torch."""

from inat.submission.csv_file import Score, check, score, write
from inat.submission.manifest import manifest_path, read_manifest

__all__ = ["Score", "check", "manifest_path", "read_manifest", "score", "write"]
