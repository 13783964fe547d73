"""A folder of shards in the making: on this machine's disks, or in an object store.

Both keep finished parts under `.parts`, beside the plan they follow, until the folder is published;
`index.json` is written last. On a disk the shards of the parts are then renamed in the order of the
parts. In a store nothing can be renamed, so they lie in sub-folders from the beginning, where the
index finds them.
"""

import contextlib
import fcntl
import json
import shutil
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tessera.data.preparation import places
from tessera.data.preparation.mds_writer import (
    PARTS,
    PartWriter,
    index_bytes,
    part_record,
    publish,
    summary_of,
)
from tessera.data.preparation.notes import Notes
from tessera.data.sources.mds_shard import INDEX, SUMMARY
from tessera.files import write_whole
from tessera.paths import is_remote, join

PLAN = "plan.json"


class ShardFolder(ABC):
    """Where the shards of one split go."""

    def __init__(self, address: str) -> None:
        self.address = address

    def finished_plan(self) -> dict[str, Any] | None:
        """What a finished folder was prepared from, {} if it does not say; None if unfinished."""
        if self._read(INDEX) is None:
            return None
        return dict(json.loads(self._read(SUMMARY) or b"{}").get("prepared_from") or {})

    def begun_plan(self) -> dict[str, Any] | None:
        """What an unfinished folder is prepared from; None if nothing was begun."""
        content = self._read(f"{PARTS}/{PLAN}")
        return None if content is None else dict(json.loads(content))

    @abstractmethod
    def finished_parts(self) -> set[int]:
        """The numbers of the parts that are whole."""

    @abstractmethod
    def has(self, number: int) -> bool:
        """Whether this part is whole."""

    @abstractmethod
    def holds_files_of_others(self) -> bool:
        """Whether there is anything but what is left of an earlier beginning."""

    @abstractmethod
    def begin(self, plan: dict[str, Any], *, overwrite: bool) -> None:
        """Make the folder, or take up what was begun by the same plan."""

    @abstractmethod
    def clear_parts(self) -> None:
        """Remove what publishing left of the parts."""

    @abstractmethod
    def writing(self, number: int, **options: Any) -> contextlib.AbstractContextManager[PartWriter]:
        """A writer for a part; `keep` is to be called before the context ends."""

    @abstractmethod
    def keep(self, number: int, writer: PartWriter, notes: Notes) -> None:
        """Finish a part: from now on it is whole."""

    @abstractmethod
    def has_documents(self, parts: int) -> bool:
        """Whether any of the finished parts holds a document that is not empty."""

    @abstractmethod
    def publish(self, parts: int, **about: Any) -> dict[str, Any]:
        """Join the parts; returns what `tessera.json` says."""

    @abstractmethod
    def _read(self, name: str) -> bytes | None:
        """The content of a file; None if there is none."""


def shard_folder(address: str) -> ShardFolder:
    """The folder of an address."""
    return StoreFolder(address) if is_remote(address) else DiskFolder(address)


@contextlib.contextmanager
def locked(folders: list[ShardFolder], number: int) -> Iterator[None]:
    """Hold a part against another process of this machine, such as a killed run's worker."""
    paths = [folder.lock(number) for folder in folders if isinstance(folder, DiskFolder)]
    with contextlib.ExitStack() as stack:
        for path in sorted(paths):
            file = stack.enter_context(open(path, "w"))
            fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _documents(lengths: list[list[int]]) -> bool:
    return any(length and count for length, count in lengths)


