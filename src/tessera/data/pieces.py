"""Documents cut into pieces that a segment can hold: `[CLS] content [SEP]`."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np


class PieceId(NamedTuple):
    """What a piece is, in one lane: enough to read it again."""

    source: int
    """Number of the source among those of the run with a weight."""
    document: int
    """How many documents of the source this lane met before; counts through all epochs."""
    piece: int
    """Number of the piece in its document."""


class Piece(NamedTuple):
    """A piece and where it comes from."""

    id: PieceId
    tokens: np.ndarray
    """(length,) with [CLS] and [SEP]."""


@dataclass(frozen=True)
class Framing:
    """How documents become segments."""

    cls_id: int
    sep_id: int
    dtype: np.dtype
    max_seq_len: int
    split: bool
    """A longer document becomes several pieces; if false, it loses its tail."""

    def pieces(self, tokens: int) -> int:
        """How many pieces a document of so many tokens becomes; none if it is empty."""
        pieces = -(-tokens // (self.max_seq_len - 2))
        return pieces if self.split else min(pieces, 1)

    def frame(self, document: np.ndarray, piece: int) -> np.ndarray:
        """One piece of a document, between [CLS] and [SEP]; a copy."""
        room = self.max_seq_len - 2
        content = document[piece * room : (piece + 1) * room]
        framed = np.empty(len(content) + 2, self.dtype)
        framed[0], framed[-1] = self.cls_id, self.sep_id
        framed[1:-1] = content
        return framed
