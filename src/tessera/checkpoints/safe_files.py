"""Reading other people's files without running anything that is in them.

A PyTorch file is a zip with a pickle inside, and a pickle is a program. Here the pickle's text is
searched for the names of what it would call before any of it runs; then PyTorch's own restricted
unpickler (`weights_only=True`) reads it with an allowlist no longer than real checkpoints need.
"""

import datetime
import hashlib
import json
import pickletools
import zipfile
from collections.abc import Iterable
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from tessera.checkpoints.checkpoint import CheckpointError
from tessera.files import JsonObject, zip_damage

MOST_PICKLE_BYTES = 256 * 2**20
MOST_TEXT_BYTES = 256 * 2**20
MOST_RECORDS = 1_000_000

_NUMPY_DTYPES = [
    getattr(np.dtypes, f"{kind}DType")
    for kind in (
        *("Bool", "Int8", "Int16", "Int32", "Int64", "UInt8", "UInt16", "UInt32", "UInt64"),
        *("Float16", "Float32", "Float64"),
    )
]
_RECONSTRUCT = np._core.multiarray._reconstruct  # type: ignore[attr-defined]
_TRUSTED: list[Any] = [
    datetime.timedelta,
    np.ndarray,
    np.dtype,
    *_NUMPY_DTYPES,
    (_RECONSTRUCT, "numpy.core.multiarray._reconstruct"),  # as numpy 1 calls it
    (_RECONSTRUCT, "numpy._core.multiarray._reconstruct"),
    torch.torch_version.TorchVersion,
]

_ALLOWED = {
    "_codecs.encode",
    "builtins.set",
    "collections.OrderedDict",
    "collections.defaultdict",
    "builtins.dict",
    "datetime.timedelta",
    "numpy._core.multiarray._reconstruct",
    "numpy.core.multiarray._reconstruct",
    "numpy.dtype",
    "numpy.ndarray",
    "torch.Size",
    "torch.device",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_tensor_v2",
    "torch.nn.parameter.Parameter",
    "torch.torch_version.TorchVersion",
    *(f"numpy.dtypes.{dtype.__name__}" for dtype in _NUMPY_DTYPES),
    *(
        f"torch.{name}"
        for name in (
            *("float64", "float32", "float16", "bfloat16", "bool"),
            *("uint8", "int8", "int16", "int32", "int64"),
            *("DoubleStorage", "FloatStorage", "HalfStorage", "BFloat16Storage", "BoolStorage"),
            *("ByteStorage", "CharStorage", "ShortStorage", "IntStorage", "LongStorage"),
        )
    ),
    "torch.storage.UntypedStorage",
}
"""Everything a checkpoint may name. Shorter than PyTorch's own list on purpose."""


def load_pickled_tensors(path: Path, *, checked: bool = False) -> Any:
    """What `torch.save` wrote, if it is nothing but plain values and tensors.

    Tensors stay in the file until they are used (memory-mapped).

    Args:
        path: The file.
        checked: Whether its checksums have been compared, which reads all of it.

    Raises:
        CheckpointError: the file is damaged, is no such file, or wants to call something that no
            checkpoint needs; the message names it.
    """
    program = _pickle_of(path)
    try:
        strangers = sorted(set(_globals_of(program)) - _ALLOWED)
    except Exception as error:
        raise _damaged(path, error) from error
    if strangers:
        raise CheckpointError(
            f"{path}: refused, because reading it would call {', '.join(strangers[:4])}"
            + (f" and {len(strangers) - 4} more" if len(strangers) > 4 else "")
            + ". No checkpoint of weights needs that. Nothing of it was run; if you trust its "
            "author, ask for a safetensors file"
        )
    if not checked and (problem := zip_damage(path)):
        raise CheckpointError(f"{path}: {problem}; bring or copy it again")
    try:
        with torch.serialization.safe_globals(_TRUSTED):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # hostile bytes raise nearly anything
        raise _damaged(path, error) from error


def _pickle_of(path: Path) -> bytes:
    """The pickle inside the zip, after checking that the zip is what `torch.save` writes."""
    try:
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _check_records(path, records)
            pickles = [r for r in records if PurePosixPath(r.filename).name == "data.pkl"]
            if len(pickles) != 1 or len(PurePosixPath(pickles[0].filename).parts) != 2:
                raise CheckpointError(f"{path}: a zip file, but not one that torch.save wrote")
            if pickles[0].file_size > MOST_PICKLE_BYTES:
                raise CheckpointError(
                    f"{path}: its data.pkl claims {pickles[0].file_size} bytes; a checkpoint's "
                    f"has a few megabytes, and more than {MOST_PICKLE_BYTES} is refused"
                )
            return archive.read(pickles[0])
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"{path}: not a PyTorch checkpoint, or one cut short ({error}). Compare its size with "
            "the original; files of PyTorch before 1.6 must be saved again with a newer one"
        ) from error
    except (OSError, EOFError, NotImplementedError, RuntimeError) as error:
        raise _damaged(path, error) from error