class DiskFolder(ShardFolder):
    """On a file system."""

    def __init__(self, address: str) -> None:
        super().__init__(address)
        self._path = Path(address)

    def part(self, number: int) -> Path:
        """Where a finished part lies."""
        return self._path / PARTS / f"{number:06}"

    def lock(self, number: int) -> Path:
        """The file that whoever writes a part holds."""
        return self.part(number).with_suffix(".lock")

    def finished_parts(self) -> set[int]:
        """See `ShardFolder`."""
        found = (self._path / PARTS).glob("[0-9]" * 6)
        return {int(path.name) for path in found if path.is_dir()}

    def has(self, number: int) -> bool:
        """See `ShardFolder`."""
        return self.part(number).exists()

    def holds_files_of_others(self) -> bool:
        """See `ShardFolder`."""
        return self._path.exists() and bool({p.name for p in self._path.iterdir()} - {PARTS})

    def begin(self, plan: dict[str, Any], *, overwrite: bool) -> None:
        """See `ShardFolder`."""
        old = self._path if overwrite else self._path / PARTS
        if self.begun_plan() != plan and old.exists():
            (self._path / INDEX).unlink(missing_ok=True)  # first: killed here, nothing looks done
            shutil.rmtree(old)
        (self._path / PARTS).mkdir(parents=True, exist_ok=True)
        write_whole(self._path / PARTS / PLAN, json.dumps(plan).encode())

    def clear_parts(self) -> None:
        """See `ShardFolder`."""
        shutil.rmtree(self._path / PARTS, ignore_errors=True)

    @contextlib.contextmanager
    def writing(self, number: int, **options: Any) -> Iterator[PartWriter]:
        """See `ShardFolder`."""
        yield PartWriter(self.part(number), **options)

    def keep(self, number: int, writer: PartWriter, notes: Notes) -> None:
        """See `ShardFolder`."""
        writer.finish(notes)

    def has_documents(self, parts: int) -> bool:
        """See `ShardFolder`."""
        return any(_documents(part_record(self.part(n))["lengths"]) for n in range(parts))

    def publish(self, parts: int, **about: Any) -> dict[str, Any]:
        """See `ShardFolder`."""
        return publish(self._path, [self.part(number) for number in range(parts)], **about)

    def _read(self, name: str) -> bytes | None:
        return places.read_bytes(str(self._path / name))


class StoreFolder(ShardFolder):
    """In an object store.

    A part is written to a local folder, its shards are uploaded below `000012/`, and at last its
    record, `.parts/000012.json`, which says that it is whole and what the index needs to know.
    """

    def finished_parts(self) -> set[int]:
        """See `ShardFolder`."""
        names = places.names_below(join(self.address, PARTS))
        return {int(name[:-5]) for name in names if name != PLAN}

    def has(self, number: int) -> bool:
        """See `ShardFolder`."""
        return places.exists(join(self.address, f"{PARTS}/{number:06}.json"))

    def holds_files_of_others(self) -> bool:
        """See `ShardFolder`."""
        return any(not n.startswith(f"{PARTS}/") for n in places.names_below(self.address))

    def begin(self, plan: dict[str, Any], *, overwrite: bool) -> None:
        """See `ShardFolder`."""
        begun = self.begun_plan()
        if begun != plan and (overwrite or begun is not None):
            places.remove(join(self.address, INDEX))
            places.remove(self.address, recursive=True)
        self._write(f"{PARTS}/{PLAN}", json.dumps(plan).encode())

    def clear_parts(self) -> None:
        """See `ShardFolder`."""
        places.remove(join(self.address, PARTS), recursive=True)

    @contextlib.contextmanager
    def writing(self, number: int, **options: Any) -> Iterator[PartWriter]:
        """See `ShardFolder`."""
        with tempfile.TemporaryDirectory(prefix="tessera-part-") as folder:
            self._local = Path(folder) / f"{number:06}"
            yield PartWriter(self._local, **options)

    def keep(self, number: int, writer: PartWriter, notes: Notes) -> None:
        """See `ShardFolder`."""
        writer.finish(notes)
        entries = json.loads((self._local / INDEX).read_text())["shards"]
        for entry in entries:
            for kind in ("raw_data", "zip_data"):
                if entry[kind] is not None:
                    name = entry[kind]["basename"]
                    entry[kind]["basename"] = f"{number:06}/{name}"
                    if (self._local / name).exists():
                        address = join(self.address, entry[kind]["basename"])
                        places.write_remote(address, self._local / name)
        record = {"shards": entries, **part_record(self._local)}
        self._write(f"{PARTS}/{number:06}.json", json.dumps(record).encode())

    def has_documents(self, parts: int) -> bool:
        """See `ShardFolder`."""
        return any(_documents(record["lengths"]) for record in self._records(parts))

    def publish(self, parts: int, **about: Any) -> dict[str, Any]:
        """See `ShardFolder`."""
        records = self._records(parts)
        entries = [entry for record in records for entry in record["shards"]]
        summary = summary_of(records, shards=len(entries), **about)
        self._write(SUMMARY, json.dumps(summary, indent=2).encode())
        self._write(INDEX, index_bytes(entries))
        self.clear_parts()
        return summary

    def _records(self, parts: int) -> list[dict[str, Any]]:
        names = [f"{PARTS}/{number:06}.json" for number in range(parts)]
        return [json.loads(found or b"") for found in places.at_once(self._read, names, True)]

    def _read(self, name: str) -> bytes | None:
        return places.read_bytes(join(self.address, name))

    def _write(self, name: str, content: bytes) -> None:
        places.write_remote(join(self.address, name), content)
