"""Validation batches of one source: the same documents, rows and masks at every evaluation.

A causal phase is evaluated on the same rows, of which each token predicts the next.
"""

from collections.abc import Iterator
from dataclasses import replace

from tessera.batch import PackedBatch
from tessera.data.collate import Shapes, packed_batch
from tessera.data.config import DataConfig, MaskingConfig
from tessera.data.pipeline.packing import Waiting, wants_more
from tessera.data.pipeline.pieces import Cut, Piece
from tessera.data.pipeline.rows import make_row, row_format
from tessera.data.pipeline.shuffle import Order, Spans
from tessera.data.pipeline.state import LaneState
from tessera.data.pipeline.streams import Cursor, Reader, Stream, source_pieces
from tessera.data.randomness import Draws
from tessera.data.sources.source import OpenSource, check_tokenizer, open_source
from tessera.data.sources.special_tokens import framing_of
from tessera.tokenizer import Tokenizer

_BLOCK_DOCUMENTS = 65_536
"""Not the training's, which may change between phases; few, to read few shards."""


def validation_batches(
    config: DataConfig,
    source_name: str,
    tokenizer: Tokenizer,
    *,
    vocab_size: int,
    masking_rate: float | None,
    max_tokens: int,
    seed: int,
    rank: int = 0,
    world_size: int = 1,
    open_source: OpenSource = open_source,
) -> Iterator[PackedBatch]:
    """One rank's share of a source's validation rows, one row a batch.

    Row g goes to rank `g % world_size`, so ranks may get unequal numbers of batches, or none: add
    up losses and counts over ranks at the end, not batch by batch. No row is repeated or padded out
    to make them equal.

    Args:
        config: Its `sources`, lengths and packing.
        source_name: One of the sources; its weight does not matter.
        tokenizer: The one that made the shards.
        vocab_size: Rows of the model's embedding.
        masking_rate: Share of the ordinary tokens to predict; None: each from those before it,
            for a causal model. What `config` says of either is how to train.
        max_tokens: Stop before there are more real tokens than this, after at least one piece.
        seed: Chooses documents, if not all fit, and masks.
        rank: This rank's number.
        world_size: Number of ranks.
        open_source: How the source is opened.

    Raises:
        ValueError: If the source has no validation split, or one made with another tokenizer.
    """
    source = config.sources[source_name]
    if source.validation_split is None:
        raise ValueError(
            f"source '{source_name}' has no validation_split to evaluate on; name its folder, or "
            "list sources that have one under evaluation.sources"
        )
    documents = open_source(source_name, source, source.validation_split, vocab_size)
    check_tokenizer(source_name, documents, tokenizer)
    order = Order(
        Spans.whole(documents.samples),
        block_documents=_BLOCK_DOCUMENTS,
        shuffle=True,
        key=("evaluation", seed, source_name),
    )
    # Masks are the same in every phase, whatever training masks: single tokens, no words or spans.
    form = row_format(replace(config, masking=MaskingConfig()), tokenizer, vocab_size)
    reader = Reader(
        source_name,
        documents,
        dtype=form.pad_id.dtype,
        skip_bad=config.on_bad_shard == "skip",
        framing=framing_of(source_name, documents.summary, form.frame),
    )
    stream = Stream(0, reader, order, offset=0, stride=1)
    shapes = Shapes(config.row_tokens, config.max_seq_len)
    nothing = LaneState(0, (Cursor(),), (0,))
    pieces = _first_pieces(stream, config, max_tokens)
    try:
        for number, row in enumerate(_rows(pieces, config)):
            if number % world_size == rank:
                draws = Draws("evaluation masks", seed, source_name, number)
                made = make_row(
                    *(number, 0, row, nothing, [stream], form), rate=masking_rate, draws=draws
                )
                yield packed_batch([made], shapes, masking_rate)
    finally:
        documents.close()


def _first_pieces(stream: Stream, config: DataConfig, max_tokens: int) -> Iterator[Piece]:
    """Pieces of one epoch, up to a number of tokens."""
    cut = Cut(config.max_seq_len, split=config.long_documents == "split")
    tokens = 0
    for piece, _ in source_pieces(stream, cut, Cursor()):
        first = not tokens
        tokens += piece.tokens
        if piece.id[1] >= stream.order.documents or (tokens > max_tokens and not first):
            return
        yield piece


def _rows(pieces: Iterator[Piece], config: DataConfig) -> Iterator[list[Piece]]:
    """Pack all the pieces; the last rows hold what is left."""
    waiting = Waiting()
    for piece in pieces:
        waiting.add(piece)
        while not wants_more(waiting, config.row_tokens, config.waiting_pieces):
            yield waiting.take_row(config.row_tokens)
    while len(waiting):
        yield waiting.take_row(config.row_tokens)
