"""One packed row and what it predicts, as it travels from the process that makes it."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from tessera.data.config import DataConfig
from tessera.data.digest import row_digest
from tessera.data.pipeline.causal import next_tokens
from tessera.data.pipeline.masking import Vocabulary, mask, vocabulary
from tessera.data.pipeline.pieces import Piece, PieceId
from tessera.data.pipeline.state import LaneState
from tessera.data.pipeline.streams import Stream
from tessera.data.randomness import Draws
from tessera.tokenizer import Tokenizer, token_dtype


@dataclass(frozen=True, kw_only=True)
class Row:
    """A row of `T` token slots in `n` segments, `M` of them to be predicted. numpy only."""

    number: int
    """In the run's global stream of rows."""
    lane: int
    ids: np.ndarray
    """(T,) uint16 or uint32: masks applied, padding at the end."""
    ends: np.ndarray
    """(n,) int32: where each segment ends, padding segments included."""
    positions: np.ndarray
    """(M,) int32: the slots that predict something."""
    labels: np.ndarray
    """(M,) as ids: what they are to predict: the token that was there, or the next one."""
    tokens: int
    """Slots that are not padding."""
    documents: int
    """Segments that are not padding."""
    source_tokens: tuple[int, ...]
    """Slots of each source."""
    digest: np.ndarray
    """(4,) int64: see `tessera.data.digest`."""
    state: LaneState
    """The lane's, after this row."""
    pieces: tuple[PieceId, ...] = ()
    """What the segments are; left out where nobody asks."""


@dataclass(frozen=True)
class RowFormat:
    """What every row of a run has in common."""

    row_tokens: int
    max_seq_len: int
    cls_id: np.ndarray
    """(1,) as rows' ids; so are the other two."""
    sep_id: np.ndarray
    pad_id: np.ndarray
    vocab_size: int
    """Rows of the model's embedding: no id may reach it."""
    vocabulary: Vocabulary
    spans: bool = False
    """Whether tokens, or words, are masked several at a time."""

    @property
    def frame(self) -> tuple[int, int]:
        """The ids of [CLS] and [SEP]."""
        return int(self.cls_id[0]), int(self.sep_id[0])


def row_format(config: DataConfig, tokenizer: Tokenizer, vocab_size: int) -> RowFormat:
    """What rows of this run have in common.

    Raises:
        ValueError: If the model has fewer ids than the tokenizer, or masking asks for whole words
            that the tokenizer does not show.
    """
    if vocab_size < tokenizer.size:
        raise ValueError(
            f"model.vocab_size {vocab_size} is smaller than the tokenizer, which has "
            f"{tokenizer.size} ids; raise it to a multiple of 64 that is not"
        )
    dtype = token_dtype(tokenizer.size)
    return RowFormat(
        row_tokens=config.row_tokens,
        max_seq_len=config.max_seq_len,
        cls_id=np.array([tokenizer.cls_id], dtype),
        sep_id=np.array([tokenizer.sep_id], dtype),
        pad_id=np.array([tokenizer.pad_id], dtype),
        vocab_size=vocab_size,
        vocabulary=vocabulary(
            tokenizer, whole_words=config.masking.whole_words and not config.causal
        ),
        spans=config.masking.spans,
    )


def lay_out(pieces: Sequence[Piece], form: RowFormat) -> tuple[np.ndarray, np.ndarray, int]:
    """Segments `[CLS] content [SEP]` end to end, then padding in ones of at most `max_seq_len`.

    Returns:
        (T,) ids; (n,) int32 segment ends; how many slots are not padding.
    """
    parts: list[np.ndarray] = []
    for piece in pieces:
        parts += (form.cls_id, piece.content, form.sep_id)
    ends = np.cumsum([piece.tokens for piece in pieces], dtype=np.int32)
    used = int(ends[-1])
    ids = np.empty(form.row_tokens, form.pad_id.dtype)
    np.concatenate(parts, out=ids[:used])
    if used < form.row_tokens:
        ids[used:] = form.pad_id
        tail = np.arange(used + form.max_seq_len, form.row_tokens, form.max_seq_len)
        ends = np.concatenate((ends, tail, [form.row_tokens]), dtype=np.int32)
    return ids, ends, used


def make_row(
    number: int,
    lane: int,
    pieces: Sequence[Piece],
    state: LaneState,
    streams: Sequence[Stream],
    form: RowFormat,
    *,
    rate: float | None,
    draws: Draws,
) -> Row:
    """Lay out one row, and mask it at a rate, or have each token predict the next if that is None.

    Raises:
        ValueError: If a document holds a token the model does not know, naming the document.
    """
    ids, ends, tokens = lay_out(pieces, form)
    if int(ids.max()) >= form.vocab_size:
        raise ValueError(unknown_token(pieces, streams, form.vocab_size))
    if rate is None:
        positions, labels = next_tokens(ids, form.vocabulary.ordinary)
    else:
        ids, positions, labels = mask(ids, form.vocabulary, rate, draws, spans=form.spans)
    source_tokens = [0] * len(streams)
    for piece in pieces:
        source_tokens[piece.id[0]] += piece.tokens
    return Row(
        number=number,
        lane=lane,
        ids=ids,
        ends=ends,
        positions=positions,
        labels=labels,
        tokens=tokens,
        documents=len(pieces),
        source_tokens=tuple(source_tokens),
        digest=row_digest(number, ends, ids, positions, labels),
        state=state,
        pieces=tuple(piece.id for piece in pieces),
    )


def unknown_token(pieces: Sequence[Piece], streams: Sequence[Stream], vocab_size: int) -> str:
    """What to tell the user about the first piece with an id of `vocab_size` or more."""
    piece = next(piece for piece in pieces if int(piece.content.max()) >= vocab_size)
    stream = streams[piece.id[0]]
    return (
        f"source '{stream.name}', document '{stream.document_ids([piece.id[1]])[0]}': "
        f"token id {piece.content.max()}, but the model's "
        f"vocab_size is {vocab_size}; the shards were made with another tokenizer, or are damaged: "
        "prepare the source again with this run's tokenizer"
    )
