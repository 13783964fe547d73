"""Raw documents: (id, text) out of JSONL, Parquet, CSV, text files or Hugging Face datasets.

A corpus is cut into parts, pieces of files that can be read by themselves, so that processes can
share the work and a restart can leave out what is done. Parts do not depend on how many processes
there are.
"""

import csv
import json
import logging
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

log = logging.getLogger(__name__)

Document = tuple[str, str]
"""(id, text)."""

JSONL = (".jsonl", ".jsonl.gz", ".jsonl.zst")
TABLES = (".parquet", ".csv", ".tsv")
TEXTS = (".txt", ".md", ".rst")
_COMPRESSIONS = {".gz": "gzip", ".zst": "zstd"}
_ROWS_AT_ONCE = 1000
TEXT_COLUMN_HELP = "column that holds the text, of all inputs or NAME=COLUMN; repeatable (text)"


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


@dataclass(frozen=True, kw_only=True)
class Columns:
    """Which columns hold what."""

    text: str = "text"
    id: str | None = None
    """None: 'id' if there is such a column, else the place of the document in its file."""


def find_splits(path: Path) -> dict[str, list[Path]]:
    """The files of a source: by split if names or folders say so, else all under ''.

    Raises:
        ValueError: there is nothing readable.
    """
    if not path.exists():
        raise ValueError(f"{path} does not exist")
    splits: dict[str, list[Path]] = {}
    others: list[Path] = []
    if path.is_dir() and not is_dataset(path):
        for entry in sorted(path.iterdir()):
            name = entry.name.split(".")[0].split("-")[0]
            if name in ("train", "validation"):
                splits.setdefault(name, []).extend(_files(entry))
            else:
                others.extend(_files(entry))
    splits = {name: files for name, files in splits.items() if files} or {"": _files(path)}
    if others and "" not in splits:
        log.warning("%s: left out %d files beside the splits: %s...", path, len(others), others[0])
    if not any(splits.values()):
        raise ValueError(
            f"{path} holds no documents; readable are {', '.join(JSONL + TABLES + TEXTS)} files, "
            "and folders that `datasets` saved"
        )
    return splits


def is_dataset(path: Path) -> bool:
    """Whether `datasets` saved this folder with `save_to_disk`."""
    return (path / "dataset_info.json").is_file() and (path / "state.json").is_file()


def _files(path: Path) -> list[Path]:
    """Readable files under a path; text files only where nothing else is."""
    if path.is_file() or is_dataset(path):
        return [path] if is_dataset(path) or path.name.endswith(JSONL + TABLES + TEXTS) else []
    inside = [Path(folder) / name for folder, _, names in os.walk(path) for name in names]
    datasets = sorted({file.parent for file in inside if is_dataset(file.parent)})
    structured = sorted(file for file in inside if file.name.endswith(JSONL + TABLES))
    return datasets or structured or sorted(f for f in inside if f.name.endswith(TEXTS))


def cut_into_parts(files: list[Path], root: Path, part_bytes: int) -> list[Part]:
    """Parts of about `part_bytes` each, in the order of the files.

    Raises:
        ValueError: a file is not what its name says.
    """
    parts: list[Part] = []
    small: list[Path] = []
    small_bytes = 0
    for file in files:
        if file.name.endswith(TEXTS):
            small.append(file)
            small_bytes += file.stat().st_size
            if small_bytes >= part_bytes:
                parts.append(_part(root, small, small_bytes))
                small, small_bytes = [], 0
        elif file.name.endswith(".jsonl"):
            size = file.stat().st_size
            for start in range(0, size, part_bytes):
                stop = min(start + part_bytes, size)
                parts.append(_part(root, [file], stop - start, start, stop))
        elif file.name.endswith(".parquet"):
            parts.extend(_parquet_parts(file, root, part_bytes))
        elif is_dataset(file):
            parts.extend(_dataset_parts(file, root, part_bytes))
        else:  # a compressed or quoted file can only be read from its beginning
            parts.append(_part(root, [file], file.stat().st_size))
    return [*parts, _part(root, small, small_bytes)] if small else parts


