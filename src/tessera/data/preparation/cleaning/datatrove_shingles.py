"""Runs of words, hashed as datatrove does: keys of near copies, and words of evaluation texts."""

import itertools
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
from tessera.data.preparation.cleaning.duplicates import NO_KEY
from tessera.data.preparation.cleaning.words import WORD, stands_alone
from tessera.data.preparation.config import DuplicatesConfig

_PIECE_CHARACTERS = 1 << 18
_INDEX = ".index.hashes"
_BLANK = re.compile(r"\s")
_NORM = TextNormConfig(norm_unicode_diacritics=False, norm_numbers=False)
"""Case, blanks and punctuation do not count. Unlike datatrove's default, numbers do (or all rows of
a table are near copies), and so do marks (vowels of Hindi and Thai are marks)."""


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
            minhash = MinhashConfig(
                n_grams=config.words,
                num_buckets=config.buckets,
                hashes_per_bucket=config.hashes,
                norm_config=_NORM,
            )
            # It makes no file unless it is run.
            self._of = MinhashDedupSignature(tempfile.gettempdir(), minhash, language=WORDS)

    def of(self, text: str) -> np.ndarray:
        """(bands,) uint64; 0 where a text has too few words to have near copies."""
        keys = np.full(self._bands, NO_KEY, np.uint64)
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
            shingles = self._of.get_shingles(piece)
            if shingles.size:
                found = np.concatenate(self._of.get_signature(shingles)).astype(np.uint64)
                smallest = found if smallest is None else np.minimum(smallest, found)
        return smallest


def _pieces(text: str, overlap: int = 0) -> Iterator[str]:
    """A long text cut between words, each piece with so many words of the next one.

    Without an overlap the shingles over a cut are left out: few of many, for near copies.
    """
    start = 0
    while len(text) - start > _PIECE_CHARACTERS:
        latest = start + _PIECE_CHARACTERS
        found = _BLANK.search(text, latest, latest + _PIECE_CHARACTERS)
        end = found.end() if found else latest
        after = (m for m in WORD.finditer(text, end) if any(map(str.isalnum, m.group())))
        last = next(itertools.islice(after, overlap - 1, None), None) if overlap else None
        yield text[start : last.end() if last else len(text) if overlap else end]
        start = end
    yield text[start:]


def index_runs(folder: Path, name: str, texts: Iterable[str], words: int) -> dict[str, int]:
    """Write the hashes of every run of words in evaluation texts, as `Contamination` reads them.

    Returns:
        How many texts and runs there are, how many texts have fewer words, and in how many more
        than half of the words are single characters of scripts without blanks.
    """
    of = create_hash_func(NGramsDecontConfig().hash_config)
    counts = {"texts": 0, "too_short": 0, "without_blanks": 0}
    hashes: set[int] = set()
    for text in texts:
        found = WORDS.word_tokenize(simplify_text(text, _NORM))
        counts["texts"] += 1
        counts["too_short"] += len(found) < words
        counts["without_blanks"] += 2 * sum(map(stands_alone, found)) > len(found)
        hashes.update(of(" ".join(run)) for run in ngrams(found, words))
    folder.mkdir(parents=True, exist_ok=True)
    np.array(sorted(hashes), np.uint64).tofile(folder / f"{name}{_INDEX}")
    return {**counts, "runs": len(hashes)}


class Contamination:
    """Finds documents that share a run of words with an evaluation text."""

    def __init__(self, folder: Path, words: int) -> None:
        config = NGramsDecontConfig(n_grams=words, norm_config=_NORM)
        self._filter = NGramsDecontFilter(str(folder), config, language=WORDS)
        self._overlap = words - 1

    def of(self, text: str) -> tuple[str, str] | None:
        """(name of the evaluation set, the words), or None."""
        for piece in _pieces(text, self._overlap):
            document = Document(text=piece, id="")
            if self._filter.filter(document) is not True:
                found = document.metadata
                return str(found["contaminated_task"]), str(found["contaminated_ngram"])
        return None
