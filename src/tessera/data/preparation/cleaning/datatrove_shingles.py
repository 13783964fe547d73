"""Runs of words, hashed as datatrove does: keys of near copies, and words of evaluation texts."""

import re
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path

import numpy as np
import xxhash
from datatrove.data import Document
from datatrove.pipeline.decont.n_grams import NGramsDecontConfig, NGramsDecontFilter
from datatrove.pipeline.dedup.minhash import MinhashConfig, MinhashDedupSignature
from datatrove.utils.hashing import create_hash_func
from datatrove.utils.text import TextNormConfig, ngrams, simplify_text

from tessera.data.preparation.cleaning.datatrove_filters import WORDS
from tessera.data.preparation.config import DuplicatesConfig

_PIECE_CHARACTERS = 1 << 18
_INDEX = ".index.hashes"
_NO_KEY = 0
_ANY = TextNormConfig()
_ASCII = TextNormConfig(norm_unicode_diacritics=False)
"""The same for text without accents to take off, in half the time."""


class Keys:
    """What copies of a document share: one number a band; equal ones mean a copy.

    The first is a hash of the text itself. The others are of MinHash: each is of `hashes` minima,
    so that two documents whose shingles have the Jaccard similarity s share one of `buckets` bands
    with probability 1 - (1 - s^hashes)^buckets (Leskovec et al., Mining of Massive Datasets, 3.4).
    """

    def __init__(self, config: DuplicatesConfig) -> None:
        self._bands = config.bands
        self._buckets = config.buckets
        if self._bands > 1:
            self._ascii, self._any = (_signatures(config, norm) for norm in (_ASCII, _ANY))

    def of(self, text: str) -> np.ndarray:
        """(bands,) uint64; 0 where a text has too few words to have near copies."""
        keys = np.full(self._bands, _NO_KEY, np.uint64)
        if self._bands:
            keys[0] = xxhash.xxh64_intdigest(text.encode()) or 1
        if self._bands > 1 and (minima := self._minima(text)) is not None:
            for band, some in enumerate(np.split(minima, self._buckets), start=1):
                keys[band] = xxhash.xxh64_intdigest(some.tobytes()) or 1
        return keys

    def _minima(self, text: str) -> np.ndarray | None:
        """The smallest hash of all shingles under each permutation, in bounded memory."""
        smallest = None
        for piece in _pieces(text):
            of = self._ascii if piece.isascii() else self._any
            shingles = of.get_shingles(piece)
            if shingles.size:
                found = np.concatenate(of.get_signature(shingles)).astype(np.uint64)
                smallest = found if smallest is None else np.minimum(smallest, found)
        return smallest


def _signatures(config: DuplicatesConfig, norm: TextNormConfig) -> MinhashDedupSignature:
    minhash = MinhashConfig(
        n_grams=config.words,
        num_buckets=config.buckets,
        hashes_per_bucket=config.hashes,
        norm_config=norm,
    )
    return MinhashDedupSignature(tempfile.gettempdir(), minhash, language=WORDS)  # writes no file


def _pieces(text: str) -> Iterator[str]:
    """A long text cut between words; shingles over a cut are few, and left out in every copy."""
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        found = re.compile(r"\s").search(text, start + _PIECE_CHARACTERS)
        end = found.end() if found and found.end() < start + 2 * _PIECE_CHARACTERS else 0
        end = end or start + _PIECE_CHARACTERS
        yield text[start:end]
        start = end
    yield text[start:]


def index_runs(folder: Path, name: str, texts: Iterable[str], words: int) -> tuple[int, int]:
    """Write the hashes of every run of words in evaluation texts, as `Contamination` reads them.

    Returns:
        How many runs there are, and how many of the texts have fewer words.
    """
    of, short = create_hash_func(NGramsDecontConfig().hash_config), 0
    hashes: set[int] = set()
    for text in texts:
        found = WORDS.word_tokenize(simplify_text(text))
        short += len(found) < words
        hashes.update(of(" ".join(run)) for run in ngrams(found, words))
    folder.mkdir(parents=True, exist_ok=True)
    np.array(sorted(hashes), np.uint64).tofile(folder / f"{name}{_INDEX}")
    return len(hashes), short


class Contamination:
    """Finds documents that share a run of words with an evaluation text."""

    def __init__(self, folder: Path, words: int) -> None:
        self._ascii, self._any = (
            NGramsDecontFilter(
                str(folder), NGramsDecontConfig(n_grams=words, norm_config=norm), language=WORDS
            )
            for norm in (_ASCII, _ANY)
        )
        self._any.load_index_hashes()
        self._ascii._index_hashes = self._any._index_hashes

    def of(self, text: str) -> tuple[str, str] | None:
        """(name of the evaluation set, the words), or None."""
        for piece in _pieces(text):
            document = Document(text=piece, id="")
            check = self._ascii if piece.isascii() else self._any
            if check.filter(document) is not True:
                found = document.metadata
                return str(found["contaminated_task"]), str(found["contaminated_ngram"])
        return None
