"""One source as one lane reads it: documents in their order, cut into pieces, for ever."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from tessera.data.pipeline.pieces import Cut, Piece, PieceId
from tessera.data.pipeline.shuffle import Front, Order
from tessera.data.sources.source import BadShard, Documents
from tessera.data.sources.special_tokens import Framing

log = logging.getLogger(__name__)

_LOCATE_AT_ONCE = 1024
_GIVE_UP_AFTER = 1_000_000
_NOTHING = "empty or unreadable, so there is nothing to train on; prepare it again"
_OUTSIDE_TOO = (
    "empty, unreadable, or outside min_document_tokens and max_document_tokens, so there is "
    "nothing to train on; widen these"
)


OUTSIDE = np.empty(0, np.uint16)
"""Stands for a document that is shorter or longer than its source is asked for."""


class Reader:
    """A source as the lanes of one process share it."""

    def __init__(
        self,
        name: str,
        documents: Documents,
        *,
        dtype: np.dtype,
        skip_bad: bool,
        framing: Framing | None = None,
        tokens_between: tuple[int | None, int | None] = (None, None),
    ) -> None:
        """Nothing is read yet.

        Args:
            name: Of the source.
            documents: Its documents.
            dtype: Of token ids in rows.
            skip_bad: Whether to pass over shards that cannot be read.
            framing: Takes off special tokens that documents are stored with.
            tokens_between: Fewest and most tokens of a document that is read.
        """
        self.name, self.documents = name, documents
        self._framing, self._tokens_between = framing, tokens_between
        self._dtype = dtype
        self._skip_bad = skip_bad
        self._bad: set[int] = set()
        self._ends: dict[Order, int] = {}
        self._fronts: dict[Order, tuple[Front, Front]] = {}

    def read(self, shard: int, sample: int) -> np.ndarray | None:
        """The token ids of a document, without special tokens.

        Returns:
            None if its shard is bad and such shards are skipped; `OUTSIDE` if the document is not
            of the length that is asked for, which its header alone tells.
        """
        if shard in self._bad:
            return None
        try:
            if self._is_outside(shard, sample):
                return OUTSIDE
            tokens = self.documents.document(shard, sample)
            if self._framing is not None:
                tokens = self._framing.bare(tokens, shard, self.documents)
        except BadShard as error:
            if not self._skip_bad:
                raise
            self._bad.add(shard)
            log.warning("skipping %d documents: %s", self.documents.samples[shard], error)
            return None
        return tokens if tokens.dtype == self._dtype else self._converted(tokens, shard, sample)

    def _is_outside(self, shard: int, sample: int) -> bool:
        least, most = self._tokens_between
        if least is None and most is None:
            return False
        tokens = int(self.documents.lengths(shard)[sample])
        if self._framing is not None:
            tokens -= sum(self._framing.of_shard(shard, self.documents))
        return tokens < (least or 0) or (most is not None and tokens > most)

    def _converted(self, tokens: np.ndarray, shard: int, sample: int) -> np.ndarray:
        """The same ids in the dtype of rows, into which others would wrap around."""
        limits = np.iinfo(self._dtype)
        if len(tokens) and not limits.min <= tokens.min() <= tokens.max() <= limits.max:
            raise ValueError(
                f"source '{self.name}', document '{self.documents.document_id(shard, sample)}': "
                f"token ids from {tokens.min()} to {tokens.max()}, which this run's tokenizer does "
                "not have; prepare the source again with it"
            )
        return tokens.astype(self._dtype)

    def enter(self, front: Front, order: Order) -> None:
        """Note that a lane begins a block.

        The first lane to enter a block has that block's shards fetched, and the next block's.
        """
        if front.end <= self._ends.get(order, 0):
            return
        self._ends[order] = front.end
        self._fronts[order] = front, order.front(front.end)
        # The present blocks of all groups of lanes first, then all their next ones.
        ahead = [front for pair in zip(*self._fronts.values(), strict=True) for front in pair]
        self.documents.will_need(dict.fromkeys(n for front in ahead for n in front.shards.tolist()))


class Cursor(NamedTuple):
    """Where a lane stands in one source: the piece it tries next, and what it passed over."""

    document: int = 0
    piece: int = 0
    empty_documents: int = 0
    bad_documents: int = 0
    bad_shards: tuple[int, ...] = ()
    """Once a lane has found a shard bad it stays so, even if the file is mended: a resumed run
    must pass over the same documents."""
    outside_documents: int = 0
    """Passed over for their length."""


class Stream(NamedTuple):
    """The documents of one source that one lane reads: every `stride`-th position of an order."""

    number: int
    """Of the source, among those with a weight."""
    reader: Reader
    order: Order
    offset: int
    stride: int

    @property
    def name(self) -> str:
        """The source's name."""
        return self.reader.name

    def positions(self, documents: np.ndarray | Sequence[int]) -> np.ndarray:
        """Where in the order the lane's n-th documents are."""
        return self.offset + self.stride * np.asarray(documents, np.int64)

    def epoch(self, cursor: Cursor) -> int:
        """The epoch of the last document read."""
        last = max(0, cursor.document - (cursor.piece == 0))
        return self.order.epoch(self.offset + self.stride * last)

    def document_ids(self, documents: Sequence[int]) -> list[str]:
        """The names under which the lane's n-th documents were stored."""
        places = zip(*self.order.locate(self.positions(documents)), strict=True)
        return [self.reader.documents.document_id(int(shard), int(n)) for shard, n in places]


