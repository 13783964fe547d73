"""One lane: pieces of every source to rows, each with the state to continue after it.

Lanes exist whatever the number of ranks. Lane k reads every `lanes / canonical_nodes`-th document
of its group's share of each source, and makes the rows k, k + lanes, k + 2 * lanes, ...
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.data.mixture import furthest_behind
from tessera.data.packer import Waiting, fill_row, wants_more
from tessera.data.pieces import Cut, Piece, PieceId
from tessera.data.streams import Cursor, Stream, read_again, source_pieces


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
            "cursors": [[*cursor[:4], list(cursor.bad_shards)] for cursor in self.cursors],
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
        cursors = tuple(Cursor._make((*c[:4], tuple(c[4]))) for c in plain["cursors"])
        return cls(plain["rows"], cursors, tuple(plain["drawn"]), tuple(waiting))


def packed_rows(
    streams: Sequence[Stream],
    cut: Cut,
    shares: Sequence[int],
    *,
    row_tokens: int,
    waiting_pieces: int,
    state: LaneState,
) -> Iterator[tuple[list[Piece], LaneState]]:
    """A lane's rows from a state on, for ever, each with the state after it."""
    cursors, drawn, rows = list(state.cursors), list(state.drawn), state.rows
    waiting = Waiting(read_again(streams, cut, state.waiting))
    sources = [
        source_pieces(stream, cut, cursor) for stream, cursor in zip(streams, cursors, strict=True)
    ]
    while True:
        while wants_more(waiting, row_tokens, waiting_pieces):
            source = furthest_behind(shares, drawn)
            piece, cursors[source] = next(sources[source])
            drawn[source] += piece.tokens
            waiting.add(piece)
        row = fill_row(waiting, row_tokens)
        rows += 1
        yield row, LaneState(rows, tuple(cursors), tuple(drawn), waiting.ids())
