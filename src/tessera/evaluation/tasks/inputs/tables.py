"""The rows of a task's data: files of this machine, or data sets in the hub's cache.

Imports no torch.
"""

import itertools
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from tessera import fetch
from tessera.data.preparation.formats.discovery import kind_of
from tessera.data.preparation.formats.records import Reading, records, whole_parquet
from tessera.data.preparation.notes import Notes
from tessera.object_store import sha256_of

Row = Mapping[str, Any]
Column = str | tuple[str, ...]
"""A column that must be there; of several names any will do, and the first is its name here."""

COLUMNS: dict[str, list[Column]] = {
    "queries": [("id", "_id"), "text"],
    "documents": [("id", "_id"), "text"],
    "relevance": [("query", "query-id", "query_id"), ("document", "corpus-id", "document_id")],
    "train": [("query", "anchor"), "positive"],
    "train_queries": [("id", "_id", "query_id"), "text"],
    "train_documents": [("id", "_id", "document_id"), "text"],
}
"""What the tables of a search must have, under the names that are common elsewhere too."""

_HUB = "hf://datasets/"
DRAWN = 12
"""Seed of the rows drawn from a table: that of the published example."""
_HUB_FORM = re.compile(r"hf://datasets/([^/]+/[^/@]+)(?:@([^/]+))?/([^/]+)/([^/]+)")


def read_split(where: str, columns: Sequence[Column], limit: int | None = None) -> list[Row]:
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
        rows.append(_checked(where, number, row, columns))
    if not rows:
        raise ValueError(f"{where}: holds no rows")
    return rows


def read_columns(
    where: str, columns: Sequence[str], kept: Sequence[str], limit: int | None = None
) -> dict[str, list[Any]]:
    """The values of some columns of a split, all of whose columns hold something in each row.

    Args:
        where: a file, or `hf://datasets/ORG/NAME/SUBSET/SPLIT`.
        columns: those that every row must have.
        kept: those of them that are wanted.
        limit: at most this many rows, the first ones.

    Raises:
        ValueError: as `read_split`.
    """
    if not where.startswith(_HUB):
        rows = read_split(where, columns, limit)
        return {name: [row[name] for row in rows] for name in kept}
    import pyarrow.compute as pc

    table = _hub_table(where)
    absent = next((name for name in columns if name not in table.column_names), None)
    if absent is not None:
        raise _lacks(where, absent, table.column_names)
    if len(table) == 0:
        raise ValueError(f"{where}: holds no rows")
    wanted = table.select_columns(list(dict.fromkeys(columns))).with_format("arrow")
    arrow = wanted[: len(table) if limit is None else limit]
    for name in columns:
        if arrow[name].null_count:
            number = pc.index(pc.is_null(arrow[name]), True).as_py()
            raise ValueError(f"{where}: row {number} has nothing in column '{name}'")
    return {name: arrow[name].to_pylist() for name in kept}


def open_table(where: str, columns: Sequence[Column], limit: int | None = None) -> Any:
    """A split as a `datasets.Dataset`, whose rows stay on disk if it is one of the hub's.

    Args:
        where: a file, or `hf://datasets/ORG/NAME/SUBSET/SPLIT`.
        columns: those that every row must have; what else there is stays.
        limit: at most this many rows, drawn at random, always the same.

    Raises:
        ValueError: as `read_split`.
    """
    import datasets

    if where.startswith(_HUB):
        table = _hub_table(where)
        for column in columns:
            names = (column,) if isinstance(column, str) else column
            found = next((name for name in names if name in table.column_names), None)
            if found is None:
                raise _lacks(where, names[0], table.column_names)
            if table.data.column(found).null_count:
                raise ValueError(f"{where}: rows have nothing in column '{found}'")
            if found != names[0]:
                table = table.rename_column(found, names[0])
    else:
        rows = read_split(where, columns)
        kept = dict.fromkeys(name for row in rows for name in row)
        table = datasets.Dataset.from_list([{name: row.get(name) for name in kept} for row in rows])
    if limit is not None and limit < len(table):
        table = table.shuffle(seed=DRAWN, keep_in_memory=True).select(range(limit))
    return table


