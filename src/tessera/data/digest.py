"""Fingerprints of rows and of global batches that do not depend on who produced the rows.

A row's digest is the sha256 of its number, segment ends, masked tokens, masked positions and
labels, each little-endian in the dtype it has in `tessera.data.pipeline.rows.Row`. A global batch's
digest is the sha256 of the sum of its rows' digests, taken as four 64-bit words each modulo 2**64:
ranks add up their own rows and then each other's sums, in any order.
"""

import hashlib

import numpy as np


def row_digest(
    number: int, ends: np.ndarray, ids: np.ndarray, positions: np.ndarray, labels: np.ndarray
) -> np.ndarray:
    """(4,) int64: the sha256 of a row."""
    digest = hashlib.sha256(np.array([number, len(ends), len(positions)], "<i8").tobytes())
    for part in (ends, ids, positions, labels):
        digest.update(part.astype(part.dtype.newbyteorder("<"), copy=False).data)
    return np.frombuffer(digest.digest(), "<i8")


def digest_sum(row_digests: np.ndarray) -> np.ndarray:
    """(rows, 4) int64 -> (4,) int64: what ranks add up, wrapping around."""
    return row_digests.sum(axis=0, dtype=np.int64)


def batch_digest(digest_sum: np.ndarray) -> str:
    """The global batch's digest in hexadecimal, from the sum over all its rows."""
    return hashlib.sha256(np.asarray(digest_sum, "<i8").tobytes()).hexdigest()