def _part(
    root: Path, files: list[Path], size: int, start: int = 0, stop: int | None = None
) -> Part:
    names = tuple(str(file.relative_to(root)) for file in files)
    return Part(root=str(root), files=names, start=start, stop=stop, bytes=size)


def _parquet_parts(file: Path, root: Path, part_bytes: int) -> Iterator[Part]:
    import pyarrow.parquet

    try:
        metadata = pyarrow.parquet.ParquetFile(file).metadata
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error
    start = size = 0
    for group in range(metadata.num_row_groups):
        size += metadata.row_group(group).total_byte_size
        if size >= part_bytes or group == metadata.num_row_groups - 1:
            yield _part(root, [file], size, start, group + 1)
            start, size = group + 1, 0


def _dataset_parts(folder: Path, root: Path, part_bytes: int) -> Iterator[Part]:
    import datasets

    rows = len(datasets.load_from_disk(str(folder)))
    size = sum(file.stat().st_size for file in folder.glob("*.arrow"))
    rows_per_part = max(1, rows * part_bytes // max(size, 1))
    for start in range(0, rows, rows_per_part):
        stop = min(start + rows_per_part, rows)
        yield _part(root, [folder], size * (stop - start) // rows, start, stop)


def read_part(part: Part, columns: Columns) -> Iterator[Document]:
    """The documents of a part, in order.

    Raises:
        ValueError: a file is not what its name says, or lacks the column; names it and the place.
    """
    for name in part.files:
        path = Path(part.root) / name
        try:
            for place, row in _rows(path, part, columns):
                yield _document(row, columns, f"{name}{place}")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path}: not UTF-8 ({error}); convert it, such as with iconv, or replace it"
            ) from error
        except OSError as error:
            raise ValueError(
                f"{path}: cannot be read, and may be cut short ({error}); replace it"
            ) from error
        except ValueError as error:  # of many libraries, few of which name the file
            raise ValueError(f"{path}: {error}") from error


def _rows(path: Path, part: Part, columns: Columns) -> Iterator[tuple[str, Any]]:
    """(place in the file, record) of what a part has of a file."""
    if is_dataset(path):
        return _dataset_rows(path, part)
    if path.name.endswith(TEXTS):
        text = path.read_text(encoding="utf-8", errors="replace")
        return iter([("", {columns.text: text})])
    if path.name.endswith(JSONL):
        return _jsonl_rows(path, part)
    if path.name.endswith(".parquet"):
        return _parquet_rows(path, part, columns)
    return _csv_rows(path)


def _document(row: Any, columns: Columns, place: str) -> Document:
    if not isinstance(row, dict) or columns.text not in row:
        found = ", ".join(map(str, row)) if isinstance(row, dict) else type(row).__name__
        raise ValueError(
            f"no column '{columns.text}' at {place}, only {found}; name it with --text-column"
        )
    text = row[columns.text]
    if text is not None and not isinstance(text, str):
        raise ValueError(
            f"column '{columns.text}' at {place} is {type(text).__name__}, not text; name the "
            "right one with --text-column"
        )
    if columns.id is not None and columns.id not in row:
        raise ValueError(f"no column '{columns.id}' at {place}; correct --id-column")
    document_id = row.get(columns.id or "id")
    return place if document_id is None else str(document_id), _encodable(text or "")


def _encodable(text: str) -> str:
    """The text with '?' for halves of surrogate pairs, which JSON may hold and UTF-8 may not."""
    try:
        text.encode()
    except UnicodeEncodeError:
        return text.encode(errors="replace").decode()
    return text


def _jsonl_rows(path: Path, part: Part) -> Iterator[tuple[str, Any]]:
    if path.suffix in _COMPRESSIONS:
        import pyarrow

        stream = pyarrow.input_stream(str(path), compression=_COMPRESSIONS[path.suffix])
        lines: Any = enumerate(_lines(stream))
    else:
        lines = _lines_between(path, part.start, part.stop)
    for place, line in lines:
        if line.strip():
            try:
                yield f"@{place}", json.loads(line)
            except UnicodeDecodeError as error:
                raise ValueError(
                    f"not UTF-8 in the line at {place} ({error}); mend or remove it"
                ) from error
            except ValueError as error:
                raise ValueError(
                    f"no JSON in the line at {place} ({error}); mend or remove it"
                ) from error


