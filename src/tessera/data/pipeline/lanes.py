"""Lanes: independent packers that exist whatever the number of ranks, and the rows they make.

Lane k makes the rows k, k + lanes, k + 2 * lanes, ... of the run. It reads every `lanes /
canonical_nodes`-th document of its group's share of each source, so that no two lanes meet, and a
row depends on its lane alone. Who runs a lane is of no consequence: data rank d of W hosts the
lanes with `k % W == d`, a worker of it some of those, and a run that goes on with another W deals
the same lanes out anew. There are many lanes, 96 say, so that many numbers of ranks divide them.

A *slot* is a lane's turn to give a row: slot s is a turn of lane `s % lanes`. A *group* is the
lanes that share a part of the shards, `k % canonical_nodes` being equal. A *front* is the block of
shards that the lanes of a group are reading at the time.
"""

import logging
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from itertools import count

from tessera.data.config import DataConfig, row_ranges
from tessera.data.pipeline.masking import rate_at
from tessera.data.pipeline.mixture import furthest_behind, head_start, whole_shares
from tessera.data.pipeline.packing import Waiting, wants_more
from tessera.data.pipeline.pieces import Cut, Piece
from tessera.data.pipeline.rows import Row, RowFormat, make_row
from tessera.data.pipeline.shuffle import Order, group_spans
from tessera.data.pipeline.state import LaneState
from tessera.data.pipeline.streams import Cursor, Reader, Stream, read_again, source_pieces
from tessera.data.randomness import Draws
from tessera.data.sources.source import Documents, OpenSource
from tessera.data.sources.special_tokens import framing_of

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What rows are made of, beside the documents. Small and picklable: it travels to workers."""

    config: DataConfig
    seed: int
    cut: Cut
    form: RowFormat

    @property
    def shares(self) -> tuple[int, ...]:
        """The sources' shares of the tokens, as integers."""
        weights = [source.weight for source in self.config.sources.values() if source.weight > 0]
        return whole_shares(weights)

    def first_state(self, lane: int) -> LaneState:
        """A lane that has made no rows."""
        shares = self.shares
        drawn = head_start(shares, lane, self.config.max_seq_len // 2)
        return LaneState(0, (Cursor(),) * len(shares), tuple(drawn))


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


def own_lanes(first_slot: int, stride: int, lanes: int) -> list[int]:
    """The lanes whose turn it is in the slots `first_slot, first_slot + stride, ...`."""
    return [slot % lanes for slot in range(first_slot, first_slot + lanes, stride)]


def make_rows(
    recipe: Recipe,
    streams: Callable[[int], list[Stream]],
    states: Mapping[int, LaneState],
    *,
    first_slot: int,
    stride: int,
) -> Iterator[Row]:
    """One row for each of the slots `first_slot, first_slot + stride, ...`, for ever.

    Slot s is a turn of lane `s % lanes`. A lane's rows fill its slots in order; rows that the
    configuration skips are made, and left out.

    Args:
        recipe: What to make.
        streams: The streams of any lane.
        states: Where each of the lanes stands, and maybe others.
        first_slot: Whose turn is first.
        stride: Divides the lanes.
    """
    lanes = recipe.config.lanes
    own = own_lanes(first_slot, stride, lanes)
    working = _take_up(recipe, {lane: (streams(lane), states[lane]) for lane in own})
    making = {lane: _lane_rows(recipe, lane, streams(lane), working[lane]) for lane in own}
    for slot in count(first_slot, stride):
        yield next(making[slot % lanes])


def _take_up(
    recipe: Recipe, lanes: Mapping[int, tuple[list[Stream], LaneState]]
) -> dict[int, Lane]:
    """Lanes ready for their next row.

    They draw in turn, a piece each, so that all read the same few shards at the same time.
    """
    config = recipe.config
    waiting = read_again(
        {lane: (streams, state.waiting) for lane, (streams, state) in lanes.items()}, recipe.cut
    )
    working = {
        lane: Lane(
            streams,
            recipe.cut,
            recipe.shares,
            row_tokens=config.row_tokens,
            waiting_pieces=config.waiting_pieces,
            state=state,
            waiting=waiting[lane],
        )
        for lane, (streams, state) in lanes.items()
    }
    filling = list(working.values())
    while filling := [lane for lane in filling if lane.wants_more()]:
        for lane in filling:
            lane.draw()
    return working


def _lane_rows(recipe: Recipe, number: int, streams: list[Stream], lane: Lane) -> Iterator[Row]:
    config = recipe.config
    skipped = row_ranges(config.skip_rows)
    draws = Draws()
    while True:
        pieces, after = lane.next_row()
        row = (after.rows - 1) * config.lanes + number
        if any(row in rows for rows in skipped):
            continue
        draws.begin("masks", recipe.seed, row)
        rate = None if config.causal else rate_at(config.masking, row, config.row_tokens)
        yield make_row(row, number, pieces, after, streams, recipe.form, rate=rate, draws=draws)


# ---- dealing the documents out


def open_readers(config: DataConfig, form: RowFormat, opener: OpenSource) -> list[Reader]:
    """Open the training split of every source with a weight.

    Raises:
        ValueError: If a source is missing or empty.
    """
    readers = []
    for name, source in config.sources.items():
        if source.weight > 0:
            documents = opener(name, source, source.split, form.vocab_size)
            readers.append(
                Reader(
                    name,
                    documents,
                    dtype=form.pad_id.dtype,
                    skip_bad=config.on_bad_shard == "skip",
                    framing=framing_of(name, documents.summary, form.frame),
                    tokens_between=(source.min_document_tokens, source.max_document_tokens),
                )
            )
    return readers


def block_documents(limit: int, documents: Documents) -> int:
    """Documents of a block: an eighth of a small source, but four shards, to mix and yet to cache.

    Depends on the source alone, not on its cache: a run must read the same on any machine.
    """
    shards = len(documents.samples)
    total = int(documents.samples.sum())
    return max(1, min(limit, max(total // 8, 4 * total // shards)))


def warn_of_small_cache(config: DataConfig, reader: Reader, lanes: Sequence[int]) -> None:
    """Say so if a source's cache cannot hold what the lanes of a rank read at a time.

    That is three blocks of each of their groups: the lanes spread over two, one is fetched ahead.
    """
    source, documents = config.sources[reader.name], reader.documents
    if source.cache_limit is None:
        return
    groups = len({lane % config.canonical_nodes for lane in lanes})
    block = block_documents(config.block_documents, documents)
    block_bytes = int(block * documents.shard_bytes.sum() / max(1, documents.samples.sum()))
    needed = 3 * groups * block_bytes
    if needed > source.cache_limit.value:
        fitting = block * source.cache_limit.value // needed
        log.warning(
            "source '%s': about %d bytes of shards are read at a time (%d groups of lanes, blocks "
            "of %d documents), but its cache_limit is %s: shards will be fetched again and again; "
            "raise it, set train_data.canonical_nodes to the number of nodes, or, for a new run, "
            "set train_data.block_documents to at most %d",
            *(reader.name, needed, groups, block, source.cache_limit, fitting),
        )


def lane_streams(
    config: DataConfig, readers: Sequence[Reader], seed: int
) -> Callable[[int], list[Stream]]:
    """The streams of any lane; lanes of one group share their orders."""

    @cache
    def order(number: int, group: int, groups: int) -> Order:
        reader = readers[number]
        samples, key = reader.documents.samples, ("order", seed, reader.name)
        spans = group_spans(samples, group=group, groups=groups, shuffle=config.shuffle, key=key)
        return Order(
            spans,
            block_documents=block_documents(config.block_documents, reader.documents),
            shuffle=config.shuffle,
            key=(*key, group),
        )

    @cache
    def streams(lane: int) -> list[Stream]:
        found = []
        for number, reader in enumerate(readers):
            # A source with fewer documents than groups would leave some groups without any.
            few = reader.documents.samples.sum() < config.canonical_nodes
            groups = 1 if few else config.canonical_nodes
            shared = order(number, lane % groups, groups)
            found.append(Stream(number, reader, shared, lane // groups, config.lanes // groups))
        return found

    return streams
