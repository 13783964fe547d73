"""Recall over distance: a name that stood once before in the text, masked where it stands again.

A text is as long as the model may see. Over its end a phrase of another document is laid, with a
name of random tokens in it, masked. To recall it, the model has to find the same phrase with the
name written out, which is laid over the text so many tokens before; in the control it is nowhere.
Text, phrase, name and place are the same for all distances and for the control: what differs is the
earlier mention alone. Names are of tokens that occur in these documents, but not in the text.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from tessera.batch import PackedBatch
from tessera.data.randomness import permuted
from tessera.evaluation.predictions import counted
from tessera.evaluation.segments import Segment, batches_of
from tessera.evaluation.tasks.config import fitting_distances
from tessera.tokenizer import Tokenizer


@dataclass(frozen=True, kw_only=True)
class RecallTexts:
    """What is asked: for each name the control, then a text for each distance."""

    batches: list[PackedBatch]
    names: int
    distances: tuple[int, ...]
    """Those that fit, ascending."""
    name_tokens: int
    documents_per_text: float
    """How many documents, put end to end, a text is made of on average; at least 1."""


@dataclass(frozen=True, kw_only=True)
class Recalled:
    """Means over all tokens of all names."""

    loss: float
    """In nats."""
    accuracy: float


def recall_texts(
    sources: Iterable[Iterator[np.ndarray]],
    tokenizer: Tokenizer,
    *,
    distances: Sequence[int],
    names: int,
    name_tokens: int,
    phrase_tokens: int,
    max_seq_len: int,
    row_tokens: int,
    seed: int,
) -> RecallTexts:
    """Make the texts; the same for the same documents, tokenizer and numbers.

    Args:
        sources: the documents of each, (n,) ids without [CLS] and [SEP], read as far as needed.
        tokenizer: of these ids.
        distances: those beyond the longest possible, or nearer than a phrase is long, are left out.
        names: as many as there is text for, at most.
        name_tokens: tokens of a name.
        phrase_tokens: of the phrase on either side of the name.
        max_seq_len: tokens of a text, [CLS] and [SEP] included.
        row_tokens: token slots of a batch.
        seed: chooses the names.

    Raises:
        ValueError: no distance fits, or there is not enough text for a single name.
    """
    phrase = 2 * phrase_tokens + name_tokens
    fit = fitting_distances(
        distances,
        max_seq_len=max_seq_len,
        name_tokens=name_tokens,
        phrase_tokens=phrase_tokens,
    )
    room = max_seq_len - 2
    taken, documents = _chunks(sources, 2 * phrase_tokens + room, names)
    if not taken:
        raise ValueError(
            f"the documents together are shorter than one text of {max_seq_len} tokens: name more, "
            "or a smaller max_seq_len"
        )
    pool = np.setdiff1d(np.unique(np.concatenate(taken)), tokenizer.special_ids)
    segments: list[Segment] = []
    for number, chunk in enumerate(taken):
        around, text = chunk[: 2 * phrase_tokens], chunk[2 * phrase_tokens :]
        name = _name(pool, chunk, name_tokens, seed, number)
        known = np.concatenate([around[:phrase_tokens], name, around[phrase_tokens:]])
        masked = known.copy()
        masked[phrase_tokens : phrase_tokens + name_tokens] = tokenizer.mask_id
        place = room - phrase
        for distance in (None, *fit):
            content = text.copy()
            content[place:] = masked
            if distance is not None:
                content[place - distance :][:phrase] = known
            plain = Segment.of(content, tokenizer.cls_id, tokenizer.sep_id)
            positions = 1 + place + phrase_tokens + np.arange(name_tokens)
            segments.append(Segment(ids=plain.ids, positions=positions, labels=name))
    return RecallTexts(
        batches=batches_of(
            segments, row_tokens=row_tokens, max_seq_len=max_seq_len, pad_id=tokenizer.pad_id
        ),
        names=len(taken),
        distances=fit,
        name_tokens=name_tokens,
        documents_per_text=max(1.0, documents / len(taken)),
    )


def recalled(texts: RecallTexts, found: Sequence[Tensor]) -> dict[int | None, Recalled]:
    """Loss and accuracy by distance; that of the control is under None.

    Args:
        texts: what was asked.
        found: (2, M) of each of its batches, as `predictions.answers` gives them.
    """
    parts = zip(texts.batches, found, strict=True)
    flat = np.concatenate([counted(batch, answer) for batch, answer in parts], axis=1)
    shaped = flat.reshape(2, texts.names, 1 + len(texts.distances), texts.name_tokens)
    losses, right = shaped.mean(axis=(1, 3))
    kinds = (None, *texts.distances)
    return {
        kind: Recalled(loss=float(losses[i]), accuracy=float(right[i]))
        for i, kind in enumerate(kinds)
    }


def _chunks(
    sources: Iterable[Iterator[np.ndarray]], length: int, most: int
) -> tuple[list[np.ndarray], int]:
    """Documents end to end, cut into chunks: the sources in turn, a chunk each.

    Returns:
        The chunks, and how many documents they were made of.
    """
    readers = [_cut(source, length) for source in sources]
    chunks: list[np.ndarray] = []
    documents = 0
    while readers and len(chunks) < most:
        for reader in list(readers):
            found = next(reader, None)
            if found is None:
                readers.remove(reader)
            elif len(chunks) < most:
                chunks.append(found[0])
                documents += found[1]
    return chunks, documents


def _cut(documents: Iterator[np.ndarray], length: int) -> Iterator[tuple[np.ndarray, int]]:
    waiting: list[np.ndarray] = []
    tokens = 0
    for document in documents:
        waiting.append(document)
        tokens += len(document)
        while tokens >= length:
            joined = np.concatenate(waiting)
            count = len(waiting)
            waiting, tokens = [joined[length:]], tokens - length
            yield joined[:length], count


def _name(pool: np.ndarray, chunk: np.ndarray, tokens: int, seed: int, number: int) -> np.ndarray:
    """Tokens that do not occur in the chunk; any, where all tokens do."""
    absent = np.setdiff1d(pool, chunk)
    drawn_from = absent if len(absent) >= tokens else pool
    if len(drawn_from) < tokens:
        raise ValueError(f"the documents have {len(pool)} different tokens: too few for a name")
    chosen = permuted(np.arange(tokens), len(drawn_from), "names to recall", seed, number)
    return drawn_from[chosen]
