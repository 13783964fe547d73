"""Records out of files of every format: (place in the file, record), in order."""

import codecs
import io
import itertools
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, BinaryIO

from tessera.data.preparation.formats import tables
from tessera.data.preparation.formats.discovery import is_dataset, kind_of
from tessera.data.preparation.formats.warc import warc_records
from tessera.data.preparation.notes import Notes
from tessera.data.preparation.places import open_file
from tessera.paths import is_remote

Record = tuple[str, Any]
"""(place in the file, what stands there)."""

_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_ROWS_AT_ONCE = 1000
_BYTES_AT_ONCE = 1 << 25
_BLOCK = 1 << 22


@dataclass(frozen=True, kw_only=True)
class Reading:
    """How the records of a source are read."""

    text: str = "text"
    """Column that holds the text; `data.text` is `text` inside `data`."""
    id: str | None = None
    """None: 'id' if there is such a column, else the place of the document in its file."""
    encoding: str = "utf-8"
    """Of everything but Parquet and Arrow, which are UTF-8 by definition."""
    quoting: tables.Quoting | None = None
    """None: strict for CSV, none for TSV."""
    columns: tuple[str, ...] = ()
    """Columns wanted beside text and id."""

    @property
    def cuts_lines(self) -> bool:
        """Whether a line ends at the byte 10, so that a file can be entered in its middle."""
        return not self.encoding.lower().replace("_", "-").startswith(("utf-16", "utf-32"))


def records(
    address: str, reading: Reading, notes: Notes, start: int = 0, stop: int | None = None
) -> Iterator[Record]:
    """The records of a file, or of a piece of it.

    Args:
        address: Of the file.
        reading: Its columns, encoding and quotes.
        notes: Gets what is worth saying.
        start: First byte (JSON lines), row group (Parquet) or row (dataset).
        stop: The first one that is no more in the piece; None for all the rest.

    Raises:
        ValueError: the file is not what its name says; says where.
    """
    if not is_remote(address) and is_dataset(address):
        return _dataset_records(address, start, stop)
    kind, compression = kind_of(address) or ("text", None)
    if kind == "parquet":
        return _parquet_records(address, reading, start, stop)
    if kind == "arrow":
        return _arrow_records(address)
    if kind == "warc":
        return warc_records(open_stream(address, compression), notes)
    can_be_entered = kind == "jsonl" and compression is None and reading.cuts_lines
    if can_be_entered and (start or is_lines_of_json(address, reading)):
        return _json_lines(_lines_between(address, start, stop), reading, at_bytes=True)
    stream = open_stream(address, compression)
    refuse_another_encoding(stream, reading)
    if kind == "jsonl":
        spread = ".json" in PurePosixPath(address.lower()).suffixes or not reading.cuts_lines
        return _json_stream(stream, reading, spread=spread)
    if kind == "text":
        return iter([("", {reading.text: _text(stream, reading)})])
    quoting = reading.quoting or ("none" if kind == "tsv" else "strict")
    return tables.table_records(
        _text_stream(stream, reading), "\t" if kind == "tsv" else ",", quoting, notes
    )


def open_stream(address: str, compression: str | None) -> BinaryIO:
    """The bytes of a file, decompressed."""
    file = open_file(address)
    if compression is None:
        return file
    import pyarrow

    stream = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, "r"), compression)
    return io.BufferedReader(_Decompressed(stream, file), _BLOCK)


class _Decompressed(io.RawIOBase):
    """Pyarrow's stream as Python's buffered reader wants it."""

    def __init__(self, stream: Any, file: BinaryIO) -> None:
        self._stream, self._file = stream, file

    def readinto(self, buffer: Any) -> int:
        content = self._stream.read(len(buffer))
        buffer[: len(content)] = content
        return len(content)

    def readable(self) -> bool:
        return True

    def close(self) -> None:
        self._file.close()
        super().close()


# ---- encodings


def refuse_another_encoding(stream: Any, reading: Reading) -> None:
    """Refuse a file that begins with the byte order mark of an encoding nobody named."""
    head = stream.peek(4)[:4]
    if reading.cuts_lines:
        for mark, encoding in _MARKS.items():
            if head.startswith(mark):
                raise ValueError(
                    f"is {encoding.upper()} by its byte order mark; name it by --encoding "
                    f"{encoding}, or convert it to UTF-8, such as with iconv"
                )


