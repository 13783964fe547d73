"""What a linear classifier finds in frozen features: nothing of the model is trained.

Features are the mean of a text's vectors, each standardized over the training texts; the classifier
is scikit-learn's logistic regression, which draws nothing at random.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from tessera.batch import PackedBatch
from tessera.model.modernbert import ModernBertForMaskedLM

_MOST_ITERATIONS = 500


def mean_vectors(encoder: ModernBertForMaskedLM, batch: PackedBatch) -> Tensor:
    """(documents, D) float32: the mean over each document's vectors of the last layer.

    Args:
        encoder: in eval mode.
        batch: on the encoder's device.
    """
    # Through the whole model's forward, where weights that are spread over ranks are put together.
    vectors = encoder(
        batch.input_ids,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        only_vectors=True,
    ).vectors
    assert vectors is not None
    vectors = vectors.float()
    lengths = batch.cu_seqlens.diff()
    numbers = torch.repeat_interleave(
        torch.arange(lengths.numel(), device=lengths.device), lengths.long()
    )
    sums = torch.zeros(lengths.numel(), vectors.size(1), device=vectors.device)
    sums.index_add_(0, numbers, vectors)
    return (sums / lengths.clamp(min=1)[:, None])[: batch.documents]


def fitted(
    features: np.ndarray, labels: np.ndarray, inverse_penalties: Sequence[float]
) -> "list[Classifier]":
    """A classifier for each strength of the penalty.

    Args:
        features: (n, D).
        labels: (n,) whole numbers, two different ones at least.
        inverse_penalties: scikit-learn's `C`.
    """
    import warnings

    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    mean, scale = features.mean(0), features.std(0)
    scale = np.where(scale > 0, scale, 1.0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        return [
            Classifier(
                mean,
                scale,
                LogisticRegression(C=c, max_iter=_MOST_ITERATIONS).fit(
                    (features - mean) / scale, labels
                ),
            )
            for c in inverse_penalties
        ]


class Classifier:
    """Logistic regression on standardized features."""

    def __init__(self, mean: np.ndarray, scale: np.ndarray, regression: object) -> None:
        self._mean, self._scale, self._regression = mean, scale, regression

    def predict(self, features: np.ndarray) -> np.ndarray:
        """(n, D) features to (n,) labels."""
        found: np.ndarray = self._regression.predict(  # type: ignore[attr-defined]
            (features - self._mean) / self._scale
        )
        return found
