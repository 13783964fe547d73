"""CSV and TSV, so that a stray quote cannot glue a hundred rows into one document."""

import csv
import re
from collections.abc import Iterator
from typing import Any, Literal

from tessera.data.preparation.notes import LONG_RECORDS, QUOTED_CELLS, Notes

Quoting = Literal["strict", "none", "trust"]
"""`strict`: quotes as in RFC 4180, and what looks like a stray one is refused; `none`: a quote is a
character like any other, and a record is a line; `trust`: as strict, without the suspicion."""

_SUSPICIOUS_LINES = 3
_LONG_RECORD = 20
_LEARNED_ROWS = 1000
_REGULAR = 5


def table_records(
    lines: Iterator[str], delimiter: str, quoting: Quoting, notes: Notes
) -> Iterator[tuple[str, dict[str, Any]]]:
    """The rows of a table, each as a dict by the names in the first line.

    Raises:
        ValueError: a row has more or fewer cells than the first line, or its quotes are not closed
            or look as if they enclosed rows; names the line.
    """
    csv.field_size_limit(2**31 - 1)
    if quoting == "none":
        reader = csv.reader(lines, delimiter=delimiter, quoting=csv.QUOTE_NONE, strict=True)
    else:
        reader = csv.reader(lines, delimiter=delimiter, strict=True)
    names: list[str] = []
    shapes = _Shapes(0)
    number, before = 0, 0
    while True:
        try:
            row = next(reader, None)
        except csv.Error as error:
            raise ValueError(_unreadable(error, before + 1, quoting)) from error
        if row is None:
            return
        first, before = before + 1, reader.line_num
        if not row:
            continue
        if not names:
            if twice := [name for name in row if name and row.count(name) > 1]:
                raise ValueError(
                    f"line {first} names the column '{twice[0]}' twice, and one would hide the "
                    "other; rename it"
                )
            names, shapes = row, _Shapes(len(row))
            continue
        if len(row) != len(names):
            raise ValueError(
                f"line {first} has {len(row)} cells, but the first line names {len(names)} columns "
                f"({', '.join(names)}); mend it{_unquoted(quoting)}"
            )
        place = f"#{number}"
        if quoting == "strict" and before > first:
            shapes.refuse_swallowed_rows(row, delimiter, first, before)
        elif quoting == "strict":
            shapes.learn(row)
        if before - first >= _LONG_RECORD:
            notes.add(LONG_RECORDS, f"line {first}")
        if quoting == "none" and any(len(c) > 1 and c[0] == c[-1] == '"' for c in row):
            notes.add(QUOTED_CELLS, f"line {first}")
        yield place, dict(zip(names, row, strict=True))
        number += 1


def _unreadable(error: csv.Error, line: int, quoting: Quoting) -> str:
    problem = "a quote is not closed" if "end of data" in str(error) else str(error)
    return f"the record at line {line}: {problem}; mend it{_unquoted(quoting)}"


def _unquoted(quoting: Quoting) -> str:
    if quoting == "none":
        return ", or read it with --quoting strict if its cells are quoted"
    return ", or read the table with --quoting none if quotes mean nothing in it"


class _Shapes:
    """What the cells of each column look like: digits are 9, letters a, runs are one."""

    def __init__(self, columns: int) -> None:
        self._rows = 0
        self._seen: list[set[str]] = [set() for _ in range(columns)]

    def learn(self, row: list[str]) -> None:
        """Look at a row that is what it seems to be."""
        if self._rows < _LEARNED_ROWS:
            self._rows += 1
            for seen, cell in zip(self._seen, row, strict=True):
                if len(seen) <= _REGULAR and "\n" not in cell:
                    seen.add(_shape(cell))

    def refuse_swallowed_rows(self, row: list[str], delimiter: str, first: int, last: int) -> None:
        """Refuse a cell whose lines look like rows of the table: a stray quote swallowed them."""
        if len(row) < 2 or last - first < _SUSPICIOUS_LINES:
            return
        if self._rows < _SUSPICIOUS_LINES:
            self.learn(row)
        regular = [n for n, seen in enumerate(self._seen) if 0 < len(seen) <= _REGULAR]
        for cell in row:
            inner = [line.split(delimiter) for line in cell.splitlines()[1:-1] if line.strip()]
            alike = sum(
                len(cells) == len(row) and all(_shape(cells[n]) in self._seen[n] for n in regular)
                for cells in inner
            )
            if regular and len(inner) >= _SUSPICIOUS_LINES - 1 and alike > 0.8 * len(inner):
                raise ValueError(
                    f"one record goes from line {first} to line {last}, and its lines look like "
                    "records themselves: a stray quote; mend it, read the table with --quoting "
                    "none if quotes mean nothing in it, or with --quoting trust if the record is "
                    "right"
                )


def _shape(cell: str) -> str:
    return re.sub(r"(a|9)\1+", r"\1", re.sub(r"[^\W\d_]", "a", re.sub(r"\d", "9", cell[:40])))