def decoded(content: bytes, reading: Reading, where: str) -> str:
    """The text of bytes, without a byte order mark."""
    try:
        text = content.decode(reading.encoding)
    except UnicodeDecodeError as error:
        raise ValueError(not_in_encoding(reading, where, content[error.start])) from error
    return text.removeprefix("\ufeff")


def not_in_encoding(reading: Reading, where: str, byte: int | None) -> str:
    """What to say of bytes that are not in the encoding they should be in."""
    found = "" if byte is None else f" (byte 0x{byte:02x})"
    return (
        f"not {reading.encoding.upper()} {where}{found}; convert the file, such as with iconv, "
        "or name its encoding, such as by --encoding latin-1"
    )


def _text(stream: BinaryIO, reading: Reading) -> str:
    with stream:
        content = stream.read()
    text = decoded(content, reading, "in its text")
    if "\0" in text:
        raise ValueError(
            "holds NUL characters: it is UTF-16 without a byte order mark (--encoding utf-16-le), "
            "or no text"
        )
    return text


def _text_stream(stream: BinaryIO, reading: Reading) -> Iterator[str]:
    """Decoded lines, with their ends, without a byte order mark."""
    encoding = "utf-8-sig" if reading.encoding == "utf-8" else reading.encoding
    lines = io.TextIOWrapper(stream, encoding=encoding, newline="")
    number = 0
    try:
        for line in lines:
            number += 1
            yield line
    except UnicodeDecodeError as error:
        byte = error.object[error.start]
        raise ValueError(not_in_encoding(reading, f"after line {number}", byte)) from error


# ---- JSON


def is_lines_of_json(address: str, reading: Reading) -> bool:
    """Whether a file has one record on each line, rather than records that go over many."""
    if not address.lower().endswith(".json"):
        return True
    with open_file(address) as file:
        refuse_another_encoding(file, reading)
        line = file.readline(1 << 20)
        while line and not line.strip():
            line = file.readline(1 << 20)
    text = line.decode(reading.encoding, errors="replace").removeprefix("\ufeff")
    return not text.lstrip().startswith("[") and (len(line) == 1 << 20 or _is_json(text))


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True


def _json_lines(
    lines: Iterator[tuple[int, bytes]], reading: Reading, *, at_bytes: bool = False
) -> Iterator[Record]:
    """The records of (place, line): places are numbers of lines from 0, or `at_bytes`."""

    def called(place: int) -> str:
        return f"the line at byte {place:,}" if at_bytes else f"line {place + 1:,}"

    for place, line in lines:
        if not line.strip():
            continue
        try:
            text = line.decode(reading.encoding)
        except UnicodeDecodeError as error:
            where = f"in {called(place)}"
            raise ValueError(not_in_encoding(reading, where, line[error.start])) from error
        try:
            yield f"@{place}", json.loads(text.removeprefix("\ufeff") if place == 0 else text)
        except (ValueError, RecursionError) as error:
            raise ValueError(f"no JSON in {called(place)} ({error}); mend or remove it") from error


