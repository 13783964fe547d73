"""Opening the sources of a run, and dealing their documents out to lanes."""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np

from tessera.data.config import DataConfig, SourceConfig
from tessera.data.pipeline.masking import Vocabulary
from tessera.data.pipeline.rows import RowFormat
from tessera.data.pipeline.shuffle import Order, group_spans
from tessera.data.pipeline.streams import Documents, Reader, Stream
from tessera.data.sources.mds import Source
from tessera.data.sources.special_tokens import framing_of
from tessera.tokenizer import Tokenizer, token_dtype

log = logging.getLogger(__name__)

OpenSource = Callable[[str, SourceConfig, str, int], Documents]
"""(name, source, split, vocab_size) -> the opened source."""


def open_source(name: str, source: SourceConfig, split: str, vocab_size: int) -> Documents:
    """Open one split of one source."""
    limit = source.cache_limit
    return Source(
        name,
        Path(source.local),
        remote=source.remote,
        split=split,
        cache_limit_bytes=None if limit is None else limit.value,
        vocab_size=vocab_size,
    )


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


def check_tokenizer(name: str, documents: Documents, tokenizer: Tokenizer) -> None:
    """Refuse shards that another tokenizer made; those that do not say are taken on trust."""
    made_with = documents.tokenizer_fingerprint
    if made_with not in (None, tokenizer.fingerprint):
        raise ValueError(
            f"source '{name}' was prepared with another tokenizer ({made_with}) than this run's "
            f"({tokenizer.fingerprint}): its token ids would mean other tokens; set `tokenizer` to "
            "the one beside the shards, or prepare the source again"
        )


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
        vocabulary=vocabulary(tokenizer, whole_words=config.masking.whole_words),
    )


def vocabulary(tokenizer: Tokenizer, *, whole_words: bool) -> Vocabulary:
    """The tables that masking needs.

    Raises:
        ValueError: If whole words are asked for and the tokenizer does not show where they begin.
    """
    dtype = token_dtype(tokenizer.size)
    ordinary = np.zeros(np.iinfo(dtype).max + 1 if dtype.itemsize == 2 else tokenizer.size, bool)
    ordinary[: tokenizer.size] = True
    ordinary[tokenizer.special_ids] = False
    word_starts = None
    if whole_words:
        if tokenizer.word_starts is None:
            raise ValueError(
                "train_data.masking.whole_words: this tokenizer's tokens do not show where a word "
                "begins; set it to false"
            )
        word_starts = np.zeros(len(ordinary), bool)
        word_starts[: tokenizer.size] = tokenizer.word_starts
    replacements = np.flatnonzero(ordinary).astype(dtype)
    return Vocabulary(tokenizer.mask_id, ordinary, replacements, word_starts)


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
            few = reader.documents.samples.sum() < config.canonical_nodes
            groups = 1 if few else config.canonical_nodes
            shared = order(number, lane % groups, groups)
            found.append(Stream(number, reader, shared, lane // groups, config.lanes // groups))
        return found

    return streams
