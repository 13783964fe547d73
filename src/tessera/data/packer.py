"""Pieces to rows, greedily: half a row in the order of waiting, then whatever fits best."""

from bisect import bisect_left, insort
from collections.abc import Iterable

from tessera.data.pieces import Piece, PieceId

_AGE_BITS = 44
_AGE_MASK = (1 << _AGE_BITS) - 1


class Waiting:
    """Pieces that wait for a row: the oldest, or the largest that fits, at hand.

    A key orders pieces by length, and among equals puts the oldest last.
    """

    def __init__(self, pieces: Iterable[Piece] = ()) -> None:
        self.tokens = 0
        self._added = 0
        self._keys: list[int] = []  # sorted
        self._pieces: dict[int, Piece] = {}  # from the oldest to the newest
        for piece in pieces:
            self.add(piece)

    def __len__(self) -> int:
        return len(self._keys)

    def add(self, piece: Piece) -> None:
        """Let a piece wait."""
        self._added += 1
        length = piece.tokens
        key = (length << _AGE_BITS) | (_AGE_MASK - self._added)
        insort(self._keys, key)
        self._pieces[key] = piece
        self.tokens += length

    def take_oldest(self, room: int) -> Piece | None:
        """The piece that waits longest, if it fits in `room` tokens."""
        key = next(iter(self._pieces))
        if key >> _AGE_BITS > room:
            return None
        return self._take(bisect_left(self._keys, key))

    def take_largest(self, room: int) -> Piece | None:
        """The largest piece of at most `room` tokens, the oldest of equals; None if none fits."""
        index = bisect_left(self._keys, (room + 1) << _AGE_BITS) - 1
        return self._take(index) if index >= 0 else None

    def ids(self) -> tuple[PieceId, ...]:
        """What waits, from the oldest to the newest."""
        return tuple([piece.id for piece in self._pieces.values()])

    def _take(self, index: int) -> Piece:
        key = self._keys.pop(index)
        self.tokens -= key >> _AGE_BITS
        return self._pieces.pop(key)


def wants_more(waiting: Waiting, row_tokens: int, waiting_pieces: int) -> bool:
    """Whether too little waits to choose well: few pieces, or hardly more than a row."""
    return len(waiting) < waiting_pieces or 4 * waiting.tokens < 5 * row_tokens


def fill_row(waiting: Waiting, row_tokens: int) -> list[Piece]:
    """Take the pieces of one row: the oldest up to half of it, then the largest that still fit.

    Taking the oldest first keeps rows near the order of reading and bounds every wait
    (`longest_wait`); small pieces do not pile up, so fewer need to wait for the same fill than if
    the largest went first all along.
    """
    row: list[Piece] = []
    room = row_tokens
    while 2 * room > row_tokens and len(waiting):
        piece = waiting.take_oldest(room)
        if piece is None:
            break
        row.append(piece)
        room -= piece.tokens
    while room and len(waiting):
        piece = waiting.take_largest(room)
        if piece is None:
            break
        row.append(piece)
        room -= piece.tokens
    return row


def longest_wait(row_tokens: int, max_seq_len: int, waiting_pieces: int) -> int:
    """Rows of its lane that a piece may see pass before it is in one.

    What waits before a new piece is less than `waiting_pieces` pieces or 5/4 rows. If segments are
    at most half a row, each row takes at least half a row of the oldest; else the oldest alone.
    """
    ahead_tokens = max((waiting_pieces - 1) * max_seq_len, -(-5 * row_tokens // 4))
    if 2 * max_seq_len <= row_tokens:
        return -(-2 * ahead_tokens // row_tokens)
    return max(waiting_pieces - 1, -(-5 * row_tokens // 4) // 3)