def _check_records(path: Path, records: list[zipfile.ZipInfo]) -> None:
    if len(records) > MOST_RECORDS:
        raise CheckpointError(f"{path}: {len(records)} records are more than a checkpoint has")
    names = [record.filename for record in records]
    tops = {name.split("/", 1)[0] for name in names}
    for name in names:
        if name.startswith("/") or "\\" in name or ".." in name.split("/") or len(tops) != 1:
            raise CheckpointError(
                f"{path}: its record '{name}' points outside the checkpoint; torch.save writes "
                "no such names"
            )
    if len(set(names)) != len(names):
        raise CheckpointError(f"{path}: it holds two records of one name; torch.save never does")
    for record in records:
        if record.compress_type != zipfile.ZIP_STORED or record.compress_size != record.file_size:
            raise CheckpointError(
                f"{path}: its record '{record.filename}' is compressed (claiming "
                f"{record.file_size} bytes); torch.save stores records as they are"
            )
    size = path.stat().st_size
    if sum(record.file_size for record in records) > size:
        raise CheckpointError(f"{path}: its records claim more bytes than the file's {size}")


def _globals_of(program: bytes) -> Iterable[str]:
    """Dotted names of everything a pickle would import, found without running it."""
    strings = ["", ""]
    top: str | None = None  # of the stack, if it is a string
    memo: list[str | None] = []
    argument: Any
    for opcode, argument, _ in pickletools.genops(program):
        if opcode.name == "MEMOIZE":
            memo.append(top)
            continue
        if opcode.name in {"PUT", "BINPUT", "LONG_BINPUT"}:
            memo += [None] * (min(argument, len(program)) + 1 - len(memo))
            memo[min(argument, len(program))] = top
            continue
        if opcode.name in {"GET", "BINGET", "LONG_BINGET"}:
            top = memo[argument] if argument < len(memo) else None
        else:
            top = argument if isinstance(argument, str) else None
        if opcode.name in {"GLOBAL", "INST"}:
            yield str(argument).replace(" ", ".")
        elif opcode.name == "STACK_GLOBAL":
            yield ".".join(strings)
        elif opcode.name in {"EXT1", "EXT2", "EXT4"}:
            yield f"the registered extension {argument}"
        elif top is not None:
            strings = [strings[1], top]


def load_safetensors(path: Path) -> dict[str, Tensor]:
    """Every tensor of a safetensors file.

    Raises:
        CheckpointError: the file is damaged or no such file.
    """
    try:
        with safe_open(path, framework="pt", device="cpu") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"{path}: not a safetensors file, or a damaged one ({one_line(error)})"
        ) from error


def load_json(path: Path) -> JsonObject:
    """A JSON object from a file.

    Raises:
        CheckpointError: the file cannot be read, or holds no JSON object.
    """
    return parse_json(path, load_text(path))


def load_text(path: Path) -> str:
    """A text file of a size that can be meant.

    Raises:
        CheckpointError: it cannot be read.
    """
    try:
        if path.stat().st_size > MOST_TEXT_BYTES:
            raise CheckpointError(f"{path}: too large for what it should be")
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: cannot be read ({one_line(error)})") from error


def parse_json(where: object, text: object) -> JsonObject:
    """A JSON object from its text.

    Raises:
        CheckpointError: naming `where`, if the text is no JSON object.
    """
    try:
        parsed = json.loads(text)  # type: ignore[arg-type]
    except (ValueError, TypeError, RecursionError) as error:
        raise CheckpointError(f"{where}: not JSON ({one_line(error)})") from error
    if not isinstance(parsed, dict):
        raise CheckpointError(f"{where}: expected a JSON object, not a {type(parsed).__name__}")
    return parsed


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _damaged(path: Path, error: Exception) -> CheckpointError:
    return CheckpointError(
        f"{path}: cannot be read; it is damaged, cut short, or not a checkpoint "
        f"({type(error).__name__}: {one_line(error)})"
    )


def one_line(error: Exception, most: int = 240) -> str:
    """What an error says, as one line of a message of ours."""
    return " ".join(str(error).split())[:most] or type(error).__name__