def _lines_between(address: str, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin inside a range of bytes."""
    with open_file(address) as file:
        if start:
            file.seek(start - 1)
            file.readline()
        else:
            refuse_another_encoding(file, Reading())
        offset = file.tell()
        while stop is None or offset < stop:
            line = file.readline()
            if not line:
                return
            yield offset, line
            offset += len(line)


def _json_stream(stream: BinaryIO, reading: Reading, *, spread: bool) -> Iterator[Record]:
    """Records one a line; where they may be spread over lines and are, or in an array, those."""
    text = ""
    if reading.cuts_lines:
        first = stream.readline()
        text = first.decode(reading.encoding, errors="replace").removeprefix("\ufeff")
        if not spread or (_is_json(text) and not text.lstrip().startswith("[")):
            return _json_lines(enumerate(itertools.chain([first], stream)), reading)
    return _json_values(text, io.TextIOWrapper(stream, encoding=reading.encoding))


def _json_values(text: str, rest: Any) -> Iterator[Record]:
    """The values of an array, or one after the other, without holding more than a few."""
    decoder = json.JSONDecoder()
    number = position = 0
    block = _BLOCK
    opened = parted = False
    while True:
        while position < len(text) and text[position] in " \t\r\n,\ufeff":
            parted |= text[position] == ","
            position += 1
        if not opened and text.startswith("[", position):
            opened, position = True, position + 1
            continue
        if opened and text.startswith("]", position):
            _refuse_more(text[position + 1 :], rest, number)
            return
        more = None
        if position < len(text):
            if opened and number and not parted:
                raise ValueError(f"no comma before record {number}; mend or remove it")
            try:
                value, position = decoder.raw_decode(text, position)
            except RecursionError as error:
                raise ValueError(f"record {number} is nested too deep ({error})") from error
            except ValueError as error:
                more = error
            else:
                yield f"#{number}", value
                number += 1
                block, parted = _BLOCK, False
                continue
        read = rest.read(block)
        if not read:
            if more is not None or opened:
                problem = more or "the array does not end"
                raise ValueError(f"no JSON in record {number} ({problem}); mend or remove it")
            return
        text, position = text[position:] + read, 0
        block *= 2  # a long record is tried again a few times only


def _refuse_more(text: str, rest: Any, number: int) -> None:
    """Refuse what stands after the end of an array: it would be left out without a word."""
    while not text.strip():
        if not (text := rest.read(_BLOCK)):
            return
    raise ValueError(
        f"{text.strip()[:20]!r} stands after the array of {number} records; mend or remove it"
    )


# ---- columns of Arrow


@contextmanager
def whole_parquet(address: str) -> Iterator[None]:
    """Say of a Parquet file that its library cannot read what to do about it.

    Raises:
        ValueError: naming the file.
    """
    import pyarrow

    try:
        yield
    except (pyarrow.ArrowException, UnicodeDecodeError, OSError) as error:
        if isinstance(error, OSError) and error.errno:
            raise  # about the disk, not about what is in the file
        raise ValueError(
            f"{address}: is damaged or cut short, and cannot be read as Parquet; copy or write it "
            "again, or leave it out"
        ) from error


def _parquet_records(
    address: str, reading: Reading, start: int, stop: int | None
) -> Iterator[Record]:
    with whole_parquet(address):
        yield from _rows_of_parquet(address, reading, start, stop)


def _rows_of_parquet(
    address: str, reading: Reading, start: int, stop: int | None
) -> Iterator[Record]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(
        open_file(address, 1 << 16) if is_remote(address) else address
    )
    groups = list(range(start, file.metadata.num_row_groups if stop is None else stop))
    row = sum(file.metadata.row_group(group).num_rows for group in range(start))
    wanted = _columns_wanted(file.schema_arrow.names, reading)
    for group in groups:
        about, found = file.metadata.row_group(group), 0
        row_bytes = max(1, about.total_byte_size // max(1, about.num_rows))
        at_once = max(1, min(_ROWS_AT_ONCE, _BYTES_AT_ONCE // row_bytes))
        for batch in file.iter_batches(at_once, row_groups=[group], columns=wanted):
            for values in batch.to_pylist():
                yield f"#{row}", values
                row += 1
                found += 1
        if found != about.num_rows:
            raise ValueError(
                f"row group {group} has {found} rows, the file's footer says {about.num_rows}"
            )


def _arrow_records(address: str) -> Iterator[Record]:
    import pyarrow

    row = 0
    with open_file(address) as file:
        head = file.read(6)
        file.seek(0)
        if head == b"ARROW1":
            whole = pyarrow.ipc.open_file(file)
            batches = (whole.get_batch(i) for i in range(whole.num_record_batches))
        else:
            batches = iter(pyarrow.ipc.open_stream(file))
        for batch in batches:
            batch.validate(full=True)  # offsets that lead out of a buffer would end the process
            for values in batch.to_pylist():
                yield f"#{row}", values
                row += 1


def _columns_wanted(names: list[str], reading: Reading) -> list[str] | None:
    """The columns to read, so that no other costs time; all of them where the text's is absent."""
    text = reading.text if reading.text in names else reading.text.partition(".")[0]
    if text not in names:
        return None
    others = (reading.id or "id", *reading.columns)
    outer = {name if name in names else name.partition(".")[0] for name in others}
    return sorted({text, *outer} & set(names))


def _dataset_records(path: str, start: int, stop: int | None) -> Iterator[Record]:
    import datasets

    rows = datasets.load_from_disk(path)
    for row in range(start, len(rows) if stop is None else stop):
        yield f"#{row}", rows[row]