def look_at(where: str, columns: Sequence[Column]) -> str:
    """The fingerprint of a split that is there and whose first row has the columns.

    Raises:
        ValueError: it is not there, or lacks a column.
    """
    if where.startswith(_HUB):
        return _snapshot(where)[0].name
    read_split(where, columns, limit=1)
    return sha256_of(_file(where))


def _checked(where: str, number: int, row: Row, columns: Sequence[Column]) -> Row:
    """The row, with the columns under the names they have here."""
    if not isinstance(row, Mapping):
        raise ValueError(f"{where}: row {number} is no object with columns")
    for column in columns:
        names = (column,) if isinstance(column, str) else column
        found = next((name for name in names if row.get(name) is not None), None)
        if found is None:
            empty = next((name for name in names if name in row), None)
            if empty is not None:
                raise ValueError(f"{where}: row {number} has nothing in column '{empty}'")
            raise _lacks(f"{where}", names[0], row, f"row {number}")
        if found != names[0]:
            row = {**row, names[0]: row[found]}
    return row


def _lacks(where: str, column: str, known: Iterable[str], who: str = "it") -> ValueError:
    return ValueError(f"{where}: has no column '{column}'; {who} has {', '.join(map(str, known))}")


def _rows(where: str) -> Iterator[Row]:
    if where.startswith(_HUB):
        yield from _hub_table(where)
        return
    file = _file(where)
    kind, _ = kind_of(file.name) or ("", None)
    try:
        if kind == "parquet":
            import pyarrow.parquet

            with whole_parquet(where):
                rows = pyarrow.parquet.read_table(file).to_pylist()
            yield from rows
        else:
            yield from (row for _, row in records(str(file), Reading(), Notes()))
    except (ValueError, OSError) as error:
        said = str(error)
        raise ValueError(said if said.startswith(where) else f"{where}: {said}") from error


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
    name, revision, subset, split = match.groups()
    return hub_folder(name, "dataset", unquote(revision) if revision else None), subset, split


def hub_folder(name: str, kind: str, revision: str | None = None) -> Path:
    """The folder of a data set or model in the hub's cache of this machine; nothing is fetched.

    Raises:
        ValueError: it is not there; says how to bring it.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    option = "" if kind == "model" else f" --repo-type {kind}"
    option += "" if revision is None else f" --revision {revision}"
    try:
        return Path(
            snapshot_download(name, repo_type=kind, revision=revision, local_files_only=True)
        )
    except HFValidationError as error:
        raise ValueError(f"'{name}' is no name of the hub: {error}") from error
    except (LocalEntryNotFoundError, OSError):
        raise ValueError(
            f"the {kind} {name} is not on this machine; where the hub answers, bring it with: "
            f"hf download {name}{option}"
        ) from None


def _hub_table(where: str) -> Any:
    """A split of a subset; of several subsets, `A+B`, one after another."""
    import datasets

    folder, subsets, split = _snapshot(where)
    datasets.disable_progress_bars()
    try:
        parts = [_subset(folder, subset, split) for subset in subsets.split("+")]
        return datasets.concatenate_datasets(parts) if len(parts) > 1 else parts[0]
    except (ValueError, OSError, datasets.exceptions.DatasetGenerationError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{where}: cannot be read: {said}") from error


def _subset(folder: Path, subset: str, split: str) -> Any:
    import datasets

    try:
        return datasets.load_dataset(str(folder), subset, split=split)
    except ValueError:
        if not (folder / subset).is_dir():
            raise
        # A folder a subset, and no README.md that says so: what the hub converts is laid so.
        return datasets.load_dataset(str(folder), data_dir=subset, split=split)
