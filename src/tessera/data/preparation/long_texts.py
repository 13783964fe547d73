"""Token ids of documents of any length in bounded memory.

A tokenizer needs some 150 bytes a character while it works, so that a document of 50 MB would cost
7 GB. A long document is cut where the tokenizer itself sees a boundary: at a place where encoding
both sides apart gives the ids that encoding across gives.
"""

import re
from collections.abc import Iterator
from typing import TypeVar

import numpy as np

from tessera.data.preparation.notes import CUT_WORDS, Notes
from tessera.tokenizer import Tokenizer

PIECE_CHARACTERS = 1 << 19
BATCH_CHARACTERS = 1 << 20
_AROUND = 256
_TRIES = 12
_BOUNDARIES = (
    re.compile(r"(?<=\S)(?=\n\S)"),
    re.compile(r"(?<=\S)(?= \w)"),
    re.compile(r"\b"),
    re.compile(""),
)
"""Likely boundaries, best first: before a line, before a word, at the edge of one, anywhere."""

Key = TypeVar("Key")


def encode_documents(
    documents: Iterator[tuple[Key, str]], tokenizer: Tokenizer, notes: Notes
) -> Iterator[tuple[Key, np.ndarray]]:
    """Encode in batches of about `BATCH_CHARACTERS`, long documents piece by piece.

    Args:
        documents: (what stands for the document, its text).
        tokenizer: Encodes, without special tokens.
        notes: Gets what is worth saying.
    """
    batch: list[tuple[Key, str]] = []
    characters = 0
    for key, text in documents:
        if len(text) > BATCH_CHARACTERS:
            yield from _encode(batch, tokenizer)
            batch, characters = [], 0
            yield key, encode_long(text, tokenizer, notes, str(key))
            continue
        batch.append((key, text))
        characters += len(text)
        if characters >= BATCH_CHARACTERS:
            yield from _encode(batch, tokenizer)
            batch, characters = [], 0
    yield from _encode(batch, tokenizer)


def encode_long(text: str, tokenizer: Tokenizer, notes: Notes, place: str) -> np.ndarray:
    """Token ids of a long text, as encoding it whole would give them."""
    pieces = (
        tokenizer.encode_batch([piece])[0] for piece in _pieces(text, tokenizer, notes, place)
    )
    return np.concatenate(list(pieces))


def _encode(batch: list[tuple[Key, str]], tokenizer: Tokenizer) -> Iterator[tuple[Key, np.ndarray]]:
    keys, texts = [document[0] for document in batch], [document[1] for document in batch]
    return zip(keys, tokenizer.encode_batch(texts), strict=True)


def _pieces(text: str, tokenizer: Tokenizer, notes: Notes, place: str) -> Iterator[str]:
    start = 0
    while len(text) - start > PIECE_CHARACTERS + _AROUND:
        latest = start + PIECE_CHARACTERS
        cut = _boundary(text, latest, tokenizer)
        if cut is None:
            notes.add(CUT_WORDS, place)
            cut = latest
        yield text[start:cut]
        start = cut
    yield text[start:]


def _boundary(text: str, latest: int, tokenizer: Tokenizer) -> int | None:
    """The last place before `latest` that the tokenizer sees as a boundary, if one is near."""
    window_start = latest - (PIECE_CHARACTERS >> 3)
    window = text[window_start : latest + _AROUND]
    for pattern in _BOUNDARIES:
        found = [
            match.start() for match in pattern.finditer(window, _AROUND, len(window) - _AROUND)
        ]
        for offset in found[: -_TRIES - 1 : -1]:
            left, right = window[offset - _AROUND : offset], window[offset : offset + _AROUND]
            apart = tokenizer.encode_batch([left, right, left + right])
            if np.array_equal(np.concatenate(apart[:2]), apart[2]):
                return window_start + offset
    return None
