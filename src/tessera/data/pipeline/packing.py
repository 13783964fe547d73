"""Pieces to rows: in the order of waiting, then what fits best, then one exchange."""

from bisect import bisect_left, insort
from collections.abc import Iterable

from tessera.data.pipeline.pieces import Piece, PieceId

# A waiting piece is known by one integer, its key: the length in the upper bits, and in the lower
# 44 bits a number that falls with each piece added. Keys in ascending order are therefore ordered
# by length, and among equal lengths the oldest comes last. One sorted list of plain integers
# answers "the longest piece of at most n tokens, and of those the oldest" by a single bisection,
# which is what makes packing cheaper than masking. 2**44 pieces are more than any lane will meet.
_AGE_BITS = 44
_NEWEST = (1 << _AGE_BITS) - 1


class Waiting:
    """The pieces that wait for a row.

    A key orders them by length, and puts the oldest of equal length last.
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
        """Put a piece among those that wait for a row."""
        self._added += 1
        length = piece.tokens
        key = (length << _AGE_BITS) | (_NEWEST - self._added)
        insort(self._keys, key)
        self._pieces[key] = piece
        self.tokens += length

    def ids(self) -> tuple[PieceId, ...]:
        """What waits, from the oldest to the newest."""
        return tuple([piece.id for piece in self._pieces.values()])

    def take_row(self, row_tokens: int) -> list[Piece]:
        """The pieces of the next row, which no longer wait.

        The oldest, until one does not fit: rows keep near the order of reading and its shares of
        the sources, and every wait is bounded. Then the largest that fits, the
        oldest of equals, until none fits. Last, if slots are left, one of the oldest but the very
        first makes way for a larger one, if that fills more.
        """
        keys = self._keys
        chosen: list[int] = []
        room = row_tokens
        for key in self._pieces:  # a dict keeps the order of adding, so from the oldest
            if key >> _AGE_BITS > room:
                break
            chosen.append(key)
            room -= key >> _AGE_BITS
        for key in chosen:
            del keys[bisect_left(keys, key)]
        oldest = len(chosen)
        # Every key of at most `room` tokens is below this bound, whatever its age bits.
        while room and (index := bisect_left(keys, (room + 1) << _AGE_BITS)):
            key = keys.pop(index - 1)
            chosen.append(key)
            room -= key >> _AGE_BITS
        if room:
            room -= self._exchange_one(chosen, oldest, room)
        self.tokens -= row_tokens - room
        return [self._pieces.pop(key) for key in chosen]

    def _exchange_one(self, chosen: list[int], oldest: int, room: int) -> int:
        """Replace one of `chosen[1:oldest]` by the waiting piece that fills most of the room.

        Returns:
            How many more tokens that is. Those chosen for their size are left alone: nothing that
            waits is larger than one of them and fits in its place.
        """
        # The first of the oldest never makes way: it would be the oldest again in the next row, and
        # could wait for ever. One exchange is enough: with it, rows of the streams in
        # benchmarks/packer.py are at least 99.998 % full.
        keys = self._keys
        gain = 0
        for place in range(oldest - 1, 0, -1):
            length = chosen[place] >> _AGE_BITS
            index = bisect_left(keys, (length + room + 1) << _AGE_BITS) - 1
            if index >= 0 and (keys[index] >> _AGE_BITS) - length > gain:
                gain, out, into = (keys[index] >> _AGE_BITS) - length, place, index
                if gain == room:
                    break
        if gain:
            key = keys.pop(into)
            insort(keys, chosen[out])
            chosen[out] = key
        return gain


def wants_more(waiting: Waiting, row_tokens: int, waiting_pieces: int) -> bool:
    """Whether too little waits to choose well: few pieces, or hardly more than a row."""
    return len(waiting) < waiting_pieces or 4 * waiting.tokens < 5 * row_tokens
