"""Scores of predictions, computed by scikit-learn and scipy."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np


def refuse_metrics(names: Sequence[str], classes: int, where: str) -> None:
    """Raise ValueError if a metric is of two classes, and there are more."""
    if classes > 2 and "f1" in names:
        raise ValueError(
            f"{where}: has {classes} classes, and f1 is of two, the later of which is sought; "
            "write metrics: [macro_f1]"
        )


def classification_scores(
    names: Sequence[str], truth: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Scores of classes, numbered as their names sort; `f1` is of the last of two.

    Args:
        names: of metrics.
        truth: (n,) whole numbers.
        predicted: (n,) whole numbers.
    """
    from sklearn import metrics

    last = int(truth.max(initial=1))
    known: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: metrics.accuracy_score(truth, predicted),
        "f1": lambda: metrics.f1_score(
            truth == last, predicted == last, average="binary", zero_division=0.0
        ),
        "macro_f1": lambda: metrics.f1_score(truth, predicted, average="macro", zero_division=0.0),
        "matthews": lambda: metrics.matthews_corrcoef(truth, predicted),
    }
    return {name: float(known[name]()) for name in names}


def regression_scores(
    names: Sequence[str], truth: np.ndarray, predicted: np.ndarray
) -> dict[str, float]:
    """Correlations; 0 for predictions that are all the same, of which there is none."""
    from scipy import stats

    if np.ptp(predicted) == 0 or np.ptp(truth) == 0:
        return dict.fromkeys(names, 0.0)
    known = {"pearson": stats.pearsonr, "spearman": stats.spearmanr}
    return {name: float(known[name](truth, predicted).statistic) for name in names}


def word_scores(
    names: Sequence[str], truth: np.ndarray, predicted: np.ndarray, outside: int | None
) -> dict[str, float]:
    """Scores of the classes of words; `f1` is micro-averaged over all classes but `outside`."""
    from sklearn import metrics

    inside = [label for label in np.unique(truth) if label != outside]
    known: dict[str, Callable[[], Any]] = {
        "accuracy": lambda: metrics.accuracy_score(truth, predicted),
        "f1": lambda: metrics.f1_score(
            truth, predicted, labels=inside, average="micro", zero_division=0.0
        ),
    }
    return {name: float(known[name]()) for name in names}
