"""Where a loader stands, in all lanes or in those of one rank."""

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field, replace

from tessera.data.pipeline.fingerprint import Fingerprint, by_named_values
from tessera.data.pipeline.pieces import PieceId
from tessera.data.pipeline.streams import Cursor
from tessera.files import JsonObject


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
    """Tokens drawn from each source since the mixture is what it is, its head start included."""
    waiting: tuple[PieceId, ...] = ()
    """From the oldest to the newest."""

    def documents_finished(self) -> tuple[int, ...]:
        """Per source, how many documents were read of which no piece waits."""
        waiting = {(source, document) for source, document, _ in self.waiting}
        held = Counter(
            source
            for source, document in waiting
            if document < self.cursors[source].document  # else it is not counted as read anyway
        )
        return tuple(cursor.document - held[n] for n, cursor in enumerate(self.cursors))

    def to_json(self) -> JsonObject:
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
    def from_json(cls, plain: JsonObject) -> "LaneState":
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


def _cursor_to_json(cursor: Cursor) -> list[object]:
    """Without what few sources have: states of other sources stay as they always were."""
    rare = [cursor.outside_documents] if cursor.outside_documents else []
    return [*cursor[:4], list(cursor.bad_shards), *rare]


@dataclass(frozen=True)
class LoaderState:
    """A place in the stream of global batches: all lanes, or the share of one rank."""

    fingerprint: Fingerprint
    step: int
    """Number of the next global batch."""
    rows: int
    """Rows in all the global batches so far."""
    sources: tuple[str, ...]
    """The names that the lanes' states number."""
    lanes: dict[int, LaneState] = field(default_factory=dict)
    parked: tuple["LoaderState", ...] = ()
    """Sources that were taken away, each as it was left: `tessera.data.pipeline.continuation`."""

    def share(self, lanes: Iterable[int]) -> "LoaderState":
        """The same place in some of the lanes."""
        own = tuple(lanes)
        return replace(
            self,
            lanes={lane: self.lanes[lane] for lane in own},
            parked=tuple(parked.share(own) for parked in self.parked),
        )

    def to_json(self) -> JsonObject:
        """Plain values that `json.dumps` takes."""
        rare = {"parked": [parked.to_json() for parked in self.parked]} if self.parked else {}
        return {
            "fingerprint": dict(self.fingerprint),
            "step": self.step,
            "rows": self.rows,
            "sources": list(self.sources),
            "lanes": {str(lane): state.to_json() for lane, state in sorted(self.lanes.items())},
            **rare,
        }

    def passed_over(self) -> dict[str, dict[str, int]]:
        """Per source, how many documents these lanes have passed over: empty, unreadable ones.

        And those outside the lengths asked for, where there are any.
        """
        found: dict[str, dict[str, int]] = {}
        for parked in self.parked:
            found |= parked.passed_over()
        for n, name in enumerate(self.sources):
            cursors = [lane.cursors[n] for lane in self.lanes.values()]
            found[name] = {
                "empty": sum(cursor.empty_documents for cursor in cursors),
                "unreadable": sum(cursor.bad_documents for cursor in cursors),
            }
            if outside := sum(cursor.outside_documents for cursor in cursors):
                found[name]["outside_length"] = outside
        return found

    @classmethod
    def from_json(cls, plain: JsonObject) -> "LoaderState":
        """The inverse of `to_json`."""
        return cls(
            fingerprint=by_named_values(plain["fingerprint"]),
            step=plain["step"],
            rows=plain["rows"],
            sources=tuple(plain["sources"]),
            lanes={int(lane): LaneState.from_json(s) for lane, s in plain["lanes"].items()},
            parked=tuple(cls.from_json(parked) for parked in plain.get("parked", [])),
        )


def merge_states(shares: Iterable[LoaderState]) -> LoaderState:
    """The whole state, from the shares of all ranks after the same step."""
    first, *others = shares
    lanes = dict(first.lanes)
    for share in others:
        assert (share.step, share.rows) == (first.step, first.rows), "shares of different steps"
        assert not lanes.keys() & share.lanes.keys(), "two ranks claim one lane"
        lanes |= share.lanes
    parked = zip(*(share.parked for share in (first, *others)), strict=True)
    return replace(first, lanes=lanes, parked=tuple(map(merge_states, parked)))
