"""How many tokens training gets out of a source in one reading, and how long its documents are.

Counted as training counts: [CLS] and [SEP] around every piece, documents cut as `max_seq_len` and
`long_documents` say, those outside `min_document_tokens` and `max_document_tokens` left out.
Lengths come from the headers of shards that are on this machine, totals from `tessera.json` where
they are not. Nothing is fetched, verified or written, and torch is not imported.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from tessera.data.batch_schedule import BatchPlan
from tessera.data.config import BatchConfig, DataConfig, SourceConfig
from tessera.data.pipeline.mixture import whole_shares
from tessera.data.pipeline.pieces import FRAME_TOKENS, Cut
from tessera.data.sources.source import BadShard, Documents, open_source
from tessera.data.sources.special_tokens import INCLUDED, declared, framing_of
from tessera.paths import is_remote
from tessera.quantities import Duration

CLASSES = (1024, 2048, 4096, 8192)
"""Documents are told apart by being longer than these, in tokens without [CLS] and [SEP]."""
_HEADER_BYTES = 2**29
"""Of the shards whose headers are read, over all sources: a second of reading."""
_NOT_HERE = "its shards are elsewhere, and no tessera.json is here to count them"
_NOWHERE = "there is nothing to be read in {}"


@dataclass(frozen=True)
class Lengths:
    """Distinct lengths of documents, without special tokens, and how many have each."""

    values: np.ndarray
    """(n,) int64, ascending, without 0."""
    documents: np.ndarray
    """(n,) float64: estimated, hence no whole numbers, where only some headers were read."""


@dataclass(frozen=True, kw_only=True)
class Supply:
    """One reading of a source: what it gives, as far as that is known."""

    tokens: float | None = None
    """Of all pieces, [CLS] and [SEP] included; None if nobody knows."""
    pieces: float | None = None
    lengths: Lengths | None = None
    """Of the documents that are read; None if no header is here."""
    known_from: str = "every header"
    """What the numbers rest on, or why there are none; for people."""

    @property
    def is_exact(self) -> bool:
        """Whether every document was counted."""
        return self.known_from == Supply.known_from


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A source in a phase: what it has, and what the phase wants of it."""

    name: str
    place: tuple[str, str]
    """Which documents: where they are, and the split. Two sources may share them."""
    share: float
    """Of the phase's tokens."""
    wanted: float | None
    """Tokens of the phase's duration; None if that is in documents of unknown length."""
    supply: Supply

    @property
    def epochs(self) -> float | None:
        """How often the phase reads the source."""
        tokens = self.supply.tokens
        return self.wanted / tokens if self.wanted is not None and tokens else None

    def over(self, length: int) -> float | None:
        """Share of the source's tokens that are in documents longer than this; None if unknown."""
        lengths = self.supply.lengths
        if lengths is None or not len(lengths.values):
            return None
        tokens = lengths.values * lengths.documents
        return float(tokens[lengths.values > length].sum() / tokens.sum())


def readings(
    data: DataConfig,
    batch: BatchConfig,
    duration: Duration,
    frame: tuple[int, int] | None,
    opened: Mapping[str, Documents],
) -> list[Reading]:
    """What a phase reads of each source with a weight.

    Args:
        data: what is read.
        batch: rows of a step.
        duration: of the phase.
        frame: ids of [CLS] and [SEP], to tell whether documents were stored with them.
        opened: sources that are open already; of others, what is on this machine is looked at.
    """
    sources = {name: source for name, source in data.sources.items() if source.weight > 0}
    cut = Cut(data.max_seq_len, split=data.long_documents == "split")
    bytes_each = _HEADER_BYTES // len(sources)
    supplies = []
    for name, source in sources.items():
        documents = opened.get(name) or _opened_here(name, source)
        supplies.append(supply_of(name, source, documents, cut, frame, bytes_each))
    weights = whole_shares([source.weight for source in sources.values()])
    shares = [weight / sum(weights) for weight in weights]
    total = phase_tokens(data, batch, duration, shares, supplies)
    return [
        Reading(
            name=name,
            place=(source.remote or source.local, source.split),
            share=share,
            wanted=None if total is None else total * share,
            supply=supply,
        )
        for (name, source), share, supply in zip(sources.items(), shares, supplies, strict=True)
    ]


def phase_tokens(
    data: DataConfig,
    batch: BatchConfig,
    duration: Duration,
    shares: Sequence[float],
    supplies: Sequence[Supply],
) -> float | None:
    """The duration in tokens: of full rows if it is in steps; None if it cannot be told."""
    if duration.unit == "tok":
        return float(duration.value)
    if duration.unit == "ba":
        rows = BatchPlan.of(batch, data.row_tokens).rows_before(duration.value)
        return float(rows * data.row_tokens)
    segments = 0.0  # of a token
    for share, supply in zip(shares, supplies, strict=True):
        if not supply.tokens or not supply.pieces:
            return None
        segments += share * supply.pieces / supply.tokens
    return duration.value / segments


