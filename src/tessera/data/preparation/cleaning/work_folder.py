"""What passes between the stages of cleaning, on a disk that all processes and machines share.

Everything is named by the number of the part it belongs to, written under a temporary name, and
whole once it has its own; the record of a part is the last of its files.
"""

import contextlib
import fcntl
import json
import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from tessera.data.preparation.formats.records import open_stream
from tessera.files import write_whole


class WorkFolder:
    """The folder of one plan."""

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)

    def file(self, kind: str, name: int | str, ending: str) -> Path:
        """Where something lies; its folder is made."""
        folder = self.path / kind
        folder.mkdir(parents=True, exist_ok=True)
        return folder / (f"{name:06}{ending}" if isinstance(name, int) else f"{name}{ending}")

    def texts(self, number: int) -> Path:
        """Documents of a part that passed the filters."""
        return self.file("texts", number, ".jsonl.zst")

    def removed(self, number: int) -> Path:
        """Documents of a part that did not."""
        return self.file("removed", number, ".jsonl.zst")

    def keys(self, number: int) -> Path:
        """(bands, documents) uint64: what copies of the documents share."""
        return self.file("keys", number, ".npy")

    def matches(self, band: int, piece: int) -> Path:
        """Pairs of documents that share a key."""
        return self.file("matches", f"{band:03}-{piece:06}", ".npy")

    @property
    def index(self) -> Path:
        """Folder of the words of evaluation texts."""
        return self.path / "against"

    @property
    def clusters(self) -> Path:
        """Folder of which documents are copies of which."""
        return self.path / "clusters"

    def once(self, stage: str, number: int, work: Callable[[], Mapping[str, Any]]) -> None:
        """Do a stage's work on a part unless it was done, and keep what it counted.

        Held against another process of this machine, such as a killed run's worker.
        """
        record = self.file(stage, number, ".json")
        with record.with_suffix(".lock").open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            if not record.exists():
                write_whole(record, json.dumps(work()).encode())

    def finished(self, stage: str) -> set[int]:
        """The numbers of the parts that a stage is done with."""
        return {int(path.stem) for path in (self.path / stage).glob("[0-9]*.json")}

    def record(self, stage: str, number: int) -> dict[str, Any]:
        """What was counted."""
        return dict(json.loads((self.path / stage / f"{number:06}.json").read_bytes()))


class LinesWriter:
    """JSON objects, one a line, compressed."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def write(self, value: dict[str, Any]) -> None:
        """Append an object; what JSON does not know, such as a date, is written as its text."""
        self._stream.write(json.dumps(value, ensure_ascii=False, default=str).encode() + b"\n")


@contextlib.contextmanager
def writing_lines(path: Path) -> Iterator[LinesWriter]:
    """A writer whose file is there, whole, once the context ended without an error."""
    import pyarrow

    temporary = path.with_name(f".{path.name}.{os.getpid()}.writing")
    try:
        with pyarrow.CompressedOutputStream(str(temporary), "zstd") as stream:
            yield LinesWriter(stream)
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def read_lines(path: Path) -> Iterator[dict[str, Any]]:
    """The objects of a file that was written whole."""
    with open_stream(str(path), "zstd") as stream:
        for line in stream:
            yield json.loads(line)
