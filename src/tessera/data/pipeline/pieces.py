"""Documents cut into pieces that a segment can hold, [CLS] and [SEP] around each."""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

FRAME_TOKENS = 2
"""[CLS] and [SEP], which a piece gets when it is laid into a row."""


PieceId = tuple[int, int, int]
"""(source, document, piece), which is enough for a lane to read it again: the source's index among
those with a weight; the lane's n-th document of that source, counted through all epochs from 0; the
piece's index in its document."""


class Piece(NamedTuple):
    """A piece and where it comes from."""

    id: PieceId
    content: np.ndarray
    """(length - 2,) token ids, without [CLS] and [SEP]."""

    @property
    def tokens(self) -> int:
        """Length of its segment."""
        return len(self.content) + FRAME_TOKENS


@dataclass(frozen=True)
class Cut:
    """How documents become pieces."""

    max_seq_len: int
    """Tokens of a segment at most, [CLS] and [SEP] included."""
    split: bool
    """A longer document becomes several pieces; if false, it loses its tail."""

    @property
    def room(self) -> int:
        """Tokens of a document that a piece holds at most."""
        return self.max_seq_len - FRAME_TOKENS

    def pieces(self, tokens: int) -> int:
        """How many pieces a document of so many tokens becomes; none if it is empty."""
        pieces = -(-tokens // self.room)
        return pieces if self.split else min(pieces, 1)

    def content(self, document: np.ndarray, piece: int) -> np.ndarray:
        """The tokens of one piece: a view."""
        return document[piece * self.room : (piece + 1) * self.room]

    def totals(self, lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Pieces of documents of these lengths, and the tokens of the pieces' segments together."""
        pieces = -(-lengths // self.room)
        if not self.split:
            pieces, lengths = np.minimum(pieces, 1), np.minimum(lengths, self.room)
        return pieces, lengths + FRAME_TOKENS * pieces

    def segments(self, lengths: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        """The segments of documents of these lengths, none of them empty.

        Returns:
            (tokens of a segment, how many such segments) for full ones and for each last one.
        """
        pieces, tokens = self.totals(lengths)
        full = np.full_like(lengths, self.max_seq_len)
        return [
            (full, pieces - 1),
            (tokens - (pieces - 1) * self.max_seq_len, np.ones_like(pieces)),
        ]
