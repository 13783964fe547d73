"""One part of a source: read once, tokenised, written to the shards of every split it feeds."""

import functools
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass

import numpy as np
import xxhash

from tessera.data.preparation.formats.records import Reading
from tessera.data.preparation.long_texts import encode_documents
from tessera.data.preparation.mds_writer import PartWriter
from tessera.data.preparation.notes import UNKNOWN, VANISHED, Notes
from tessera.data.preparation.places import patiently
from tessera.data.preparation.shard_folders import locked, shard_folder
from tessera.data.preparation.text_files import Part, read_part
from tessera.tokenizer import Tokenizer, load_tokenizer
from tessera.tokenizer.coverage import Vanishing


@dataclass(frozen=True, kw_only=True)
class Task:
    """One part of a source, for one worker."""

    part: Part
    number: int
    """Of the part, in every folder it goes to."""
    folders: tuple[tuple[str, str], ...]
    """(split, address of its folder); of two, the documents are shared out by their hash."""
    validation_share: float | None
    """None if there is one folder, which gets all documents."""
    reading: Reading
    shard_bytes: int
    compression: str | None

    @property
    def bytes(self) -> int:
        """How much of the input it accounts for."""
        return self.part.bytes

    def __str__(self) -> str:
        return str(self.part)


@dataclass(frozen=True, kw_only=True)
class Tokenizing:
    """The work on a task, as executors call it; goes to other processes and machines."""

    tokenizer: str
    """Folder or Hugging Face id."""

    def start(self) -> None:
        """Load what every task needs, once for each process."""
        _loaded(self.tokenizer)

    def do(self, task: Task) -> None:
        """Write a part unless that was done before; killed, it leaves nothing.

        Raises:
            ValueError: the input is not what it should be; names file and place.
        """
        folders = {split: shard_folder(address) for split, address in task.folders}
        with locked(list(folders.values()), task.number):
            missing = [split for split, f in folders.items() if not f.has(task.number)]
            if missing:
                patiently(lambda: self._write(task, missing))

    def _write(self, task: Task, missing: list[str]) -> None:
        tokenizer, notes = _loaded(self.tokenizer), Notes()
        unknown = tokenizer.role_ids.get("unk", -1)
        folders = {s: shard_folder(address) for s, address in task.folders if s in missing}
        with ExitStack() as stack:
            writers: dict[str, PartWriter] = {
                split: stack.enter_context(
                    folder.writing(
                        task.number,
                        vocab_size=tokenizer.size,
                        shard_bytes=task.shard_bytes,
                        compression=task.compression,
                    )
                )
                for split, folder in folders.items()
            }
            documents = _counted(_documents(task, missing, notes), self.tokenizer, notes)
            for key, tokens in encode_documents(documents, tokenizer, notes):
                writers[key.split].add(key.id, tokens)
                if count := np.count_nonzero(tokens == unknown):
                    notes.add(UNKNOWN, key.id, int(count))
            # The first split's part says what was noticed in both, so it is the last to be kept:
            # killed in between, the next run notices the same again.
            for split in reversed(missing):
                first = split == task.folders[0][0]
                folders[split].keep(task.number, writers[split], notes if first else Notes())


@dataclass(frozen=True, slots=True)
class _Key:
    split: str
    id: str

    def __str__(self) -> str:
        return self.id


def _documents(task: Task, wanted: list[str], notes: Notes) -> Iterator[tuple[_Key, str]]:
    """The documents of a part, each with the split it belongs to."""
    only = task.folders[0][0]
    share = None if task.validation_share is None else task.validation_share * 2**64
    for document_id, text in read_part(task.part, task.reading, notes):
        split = only
        if share is not None:
            split = "validation" if xxhash.xxh64_intdigest(text.encode()) < share else "train"
        if split in wanted:
            yield _Key(split, document_id), text


def _counted(
    documents: Iterator[tuple[_Key, str]], tokenizer: str, notes: Notes
) -> Iterator[tuple[_Key, str]]:
    vanishing = _vanishing(tokenizer)
    for key, text in documents:
        if count := vanishing.of(text):
            notes.add(VANISHED, key.id, count)
        yield key, text


@functools.cache
def _vanishing(name: str) -> Vanishing:
    return Vanishing(_loaded(name).backend)


@functools.cache
def _loaded(name: str) -> Tokenizer:
    return load_tokenizer(name)
