"""One lane: pieces of every source to rows, each with the state to continue after it.

Lanes exist whatever the number of ranks. Lane k reads every `lanes / canonical_nodes`-th document
of its group's share of each source, and makes the rows k, k + lanes, k + 2 * lanes, ...
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.data.pipeline.mixture import furthest_behind
from tessera.data.pipeline.packing import Waiting, wants_more
from tessera.data.pipeline.pieces import Cut, Piece, PieceId
from tessera.data.pipeline.streams import Cursor, Stream, source_pieces


@dataclass(frozen=True)
class LaneState:
    """Everything a lane's next row depends on, beside what the fingerprint covers.

    Invariant: the rows already made, then `waiting`, then each source from its cursor onward hold
    every piece of the lane exactly once.
    """

    rows: int
    """Rows made: the next is number `rows * lanes + lane`."""
    cursors: tuple[Cursor, ...]
    drawn: tuple[int, ...]
    """Tokens drawn from each source, its head start included."""
    waiting: tuple[PieceId, ...] = ()
    """From the oldest to the newest."""

    def to_json(self) -> dict[str, Any]:
        """Plain lists; documents are counted from the one before, so that numbers stay short."""
        last = [0] * len(self.cursors)
        waiting = []
        for source, document, piece in self.waiting:
            waiting += [source, document - last[source], piece]
            last[source] = document
        return {
            "rows": self.rows,
            "cursors": [_cursor_to_json(cursor) for cursor in self.cursors],
            "drawn": list(self.drawn),
            "waiting": waiting,
        }

    @classmethod
    def from_json(cls, plain: dict[str, Any]) -> "LaneState":
        """The inverse of `to_json`."""
        last = [0] * len(plain["cursors"])
        waiting = []
        flat = iter(plain["waiting"])
        for source, step, piece in zip(flat, flat, flat, strict=True):
            last[source] += step
            waiting.append((source, last[source], piece))
        cursors = tuple(
            Cursor._make((*c[:4], tuple(c[4]), *(c[5:] or [0]))) for c in plain["cursors"]
        )
        return cls(plain["rows"], cursors, tuple(plain["drawn"]), tuple(waiting))


def _cursor_to_json(cursor: Cursor) -> list[Any]:
    """Without what few sources have: states of other sources stay as they always were."""
    rare = [cursor.outside_documents] if cursor.outside_documents else []
    return [*cursor[:4], list(cursor.bad_shards), *rare]


class Lane:
    """A lane at work: draws pieces, fills rows."""

    def __init__(
        self,
        streams: Sequence[Stream],
        cut: Cut,
        shares: Sequence[int],
        *,
        row_tokens: int,
        waiting_pieces: int,
        state: LaneState,
        waiting: Iterable[Piece],
    ) -> None:
        """Take up the work where it was left.

        Args:
            streams: The sources as this lane reads them.
            cut: How documents become pieces.
            shares: Each source's share of the tokens.
            row_tokens: Slots of a row.
            waiting_pieces: How many pieces to choose from, at least.
            state: Where the lane stands.
            waiting: The pieces of `state.waiting`, read again.
        """
        self._shares, self._row_tokens, self._waiting_pieces = shares, row_tokens, waiting_pieces
        self._rows, self._drawn = state.rows, list(state.drawn)
        self._cursors = list(state.cursors)
        self._waiting = Waiting(waiting)
        self._pieces = [
            source_pieces(stream, cut, cursor)
            for stream, cursor in zip(streams, state.cursors, strict=True)
        ]

    def wants_more(self) -> bool:
        """Whether more pieces should be drawn before the next row."""
        return wants_more(self._waiting, self._row_tokens, self._waiting_pieces)

    def draw(self) -> None:
        """Draw one piece, from the source whose turn it is."""
        source = furthest_behind(self._shares, self._drawn)
        piece, self._cursors[source] = next(self._pieces[source])
        self._drawn[source] += piece.tokens
        self._waiting.add(piece)

    def next_row(self) -> tuple[list[Piece], LaneState]:
        """The pieces of the next row, and the state after it."""
        while self.wants_more():
            self.draw()
        row = self._waiting.take_row(self._row_tokens)
        self._rows += 1
        after = LaneState(self._rows, tuple(self._cursors), tuple(self._drawn), self._waiting.ids())
        return row, after
