"""Which documents are copies of an earlier one, from keys on disk, in bounded memory.

A document has a number: its place among all that passed the filters, part after part. Keys of a
part are one file, (bands, documents) uint64.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

NO_KEY = 0
"""In place of a key, of a document that has no copies in a band."""


def matches(
    files: Sequence[Path], offsets: Sequence[int], band: int, piece: int, pieces: int
) -> np.ndarray:
    """Pairs of documents that share a key.

    Args:
        files: Keys of each part.
        offsets: The number of the first document of each part.
        band: Which row of the keys.
        piece: Only keys of this share of all that there may be.
        pieces: How many shares there are, each about 16 bytes / `pieces` a document.

    Returns:
        (pairs, 2) uint64: the first of those that share a key, and each other one.
    """
    lowest, highest = piece * 2**64 // pieces, (piece + 1) * 2**64 // pieces - 1
    keys, documents = [np.empty(0, np.uint64)], [np.empty(0, np.uint64)]
    for file, offset in zip(files, offsets, strict=True):
        row = np.load(file, mmap_mode="r")[band]
        inside = (row >= np.uint64(lowest)) & (row <= np.uint64(highest)) & (row != NO_KEY)
        places = np.flatnonzero(inside)
        keys.append(np.asarray(row[places]))
        documents.append(places.astype(np.uint64) + np.uint64(offset))
    key, document = np.concatenate(keys), np.concatenate(documents)
    order = np.argsort(key, kind="stable")  # of one key, the first document stays the first
    key, document = key[order], document[order]
    begins = np.ones(len(key), bool)
    begins[1:] = key[1:] != key[:-1]
    first = document[np.flatnonzero(begins)[np.cumsum(begins) - 1]] if len(key) else document
    return np.stack([first[~begins], document[~begins]], axis=1)


def merged(forest: np.ndarray, pairs: np.ndarray) -> np.ndarray:
    """Pairs (first of a cluster, other member), of all that two sets of pairs connect.

    Takes about 100 bytes for each document that has a copy, and none for the others.
    """
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    both = np.concatenate([forest, pairs])
    documents, ends = np.unique(both, return_inverse=True)
    ends = ends.reshape(-1, 2)
    size = len(documents)
    edges = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(size, size))
    _, cluster = connected_components(edges, directed=False)
    _, smallest = np.unique(cluster, return_index=True)  # documents are in order
    first = documents[smallest[cluster]]
    other = first != documents
    return np.stack([first[other], documents[other]], axis=1)


def cluster(found: Sequence[tuple[int, Path]], folder: Path) -> dict[str, int]:
    """Join matches to clusters; writes what `Copies` reads, and returns how many copies there are.

    Args:
        found: (band, file of its matches).
        folder: Where to write.
    """
    forest = np.empty((0, 2), np.uint64)
    for band, file in sorted(found):
        if band == 0:
            forest = merged(forest, np.load(file))
    exact = forest[:, 1]
    for band, file in sorted(found):
        if band > 0:
            forest = merged(forest, np.load(file))
    forest = forest[np.argsort(forest[:, 1])]
    folder.mkdir(parents=True, exist_ok=True)
    np.save(folder / "copies.npy", forest[:, 1])
    np.save(folder / "firsts.npy", forest[:, 0])
    np.save(folder / "kept.npy", np.unique(forest[:, 0]))
    np.save(folder / "exact.npy", np.isin(forest[:, 1], exact))
    return {"copies": len(forest)}


@dataclass(frozen=True)
class Copy:
    """A document that is not kept, or of which there were copies."""

    cluster: int
    """The number of the one that is kept."""
    exact: bool
    kept: bool


class Copies:
    """The documents of a part that are in clusters, by their place in the part."""

    def __init__(self, folder: Path, offset: int, documents: int) -> None:
        self.of: dict[int, Copy] = {}
        numbers = np.load(folder / "copies.npy", mmap_mode="r")
        ends = np.array([offset, offset + documents], np.uint64)
        start, stop = np.searchsorted(numbers, ends)
        firsts, exact = (np.load(folder / n, mmap_mode="r") for n in ("firsts.npy", "exact.npy"))
        for place in range(start, stop):
            copy = Copy(cluster=int(firsts[place]), exact=bool(exact[place]), kept=False)
            self.of[int(numbers[place]) - offset] = copy
        kept = np.load(folder / "kept.npy", mmap_mode="r")
        start, stop = np.searchsorted(kept, ends)
        for place in range(start, stop):
            number = int(kept[place])
            self.of[number - offset] = Copy(cluster=number, exact=False, kept=True)
