"""What a command line names as text: inputs, their names, and the columns that hold their text."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tessera.data.documents import TEXTS, Columns, Part, find_splits, read_part

TEXT_COLUMN_HELP = "column that holds the text, of all inputs or NAME=COLUMN; repeatable (text)"


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
