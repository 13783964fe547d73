"""The rows of a task's data: files of this machine, or data sets in the hub's cache.

Imports no torch.
"""

import itertools
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from tessera import fetch
from tessera.data.preparation.formats.discovery import kind_of
from tessera.data.preparation.formats.records import Reading, records
from tessera.data.preparation.notes import Notes
from tessera.object_store import sha256_of

Row = Mapping[str, Any]

_HUB = "hf://datasets/"
_HUB_FORM = re.compile(r"hf://datasets/([^/]+/[^/]+)/([^/]+)/([^/]+)")


def read_split(where: str, columns: Sequence[str], limit: int | None = None) -> list[Row]:
    """The rows of a split.

    Args:
        where: a file, or `hf://datasets/ORG/NAME/SUBSET/SPLIT`.
        columns: those that every row must have.
        limit: at most this many rows, the first ones.

    Raises:
        ValueError: there is none, a row lacks a column, or there is no row; names file and row.
    """
    rows: list[Row] = []
    for number, row in enumerate(itertools.islice(_rows(where), limit)):
        _check_row(where, number, row, columns)
        rows.append(row)
    if not rows:
        raise ValueError(f"{where}: holds no rows")
    return rows


def look_at(where: str, columns: Sequence[str]) -> str:
    """The fingerprint of a split that is there and whose first row has the columns.

    Raises:
        ValueError: it is not there, or lacks a column.
    """
    if where.startswith(_HUB):
        return _snapshot(where)[0].name
    read_split(where, columns, limit=1)
    return sha256_of(_file(where))


def _check_row(where: str, number: int, row: Row, columns: Sequence[str]) -> None:
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: row {number} is no object with columns")
    for column in columns:
        if row.get(column) is None:
            if column in row:
                raise ValueError(f"{where}: row {number} has nothing in column '{column}'")
            raise ValueError(
                f"{where}: has no column '{column}'; row {number} has {', '.join(map(str, row))}"
            )


def _rows(where: str) -> Iterator[Row]:
    if where.startswith(_HUB):
        yield from _hub_rows(where)
        return
    file = _file(where)
    kind, _ = kind_of(file.name) or ("", None)
    try:
        if kind == "parquet":
            import pyarrow.parquet

            yield from pyarrow.parquet.read_table(file).to_pylist()
        else:
            yield from (row for _, row in records(str(file), Reading(), Notes()))
    except (ValueError, OSError) as error:
        raise ValueError(f"{where}: {error}") from error


def _file(where: str) -> Path:
    file = fetch.local(where)
    if not file.is_file():
        there = "is a folder; name a file" if file.is_dir() else "there is no such file"
        raise ValueError(f"{where}: {there}")
    kind, _ = kind_of(file.name) or ("", None)
    if kind not in ("jsonl", "parquet", "csv", "tsv"):
        raise ValueError(f"{where}: is read as .jsonl, .parquet, .csv or .tsv, by its name")
    return file


# ---- the hub


def _snapshot(where: str) -> tuple[Path, str, str]:
    """The folder of a data set in the hub's cache, the subset and the split."""
    match = _HUB_FORM.fullmatch(where)
    if match is None:
        raise ValueError(f"{where}: is written hf://datasets/ORG/NAME/SUBSET/SPLIT")
    name, subset, split = match.groups()
    return hub_folder(name, "dataset"), subset, split


def hub_folder(name: str, kind: str) -> Path:
    """The folder of a data set or model in the hub's cache of this machine; nothing is fetched.

    Raises:
        ValueError: it is not there; says how to bring it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    option = "" if kind == "model" else f" --repo-type {kind}"
    try:
        return Path(snapshot_download(name, repo_type=kind, local_files_only=True))
    except HFValidationError as error:
        raise ValueError(f"'{name}' is no name of the hub: {error}") from error
    except (LocalEntryNotFoundError, OSError):
        raise ValueError(
            f"the {kind} {name} is not on this machine; where the hub answers, bring it with: "
            f"hf download {name}{option}"
        ) from None


def _hub_rows(where: str) -> Iterator[Row]:
    import datasets

    folder, subset, split = _snapshot(where)
    datasets.disable_progress_bars()
    try:
        yield from datasets.load_dataset(str(folder), subset, split=split)
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: cannot be read: {said}") from error
