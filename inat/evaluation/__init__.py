"""How well a prediction does, overall and in the tail. Imports no torch."""

from inat.evaluation.compare import Comparison, compare
from inat.evaluation.evaluate import Evaluation, evaluate

__all__ = ["Comparison", "Evaluation", "compare", "evaluate"]
