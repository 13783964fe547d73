"""Raw documents: (id, text) out of files of every kind, wherever they are.

A corpus is cut into parts, pieces of files that can be read by themselves, so that processes can
share the work and a restart can leave out what is done. Parts do not depend on how many processes
there are.
"""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.data.preparation import places
from tessera.data.preparation.formats.discovery import is_dataset, kind_of
from tessera.data.preparation.formats.records import (
    Reading,
    is_lines_of_json,
    records,
    whole_parquet,
)
from tessera.data.preparation.notes import DAMAGED, HALF_PAIRS, NULS, Notes
from tessera.data.preparation.places import File, Interrupted
from tessera.paths import is_remote, join

log = logging.getLogger(__name__)

Document = tuple[str, str]
"""(id, text)."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """Something of about the size asked for, to be read in one go."""

    root: str
    """The folder that document ids are relative to."""
    files: tuple[str, ...]
    """Relative to `root`: one, unless they are small text files."""
    start: int = 0
    """First byte (JSONL), row group (Parquet) or row (dataset)."""
    stop: int | None = None
    """The first one that is no more in the part; None for all the rest."""
    bytes: int
    """Roughly how much there is to read, for progress bars."""

    def __str__(self) -> str:
        more = f" and {len(self.files) - 1} more files" if len(self.files) > 1 else ""
        cut = f" from {self.start} to {self.stop}" if self.stop is not None else ""
        return f"{join(self.root, self.files[0])}{more}{cut}"


def cut_into_parts(
    files: Sequence[File], root: str, part_bytes: int, reading: Reading | None = None
) -> list[Part]:
    """Parts of about `part_bytes` each, in the order of the files.

    Raises:
        ValueError: a file is not what its name says.
    """
    remote = any(is_remote(file.address) for file in files)
    of_each = places.at_once(
        lambda file: _parts_of(file, root, part_bytes, reading or Reading()), files, remote
    )
    parts: list[Part] = []
    small: list[File] = []
    small_bytes = 0
    for file, own in zip(files, of_each, strict=True):
        parts.extend(own)
        if not own and (kind_of(file.name) or ("",))[0] == "text":
            small.append(file)
            small_bytes += file.bytes
            if small_bytes >= part_bytes:
                parts.append(_part(root, small, small_bytes))
                small, small_bytes = [], 0
    return [*parts, _part(root, small, small_bytes)] if small else parts


def _parts_of(file: File, root: str, part_bytes: int, reading: Reading) -> list[Part]:
    """The parts of one file; none of a text, which shares a part with others."""
    kind, compression = kind_of(file.name) or ("dataset", None)
    if kind == "text":
        return []
    if not is_remote(file.address) and is_dataset(file.address):
        return list(_dataset_parts(file, root, part_bytes))
    if kind == "parquet":
        return list(_parquet_parts(file, root, part_bytes))
    if kind == "jsonl" and compression is None and _can_be_cut(file, reading):
        starts = range(0, file.bytes, part_bytes)
        ends = [min(start + part_bytes, file.bytes) for start in starts]
        return [
            _part(root, [file], stop - start, start, stop)
            for start, stop in zip(starts, ends, strict=True)
        ]
    return [_part(root, [file], file.bytes)]  # it can only be read from its beginning


def _can_be_cut(file: File, reading: Reading) -> bool:
    with _named(file.address):
        return reading.cuts_lines and is_lines_of_json(file.address, reading)


def _part(
    root: str, files: Sequence[File], size: int, start: int = 0, stop: int | None = None
) -> Part:
    names = tuple(file.name for file in files)
    return Part(root=root, files=names, start=start, stop=stop, bytes=size)


def _parquet_parts(file: File, root: str, part_bytes: int) -> Iterator[Part]:
    import pyarrow.parquet

    remote = is_remote(file.address)
    with _named(file.address), whole_parquet(file.address):
        source = places.open_file(file.address, 1 << 16) if remote else file.address
        metadata = pyarrow.parquet.ParquetFile(source).metadata
    start = size = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= part_bytes or group == metadata.num_row_groups - 1:
            yield _part(root, [file], size, start, group + 1)
            start, size = group + 1, 0


def _dataset_parts(file: File, root: str, part_bytes: int) -> Iterator[Part]:
    import datasets

    with _named(file.address):
        rows = len(datasets.load_from_disk(file.address))
    rows_per_part = max(1, rows * part_bytes // max(file.bytes, 1))
    for start in range(0, rows, rows_per_part):
        stop = min(start + rows_per_part, rows)
        yield _part(root, [file], file.bytes * (stop - start) // rows, start, stop)


def read_part(part: Part, reading: Reading, notes: Notes | None = None) -> Iterator[Document]:
    """The documents of a part, in order; see `read_rows`."""
    for document, _ in read_rows(part, reading, notes):
        yield document


def read_rows(
    part: Part, reading: Reading, notes: Notes | None = None
) -> Iterator[tuple[Document, dict[str, Any]]]:
    """The documents of a part, in order, each with the columns that are wanted beside it.

    Args:
        part: What to read.
        reading: Columns, encoding and quotes.
        notes: Gets what is worth saying of the documents.

    Raises:
        ValueError: a file is not what its name says, or lacks the column; names it and the place.
        Interrupted: a store did not answer; reading the part again may work.
    """
    notes = Notes() if notes is None else notes
    for name in part.files:
        address, seen = join(part.root, name), Notes()
        with _named(address):
            for place, record in records(address, reading, seen, part.start, part.stop):
                document = _document(record, reading, f"{name}{place}", notes)
                yield document, _others(record, reading.columns, f"{name}{place}")
        for what, (count, place) in seen.found.items():
            notes.add(what, f"{name}, {place}", count)


class _named:
    """Names the file in whatever its reader raises; a store's errors name it already."""

    def __init__(self, address: str) -> None:
        self._address = address

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: Any, traceback: Any) -> None:
        if isinstance(error, Interrupted):
            return
        if isinstance(error, MemoryError):
            raise ValueError(
                f"{self._address}: one of its records is, or claims to be, larger than the memory; "
                "replace it if it is damaged, or cut the record"
            ) from error
        if isinstance(error, OSError):
            raise ValueError(
                f"{self._address}: cannot be read, and may be cut short ({error}); replace it"
            ) from error
        if isinstance(error, ValueError) and not str(error).startswith(self._address):
            raise ValueError(f"{self._address}: {error}") from error


