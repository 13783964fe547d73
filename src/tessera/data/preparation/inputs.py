"""Sources of text as a command line or YAML names them."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from tessera.data.preparation import places
from tessera.data.preparation.config import SourceConfig
from tessera.data.preparation.formats.discovery import Found, discover, kind_of
from tessera.data.preparation.formats.records import Reading
from tessera.data.preparation.places import File
from tessera.data.preparation.text_files import Part, read_rows
from tessera.paths import absolute, is_remote

log = logging.getLogger(__name__)

TEXT_COLUMN_HELP = "column that holds the text, of all inputs or NAME=COLUMN; repeatable (text)"
ENCODING_HELP = "encoding of text files, of all inputs or NAME=ENCODING; repeatable (utf-8)"


@dataclass(frozen=True, kw_only=True)
class Input:
    """One source of text."""

    name: str
    path: str
    """Address of a file or folder, or a glob; local, or of a store."""
    reading: Reading
    ignore_split_names: bool = False

    @cached_property
    def found(self) -> Found:
        """Its files by split, and what was left out."""
        return discover(self.path, ignore_split_names=self.ignore_split_names)

    @cached_property
    def root(self) -> str:
        """The folder that its documents' ids are relative to."""
        return places.root_of(self.path)

    def check_first_records(self) -> None:
        """Say what is left out, and read one record of every file that has columns.

        Raises:
            ValueError: a file cannot be read, or lacks a column; names it.
        """
        for line in self.found.lines():
            log.warning("%s: %s", self.name, line)
        files = [
            file
            for files in self.found.splits.values()
            for file in files
            if (kind_of(file.name) or ("dataset",))[0] != "text"
        ]

        def look(file: File) -> None:
            part = Part(root=self.root, files=(file.name,), bytes=0)
            next(read_rows(part, self.reading), None)

        places.at_once(look, files, is_remote(self.path))


def input_of(
    name: str, about: SourceConfig, *, ignore_split_names: bool, columns: tuple[str, ...] = ()
) -> Input:
    """A source of a configuration, as it is read; `columns` are wanted beside id and text."""
    return Input(
        name=name,
        path=places.expanded(about.path),
        reading=Reading(
            text=about.text_column,
            id=about.id_column,
            encoding=about.encoding,
            quoting=about.quoting,
            columns=columns,
        ),
        ignore_split_names=ignore_split_names,
    )


def find_splits(path: str | Path) -> dict[str, list[File]]:
    """The files of a source: by split if names say so, else all under ''.

    Raises:
        ValueError: there is nothing readable.
    """
    return discover(str(path)).splits


def parse_inputs(
    texts: Sequence[str],
    text_columns: Sequence[str] = (),
    id_column: str | None = None,
    encodings: Sequence[str] = (),
    quoting: Any = None,
    *,
    ignore_split_names: bool = False,
) -> list[Input]:
    """The inputs `[NAME=]ADDRESS`, with options of all, or of one as `NAME=VALUE`.

    Raises:
        ValueError: an option is for an input that there is not.
    """
    named = []
    for text in texts:
        name, separator, path = text.partition("=")
        if not separator or "/" in name or Path(text).exists():
            before_glob = re.split(r"/[^/]*[*?\[]", text)[0]
            name, path = Path(before_glob).name.split(".")[0], text
        named.append((name, places.expanded(path)))
    names = [name for name, _ in named]
    columns = by_name("--text-column", text_columns, names, "text")
    codecs = by_name("--encoding", encodings, names, "utf-8")
    for encoding in codecs.values():
        try:
            "".encode(encoding)
        except LookupError:
            raise ValueError(f"--encoding {encoding}: no such encoding; such as latin-1") from None
    return [
        Input(
            name=name,
            path=path,
            reading=Reading(
                text=columns[name], id=id_column, encoding=codecs[name], quoting=quoting
            ),
            ignore_split_names=ignore_split_names,
        )
        for name, path in named
    ]


def by_name(
    option: str, texts: Sequence[str], names: Sequence[str], default: str
) -> dict[str, str]:
    """The value of an option for each input."""
    given: dict[str, str] = {}
    for text in texts:
        name, separator, own = text.partition("=")
        name, value = (name, own) if separator else ("", text)
        if name and name not in names:
            there = f"there are {', '.join(names)}" if names else "none is named at all"
            raise ValueError(f"{option} {text}: no input is named '{name}'; {there}")
        if name in given:
            of = f"'{name}'" if name else "all"
            raise ValueError(f"{option} is given twice for {of}: {given[name]} and {value}")
        given[name] = value
    return {name: given.get(name, given.get("", default)) for name in names}


def refuse_output_inside(path: str, out: str) -> None:
    """Refuse to write into the folder that is read: the next time it would be read too.

    Raises:
        ValueError: naming both.
    """
    is_folder = os.path.isdir(path) or (is_remote(path) and not places.is_glob(path))
    if is_folder and f"{absolute(out)}/".startswith(f"{absolute(path).rstrip('/')}/"):
        raise ValueError(f"--out {out}: lies in {path}, which is read; choose another folder")
