"""Causal language modelling on one row: each ordinary token is predicted from those before it.

A token is predicted from its own segment alone: by the slot before it, the first by [CLS]. Special
tokens are not predicted, as masking does not choose them: where a long document is cut into pieces,
each has a [SEP] that no text ends at.
"""

import numpy as np


def next_tokens(ids: np.ndarray, ordinary: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """What is predicted of a row, and where.

    Args:
        ids: (T,) token ids of segments that each begin with a special one: so nothing is predicted
            from another segment.
        ordinary: (ids that can occur,) bool: not a special token.

    Returns:
        (M,) int32 slots before the tokens that are predicted, ascending; (M,) these tokens.
    """
    targets = ordinary.take(ids).nonzero()[0]
    return (targets - 1).astype(np.int32), ids.take(targets)