def _document(record: Any, reading: Reading, place: str, notes: Notes) -> Document:
    text = _column(record, reading.text)
    if text is _ABSENT:
        raise ValueError(_no_column(record, reading.text, place))
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"column '{reading.text}' at {place} is {type(text).__name__}, not text; name the "
            "right one with --text-column" + _inside(text, reading.text)
        )
    document_id = _column(record, reading.id or "id")
    if document_id is _ABSENT:
        if reading.id is not None:
            raise ValueError(f"no column '{reading.id}' at {place}; correct --id-column")
        document_id = None
    return place if document_id is None else str(document_id), _clean(text or "", place, notes)


def _others(record: Any, names: Sequence[str], place: str) -> dict[str, Any]:
    found = {name: _column(record, name) for name in names}
    if missing := [name for name, value in found.items() if value is _ABSENT]:
        raise ValueError(
            f"no column '{missing[0]}' at {place}; correct what asks for it (columns, join.by or "
            "join.order)"
        )
    return found


_ABSENT = object()


def _column(record: Any, name: str) -> Any:
    """The value of a column, whose name may be dotted; `_ABSENT` if there is none."""
    if not isinstance(record, Mapping):
        return _ABSENT
    if name in record:
        return record[name]
    outer, dot, inner = name.partition(".")
    return _column(record.get(outer), inner) if dot else _ABSENT


def _no_column(record: Any, name: str, place: str) -> str:
    found = ", ".join(map(str, record)) if isinstance(record, dict) else type(record).__name__
    message = f"no column '{name}' at {place}, only {found}; name it with --text-column"
    return message + _inside(record, "")


def _inside(value: Any, name: str) -> str:
    """Which texts stand inside a record, as one would name them."""
    found: list[str] = []

    def look(value: Any, name: str) -> None:
        if isinstance(value, Mapping) and len(found) < 5:
            for key, inner in value.items():
                look(inner, f"{name}.{key}" if name else str(key))
        elif isinstance(value, str) and "." in name:
            found.append(name)

    look(value, name)
    return f", such as {' or '.join(found)}" if found else ""


def _clean(text: str, place: str, notes: Notes) -> str:
    """The text without a byte order mark; what else is odd about it is counted."""
    text = text.removeprefix("\ufeff")
    if "\ufffd" in text:
        notes.add(DAMAGED, place)
    if "\0" in text:
        notes.add(NULS, place)
    try:
        text.encode()
    except UnicodeEncodeError:  # halves of pairs, which JSON may hold and UTF-8 may not
        notes.add(HALF_PAIRS, place)
        return text.encode(errors="replace").decode()
    return text
