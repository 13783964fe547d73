"""The work of each stage of cleaning on one part, as executors call it."""

import functools
import json
from collections import Counter
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import numpy as np

from tessera.data.preparation.cleaning.duplicates import Copies, cluster, matches
from tessera.data.preparation.cleaning.joining import join_documents, shelve
from tessera.data.preparation.cleaning.work_folder import WorkFolder, read_lines, writing_lines
from tessera.data.preparation.config import DuplicatesConfig, JoinConfig
from tessera.data.preparation.formats.records import Reading
from tessera.data.preparation.notes import Notes
from tessera.data.preparation.places import patiently, put
from tessera.data.preparation.text_files import Part, read_rows
from tessera.files import write_whole

FILTERED, CLUSTERED, WRITTEN, JOINED = "filtered", "clustered", "written", "joined"
"""Names of the stages that leave a record for each part."""
EMPTY = "empty"
_BEGINNING = 100


@dataclass(frozen=True, kw_only=True)
class PartTask:
    """One part of a source."""

    part: Part
    number: int
    """Among all parts: earlier ones keep the copies."""
    source: str
    reading: Reading
    text: str
    """Address of the cleaned text."""
    removed: str
    """Address of the list of what was removed."""

    def __str__(self) -> str:
        return str(self.part)


# ---- filters, evaluation texts, keys


@dataclass(frozen=True, kw_only=True)
class Filtering:
    """Reads a part, leaves out what the rules do not pass, writes the rest and its keys."""

    work: str
    filters: dict[str, dict[str, dict[str, Any]]]
    """Rules by source."""
    against_words: int
    """How many words in a row must not be shared with evaluation texts; 0 if there are none."""
    duplicates: DuplicatesConfig

    def start(self) -> None:
        """Load models and the words of evaluation texts, once for each process."""
        for source in self.filters:
            self._chain(source)
        self._contamination()

    def do(self, task: PartTask) -> None:
        """Do it, unless it was done before.

        Raises:
            ValueError: the input is not what it should be; names file and place.
        """
        WorkFolder(self.work).once(
            FILTERED, task.number, lambda: patiently(lambda: self._filter(task))
        )

    def _filter(self, task: PartTask) -> dict[str, Any]:
        folder, notes = WorkFolder(self.work), Notes()
        chain, keys_of = self._chain(task.source), self._keys()
        contamination = self._contamination()
        counts: Counter[str] = Counter()
        why_removed: Counter[str] = Counter()
        keys = []
        chain.cut()  # what a part that failed had counted
        with ExitStack() as stack:
            texts = stack.enter_context(writing_lines(folder.texts(task.number)))
            removed = stack.enter_context(writing_lines(folder.removed(task.number)))
            for (name, text), others in read_rows(task.part, task.reading, notes):
                counts["documents"] += 1
                counts["characters"] += len(text)
                cleaned, why, more = text, None, {}
                if not text.strip():
                    why = EMPTY
                else:
                    cleaned, why = chain.judge(text)
                if why is None and contamination and (found := contamination.of(cleaned)):
                    why, more = f"words of {found[0]}", {"words": found[1]}
                if why is not None:
                    why_removed[why] += 1
                    removed.write({"id": name, "why": why, **more, "begins": text[:_BEGINNING]})
                    continue
                texts.write({"id": name, "text": cleaned, **others})
                keys.append(keys_of.of(cleaned))
        shape = (len(keys), self.duplicates.bands)
        np.save(folder.keys(task.number), np.array(keys, np.uint64).reshape(shape).T)
        return {
            **counts,
            "passed": len(keys),
            "removed": why_removed,
            "cut": chain.cut(),
            "noted": notes.found,
        }

    def _chain(self, source: str) -> Any:
        return _loaded_chain(json.dumps(self.filters[source]))

    def _contamination(self) -> Any:
        return _loaded_contamination(self.work, self.against_words) if self.against_words else None

    def _keys(self) -> Any:
        return _loaded_keys(self.duplicates)


@functools.cache
def _loaded_chain(filters: str) -> Any:
    from tessera.data.preparation.cleaning.datatrove_filters import Chain

    return Chain(json.loads(filters))


@functools.cache
def _loaded_contamination(work: str, words: int) -> Any:
    from tessera.data.preparation.cleaning.datatrove_shingles import Contamination

    return Contamination(WorkFolder(work).index, words)


@functools.cache
def _loaded_keys(duplicates: DuplicatesConfig) -> Any:
    from tessera.data.preparation.cleaning.datatrove_shingles import Keys

    return Keys(duplicates)


# ---- copies


@dataclass(frozen=True, kw_only=True)
class MatchTask:
    """A share of the keys of one band."""

    band: int
    piece: int
    pieces: int

    def __str__(self) -> str:
        return f"keys {self.piece + 1} of {self.pieces} of band {self.band}"