def _lines_between(path: Path, start: int, stop: int | None) -> Iterator[tuple[int, bytes]]:
    """(offset, line) of the lines that begin inside a range of bytes."""
    with open(path, "rb") as file:
        if start:
            file.seek(start - 1)
            file.readline()
        offset = file.tell()
        while stop is None or offset < stop:
            line = file.readline()
            if not line:
                return
            yield offset, line
            offset += len(line)


def _lines(stream: Any) -> Iterator[bytes]:
    """Lines of a stream that only reads blocks."""
    rest = b""
    while block := stream.read(1 << 22):
        *lines, rest = (rest + block).split(b"\n")
        yield from lines
    yield rest


def _parquet_rows(path: Path, part: Part, columns: Columns) -> Iterator[tuple[str, Any]]:
    import pyarrow.parquet

    file = pyarrow.parquet.ParquetFile(path)
    groups = list(range(part.start, part.stop or file.metadata.num_row_groups))
    row = sum(file.metadata.row_group(group).num_rows for group in range(part.start))
    names = set(file.schema_arrow.names)
    wanted = sorted({columns.text, columns.id or "id"} & names) if columns.text in names else None
    for batch in file.iter_batches(_ROWS_AT_ONCE, row_groups=groups, columns=wanted):
        for values in batch.to_pylist():
            yield f"#{row}", values
            row += 1


def _dataset_rows(path: Path, part: Part) -> Iterator[tuple[str, Any]]:
    import datasets

    rows = datasets.load_from_disk(str(path))
    for row in range(part.start, part.stop or len(rows)):
        yield f"#{row}", rows[row]


def _csv_rows(path: Path) -> Iterator[tuple[str, Any]]:
    csv.field_size_limit(2**31 - 1)
    delimiter = "\t" if path.suffix == ".tsv" else ","
    with open(path, encoding="utf-8-sig", newline="") as file:
        for number, row in enumerate(csv.DictReader(file, delimiter=delimiter)):
            yield f"#{number}", row


# ---- what a command line names


@dataclass(frozen=True, kw_only=True)
class Input:
    """One source of text."""

    name: str
    path: Path
    columns: Columns

    @property
    def root(self) -> Path:
        """The folder that its documents' ids are relative to."""
        return self.path if self.path.is_dir() else self.path.parent

    def check_first_records(self) -> None:
        """Read one record of every file.

        Raises:
            ValueError: a file cannot be read, or lacks a column; names it.
        """
        for files in find_splits(self.path).values():
            for file in files:
                if not file.name.endswith(TEXTS):
                    name = str(file.relative_to(self.root))
                    part = Part(root=str(self.root), files=(name,), bytes=0)
                    next(read_part(part, self.columns), None)


def parse_inputs(
    texts: Sequence[str], text_columns: Sequence[str], id_column: str | None = None
) -> list[Input]:
    """The inputs `[NAME=]PATH`, with the text columns `COLUMN` (of all) or `NAME=COLUMN`.

    Raises:
        ValueError: a column is for an input that there is not.
    """
    paths = []
    for text in texts:
        name, separator, path = text.rpartition("=")
        if not separator or Path(text).exists():
            name, path = Path(text).name.split(".")[0], text
        paths.append((name, Path(path)))
    column, by_name = "text", {}
    for text in text_columns:
        name, separator, own = text.partition("=")
        if not separator:
            column = text
        elif name in dict(paths):
            by_name[name] = own
        else:
            raise ValueError(
                f"--text-column {text}: no input is named '{name}'; there are "
                + ", ".join(name for name, _ in paths)
            )
    return [
        Input(name=name, path=path, columns=Columns(text=by_name.get(name, column), id=id_column))
        for name, path in paths
    ]