def source_pieces(stream: Stream, cut: Cut, cursor: Cursor) -> Iterator[tuple[Piece, Cursor]]:
    """The pieces of one source from a cursor on, for ever, each with the cursor after it.

    Raises:
        BadShard: If a shard cannot be read, unless the reader skips such shards.
        ValueError: If there is nothing to read for a very long stretch.
    """
    document, first, empty, bad, bad_shards, outside = cursor
    barren = 0
    while True:
        for shard, sample in _places(stream, document):
            tokens = None if shard in bad_shards else stream.reader.read(shard, sample)
            if tokens is None:
                bad, barren = bad + 1, barren + 1
                if shard not in bad_shards:
                    bad_shards = (*bad_shards, shard)
            elif tokens is OUTSIDE:
                outside += 1
                barren += 1
            elif not len(tokens):
                empty += 1
                barren += 1
            else:
                barren = 0
                last = cut.pieces(len(tokens)) - 1
                for number in range(first, last + 1):
                    after = (document, number + 1) if number < last else (document + 1, 0)
                    yield (
                        Piece((stream.number, document, number), cut.content(tokens, number)),
                        Cursor(*after, empty, bad, bad_shards, outside),
                    )
            document, first = document + 1, 0
            if barren > min(stream.order.documents, _GIVE_UP_AFTER):
                raise ValueError(
                    f"source '{stream.name}': {barren} documents in a row are "
                    + (_OUTSIDE_TOO if outside else _NOTHING)
                    + ", or set its weight to 0"
                )


def _places(stream: Stream, document: int) -> Iterator[tuple[int, int]]:
    """(shard, sample) of the lane's documents from one on, to the end of a block at most."""
    position = stream.offset + stream.stride * document
    front = stream.order.front(position)
    stream.reader.enter(front, stream.order)
    end = min(front.end, position + stream.stride * _LOCATE_AT_ONCE)
    shards, samples = stream.order.locate(np.arange(position, end, stream.stride))
    return zip(shards.tolist(), samples.tolist(), strict=True)


def read_again(
    waiting: Mapping[int, tuple[Sequence[Stream], Sequence[PieceId]]], cut: Cut
) -> dict[int, list[Piece]]:
    """The pieces that waited in some lanes, in their order.

    Those whose shard turned bad are left out, and those that the present cut or the lengths asked
    for have no more, which is said.

    Read shard by shard, so that a small cache need not fetch a shard for each lane.

    Args:
        waiting: Each lane's streams, and the ids of its pieces.
        cut: How documents become pieces.
    """
    # A checkpoint names the pieces that waited but does not hold their tokens, so they are read
    # again. Thousands of pieces of all lanes lie scattered over a few shards. Sorted by shard they
    # are read in one sweep; lane by lane, a cache that holds only some of the shards would fetch
    # each of them once for every lane.
    places = []
    for lane, (streams, ids) in waiting.items():
        for stream in streams:
            asked = [n for n, piece in enumerate(ids) if piece[0] == stream.number]
            located = stream.order.locate(stream.positions([ids[n][1] for n in asked]))
            for n, shard, sample in zip(asked, *(part.tolist() for part in located), strict=True):
                places.append((stream.number, shard, sample, lane, n))
    places.sort()
    readers = {
        stream.number: stream.reader for streams, _ in waiting.values() for stream in streams
    }
    for number, reader in readers.items():
        reader.documents.will_need(
            dict.fromkeys(place[1] for place in places if place[0] == number)
        )

    found: dict[int, list[Piece | None]] = {
        lane: [None] * len(ids) for lane, (_, ids) in waiting.items()
    }
    read: tuple[int, int, int] | None = None  # several pieces of one document are read once
    gone: dict[int, int] = {}
    for number, shard, sample, lane, n in places:
        piece = waiting[lane][1][n]
        if read != (number, shard, sample):
            read, tokens = (number, shard, sample), readers[number].read(shard, sample)
        if tokens is not None and piece[2] < cut.pieces(len(tokens)):
            found[lane][n] = Piece(piece, cut.content(tokens, piece[2]))
        elif tokens is not None:
            gone[number] = gone.get(number, 0) + 1
    for number, pieces in gone.items():
        log.warning(
            "source '%s': %d pieces that waited are left out: max_seq_len, long_documents or the "
            "lengths asked for are others than when they were read",
            *(readers[number].name, pieces),
        )
    return {lane: [piece for piece in pieces if piece] for lane, pieces in found.items()}
