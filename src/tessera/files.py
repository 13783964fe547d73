"""Files on the local disk: written whole or not at all. Imports no torch."""

import contextlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

JsonObject = dict[str, Any]
"""An object of a JSON file, as the standard library reads it."""
UNFINISHED = ".*.writing"
"""Pattern of the names that `write_whole` leaves behind if its process is killed."""


def write_whole(path: Path, content: bytes | Callable[[IO[bytes]], object]) -> None:
    """Write a file under a temporary name, and give it its own once it is on the disk.

    A reader sees the old file or the new one, whenever the machine stops. That takes three things
    in this order: the bytes are forced to the disk, the name is changed in one step, and the
    folder, which holds the name, is forced to the disk too.

    Args:
        path: what to write; an earlier file of the name is replaced.
        content: the bytes, or what writes them to an open file.

    Raises:
        OSError: naming the file. Nothing of the new content stays.
    """
    temporary = path.with_name(f".{path.name}.writing")
    try:
        with temporary.open("wb") as file:
            if isinstance(content, bytes):
                file.write(content)
            else:
                content(file)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        with contextlib.suppress(OSError):
            temporary.unlink()
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)
        raise
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the file system knows how."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        with contextlib.suppress(OSError):
            os.fsync(handle)
    finally:
        os.close(handle)


def zip_damage(path: Path) -> str | None:
    """What is wrong with a zip's bytes, a checkpoint's too, by its own checksums; None: nothing.

    Neither PyTorch nor a memory map compares them: a flipped bit would be a weight.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            torn = archive.testzip()
    except PermissionError:
        return "may not be read (permissions)"
    except (OSError, zipfile.BadZipFile, EOFError) as error:
        return f"is cut short or not a checkpoint ({error})"
    return f"is damaged: its record {torn} has another checksum" if torn else None


def json_lines(path: Path, notes: list[str]) -> Iterator[tuple[int, Any]]:
    """The number, from 1, and the value of each line of a file that a run appends to.

    Where the run was killed the last line may be cut short: it is left out, and `notes` says so.

    Raises:
        ValueError: a line that is not the last is no JSON.
    """
    torn: tuple[int, Exception] | None = None
    with path.open("rb") as file:
        for number, line in enumerate(file, start=1):
            if torn is not None:
                raise ValueError(
                    f"{path}, line {torn[0]}: not JSON ({torn[1]}). The file is damaged: "
                    "remove this line, or restore the file"
                )
            try:
                yield number, json.loads(line)
            except (ValueError, RecursionError) as error:
                torn = (number, error)
    if torn is not None:
        notes.append(f"the last line of {path.name} (line {torn[0]}) is cut off and left out")


def as_json(value: JsonObject) -> str:
    """A JSON file's text: indented, keys in order, ending with a newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