def supply_of(
    name: str,
    source: SourceConfig,
    documents: Documents | None,
    cut: Cut,
    frame: tuple[int, int] | None,
    header_bytes: int = _HEADER_BYTES,
) -> Supply:
    """One reading of a source's training split.

    Args:
        name: of the source.
        source: which documents are read.
        documents: the training split as far as it is here; closed at the end.
        cut: how documents become pieces.
        frame: ids of [CLS] and [SEP].
        header_bytes: shards of about this size in all are looked into; at least four.
    """
    if documents is None:
        place = source.remote or f"{source.local}/{source.split}"
        return Supply(known_from=_NOT_HERE if is_remote(place) else _NOWHERE.format(place))
    try:
        lengths, read = _lengths_here(name, documents, frame, header_bytes)
        if lengths is None:
            return _from_manifest(documents, source, cut)
        least, most = source.min_document_tokens or 0, source.max_document_tokens
        inside = (lengths.values >= least) & (lengths.values <= (most or np.inf))
        taken = Lengths(lengths.values[inside], lengths.documents[inside])
        pieces, tokens = cut.totals(taken.values)
        shards = len(documents.samples)
        return Supply(
            tokens=float(tokens @ taken.documents),
            pieces=float(pieces @ taken.documents),
            lengths=taken,
            known_from=Supply.known_from if read == shards else f"{read} of {shards:,} shards",
        )
    except ValueError as error:  # said by who opens the source to train on it
        return Supply(known_from=str(error))
    finally:
        documents.close()


def _opened_here(name: str, source: SourceConfig) -> Documents | None:
    """The source as far as it is on this machine: a remote one's cache, or a remote folder."""
    here = replace(source, remote=None, cache_limit=None)
    if source.remote is not None and not is_remote(source.remote):
        here = replace(here, local=source.remote)
    try:
        return open_source(name, here, source.split, None)
    except (ValueError, OSError):
        return None


def _lengths_here(
    name: str, documents: Documents, frame: tuple[int, int] | None, header_bytes: int
) -> tuple[Lengths | None, int]:
    """Lengths of all documents from the headers that are here, and of how many shards these are."""
    framing = None if frame is None else framing_of(name, documents.summary, frame)
    shards, size = len(documents.samples), int(documents.shard_bytes.sum())
    count = shards if size <= header_bytes else max(4, shards * header_bytes // size)
    counts: dict[int, int] = {}
    read = tokens = seen = 0
    for shard in np.unique(np.linspace(0, shards - 1, min(count, shards)).astype(int)).tolist():
        lengths = documents.lengths_here(shard)
        if lengths is None:
            continue
        try:
            framed = 0 if framing is None else sum(framing.of_shard(shard, documents))
        except BadShard:
            continue
        read, seen, tokens = read + 1, seen + len(lengths), tokens + int(lengths.sum())
        for value, times in zip(*np.unique(lengths, return_counts=True), strict=True):
            bare = max(0, int(value) - framed)
            counts[bare] = counts.get(bare, 0) + int(times)
    counts.pop(0, None)  # empty documents: passed over
    if not counts:
        return None, 0
    # The manifest's total, if there is one, is better than that of a part of the shards.
    stored = documents.summary.get("tokens")
    whole = stored / tokens if isinstance(stored, int) else int(documents.samples.sum()) / seen
    factor = 1.0 if read == shards else whole
    values = np.array(sorted(counts), np.int64)
    return Lengths(values, np.array([counts[v] for v in values.tolist()]) * factor), read


def _from_manifest(documents: Documents, source: SourceConfig, cut: Cut) -> Supply:
    """What `tessera.json` says: totals, and the shortest and longest document."""
    summary = documents.summary
    tokens, lengths = summary.get("tokens"), summary.get("document_tokens") or {}
    count = summary.get("documents", int(documents.samples.sum()))
    if not isinstance(tokens, int):
        return Supply(known_from=_NOT_HERE)
    shortest, longest = lengths.get("p0", 1), lengths.get("p100", np.inf)
    least, most = source.min_document_tokens, source.max_document_tokens
    if (least is not None and shortest < least) or (most is not None and longest > most):
        return Supply(
            known_from="tessera.json counts all its documents, not those of the lengths asked for"
        )
    if not cut.split and longest > cut.room:
        return Supply(known_from="tessera.json does not tell how much of long documents is cut off")
    if declared(summary, "tessera.json") == INCLUDED:
        tokens -= 2 * count
    pieces = count if longest <= cut.room else max(count, -(-tokens // cut.room))
    return Supply(
        tokens=float(tokens + FRAME_TOKENS * pieces),
        pieces=float(pieces),
        known_from="tessera.json",
    )


def epochs_by_length(found: Sequence[Reading]) -> list[tuple[int, float]]:
    """How often tokens are read, by the length of the documents they are in.

    A folder that is two sources is one here: a document that both read is read more often.

    Returns:
        (documents are longer than this, epochs) of each class in which there are any; [] if some
        source's lengths or the tokens wanted are not known.
    """
    places: dict[tuple[str, str], dict[int, float]] = {}
    wanted: dict[int, float] = {}
    bounds = np.array([0, *CLASSES])
    for reading in found:
        lengths, epochs = reading.supply.lengths, reading.epochs
        if lengths is None or epochs is None:
            return []
        there = places.setdefault(reading.place, {})
        for value, count in zip(lengths.values.tolist(), lengths.documents.tolist(), strict=True):
            there[value] = max(there.get(value, 0.0), count)
            longer = int(bounds[np.searchsorted(bounds, value) - 1])
            wanted[longer] = wanted.get(longer, 0.0) + epochs * value * count
    available = dict.fromkeys(wanted, 0.0)
    for there in places.values():
        for value, count in there.items():
            available[int(bounds[np.searchsorted(bounds, value) - 1])] += value * count
    return [(longer, wanted[longer] / available[longer]) for longer in sorted(wanted)]