@dataclass(frozen=True, kw_only=True)
class Matching:
    """Finds documents that share a key."""

    work: str
    offsets: tuple[int, ...]
    """The number of the first document of each part."""

    def start(self) -> None:
        """Nothing to load."""

    def do(self, task: MatchTask) -> None:
        """Do it, unless it was done before."""
        folder = WorkFolder(self.work)
        done = folder.matches(task.band, task.piece)
        if not done.exists():  # whole once it has its name; doing it twice at once gives the same
            files = [folder.keys(number) for number in range(len(self.offsets))]
            found = matches(files, self.offsets, task.band, task.piece, task.pieces)
            write_whole(done, lambda file: np.save(file, found))


@dataclass(frozen=True, kw_only=True)
class Clustering:
    """Joins all matches to clusters: one task."""

    work: str

    def start(self) -> None:
        """Nothing to load."""

    def do(self, tasks: tuple[MatchTask, ...]) -> None:
        """Do it, unless it was done before."""
        folder = WorkFolder(self.work)
        found = [(task.band, folder.matches(task.band, task.piece)) for task in tasks]
        folder.once(CLUSTERED, 0, lambda: cluster(found, folder.clusters))


# ---- text


@dataclass(frozen=True, kw_only=True)
class Writing:
    """Writes a part without copies: to where it belongs, or to where it waits to be joined."""

    work: str
    offsets: tuple[int, ...]
    copies: bool
    """Whether copies were looked for."""
    shelves: dict[str, int]
    """By sources that are joined: over how many shares its documents are spread."""
    joins: dict[str, JoinConfig]

    def start(self) -> None:
        """Nothing to load."""

    def do(self, task: PartTask) -> None:
        """Do it, unless it was done before."""
        folder = WorkFolder(self.work)
        folder.once(WRITTEN, task.number, lambda: self._write(task, folder))

    def _write(self, task: PartTask, folder: WorkFolder) -> Counter[str]:
        passed = folder.record(FILTERED, task.number)["passed"]
        offset = self.offsets[task.number]
        copies = Copies(folder.clusters, offset, passed).of if self.copies else {}
        counts: Counter[str] = Counter()
        rest = folder.file("rest", task.number, ".jsonl.zst")
        listed = folder.file("listed", task.number, ".jsonl.zst")
        with writing_lines(rest) as texts, writing_lines(listed) as removed:
            for line in read_lines(folder.removed(task.number)):
                removed.write(line)
            for place, document in enumerate(read_lines(folder.texts(task.number))):
                copy = copies.get(place)
                if copy is not None and not copy.kept:
                    why = "copy" if copy.exact else "near copy"
                    counts[why] += 1
                    about = {"why": why, "cluster": copy.cluster}
                    begins = document["text"][:_BEGINNING]
                    removed.write({"id": document["id"], **about, "begins": begins})
                    continue
                counts["kept"] += 1
                counts["kept_characters"] += len(document["text"])
                texts.write(document if copy is None else {**document, "cluster": copy.cluster})
        patiently(lambda: put(task.removed, listed))
        if task.source in self.joins:
            by = self.joins[task.source].by
            shelve(folder, task.number, rest, by, self.shelves[task.source])
        else:
            patiently(lambda: put(task.text, rest))
        return counts


@dataclass(frozen=True, kw_only=True)
class JoinTask:
    """A share of the documents of one split of a source, to be joined."""

    number: int
    """Among all such tasks."""
    shelf: int
    parts: tuple[int, ...]
    """The parts of the split."""
    source: str
    split: str
    text: str

    def __str__(self) -> str:
        return f"{self.source}: documents to join, share {self.shelf}"


@dataclass(frozen=True, kw_only=True)
class Joining:
    """Makes one document of those that share a value."""

    work: str
    joins: dict[str, JoinConfig]

    def start(self) -> None:
        """Nothing to load."""

    def do(self, task: JoinTask) -> None:
        """Do it, unless it was done before."""
        folder = WorkFolder(self.work)
        folder.once(JOINED, task.number, lambda: self._join(task, folder))

    def _join(self, task: JoinTask, folder: WorkFolder) -> dict[str, Any]:
        joined = folder.file("joined_text", task.number, ".jsonl.zst")
        counts: Counter[str] = Counter()
        with writing_lines(joined) as texts:
            for document, members, mixed in join_documents(
                folder, task.parts, task.shelf, self.joins[task.source]
            ):
                counts["into"] += 1
                counts["documents"] += members
                counts["mixed"] += mixed
                texts.write(document)
        patiently(lambda: put(task.text, joined))
        return {"source": task.source, "split": task.split, **counts}
