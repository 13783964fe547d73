"""Which files an input has, which split each belongs to, and what was left out and why.

Nothing is passed over in silence: what cannot be read is listed by its ending, and what is called
test is never trained on unless it is named itself.
"""

import os
import re
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath

from tessera.data.preparation import places
from tessera.data.preparation.places import File, PlaceError
from tessera.paths import is_remote, join

KINDS = {
    **dict.fromkeys((".jsonl", ".ndjson", ".jsonlines", ".json"), "jsonl"),
    **dict.fromkeys((".parquet", ".pq"), "parquet"),
    **dict.fromkeys((".arrow", ".feather"), "arrow"),
    ".csv": "csv",
    **dict.fromkeys((".tsv", ".tab"), "tsv"),
    **dict.fromkeys((".warc", ".wet"), "warc"),
    **dict.fromkeys((".txt", ".text", ".md", ".markdown", ".rst"), "text"),
}
"""How a file is read, by the ending of its name in lower case."""
COMPRESSIONS = {".gz": "gzip", ".zst": "zstd", ".zstd": "zstd", ".bz2": "bz2"}
"""What may follow the ending of every kind that is text."""
READABLE = ", ".join(KINDS) + f" (text formats also {', '.join(COMPRESSIONS)})"
UNFINISHED = "_unfinished"
"""Name of a file that marks a folder whose text is still being written."""
_BINARY = ("parquet", "arrow")
_SPLITS = {
    "test": {"test", "tests", "testing", "eval", "evaluation"},
    "validation": {"validation", "valid", "val", "dev"},
    "train": {"train", "training"},
}
_COMPANIONS = re.compile(
    r"(readme|licen[sc]e|notice|citation|changelog|copying|contributing|authors|security)\b",
)
_COMPANION_JSON = {"dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json"}
_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Found:
    """The files of an input."""

    splits: dict[str, list[File]]
    """By split, `train` and `validation`; or all under '' where no name says so."""
    left_out: dict[str, list[str]] = field(default_factory=dict)
    """Names of files by the reason why they are not read."""

    def lines(self) -> list[str]:
        """One sentence for each reason, and for a split that is not there."""
        said = []
        for reason, names in self.left_out.items():
            more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
            said.append(f"left out {len(names)} {reason}: {', '.join(names[:_NAMED])}{more}")
        if "" not in self.splits and not self.splits.get("validation"):
            said.append(
                "its files name no validation split: train with `validation_split: null`, or "
                "choose a share by --ignore-split-names"
            )
        return said


def kind_of(name: str) -> tuple[str, str | None] | None:
    """(kind, compression) of a file's name; None if it is not read."""
    lower = name.lower()
    compression = None
    for ending, codec in COMPRESSIONS.items():
        if lower.endswith(ending):
            lower, compression = lower.removesuffix(ending), codec
    kind = KINDS.get(PurePosixPath(lower).suffix)
    if kind is None or (compression and kind in _BINARY):
        return None
    return kind, compression


def split_of(name: str) -> str | None:
    """The split that a relative name belongs to, by any word of any folder or of the file.

    A word ends at any of `-._ `, at a digit or at a folder's end; where two splits are named, the
    text is kept from training: test comes before validation, and validation before train.
    """
    words = set(re.split(r"[\W\d_]+", name.lower()))
    return next((split for split, called in _SPLITS.items() if called & words), None)


def discover(address: str, *, ignore_split_names: bool = False) -> Found:
    """The readable files below a folder, that match a glob, or just the one that is named.

    Args:
        address: Local, or of a store.
        ignore_split_names: Take all files together, whatever they are called.

    Raises:
        PlaceError: there is nothing readable, or a link leads nowhere.
    """
    single = not places.is_glob(address) and places.is_file(address)
    left_out: dict[str, list[str]] = {}
    if is_remote(address):
        files = _remote(address, single)
    else:
        files, left_out = _local(address)
    mark = join(places.root_of(address), UNFINISHED) if places.is_glob(address) else ""
    if any(PurePosixPath(file.name).name == UNFINISHED for file in files) or (
        mark and places.read_bytes(mark) is not None
    ):
        raise PlaceError(
            f"{address} is not finished: start the same data_prep/clean.py again, which goes on "
            "from where it was"
        )
    readable = _readable(files, left_out)
    if not readable:
        found = "; there are " + "; ".join(_count(left_out)) if left_out else ""
        raise PlaceError(
            f"{address} holds no documents; readable are {READABLE} files, and folders that "
            f"`datasets` saved{found}"
        )
    if single or ignore_split_names:
        return Found(splits={"": readable}, left_out=left_out)
    return Found(splits=_by_split(address, readable, left_out), left_out=left_out)


def is_dataset(path: str | Path) -> bool:
    """Whether `datasets` saved this local folder with `save_to_disk`."""
    return os.path.isfile(os.path.join(path, "dataset_info.json")) and os.path.isfile(
        os.path.join(path, "state.json")
    )


def _remote(address: str, single: bool) -> list[File]:
    if not single:
        return places.remote_files(address)
    system, path = places.file_system(address)
    info = system.info(path)
    changed = next((str(info[s]) for s in ("mtime", "ETag", "blob_id") if info.get(s)), None)
    name = address.rpartition("/")[2]
    return [File(address=address, name=name, bytes=int(info["size"]), changed=changed)]


def _local(address: str) -> tuple[list[File], dict[str, list[str]]]:
    """Files below a local path, links followed, each real file once."""
    root = Path(places.root_of(address) or ".")
    left_out: dict[str, list[str]] = {}
    if places.is_glob(address):
        pattern = address.removeprefix(places.root_of(address)).lstrip("/")
        starts = sorted(root.glob(pattern))
    else:
        if not os.path.lexists(address):
            raise PlaceError(f"{address} does not exist")
        starts = [Path(address)]
    seen: set[str] = set()
    files: list[File] = []
    for start in starts:
        for path in _walk(start):
            name = path.relative_to(root).as_posix()
            real = os.path.realpath(path)
            if not os.path.exists(path):
                raise PlaceError(
                    f"{path}: a link to {os.readlink(path)}, which does not exist; mend or remove "
                    "the link"
                )
            if real in seen:
                left_out.setdefault("files that a link reaches a second time", []).append(name)
                continue
            seen.add(real)
            hidden = any(part.startswith(".") for part in path.relative_to(root).parts)
            if hidden and path not in starts:
                left_out.setdefault("hidden files", []).append(name)
                continue
            if path.is_dir():
                stats = [file.stat() for file in sorted(path.glob("*.arrow"))]
                size, changed = sum(s.st_size for s in stats), max(s.st_mtime_ns for s in stats)
            else:
                size, changed = path.stat().st_size, path.stat().st_mtime_ns
            files.append(File(address=str(path), name=name, bytes=size, changed=changed))
    return files, left_out


def _walk(start: Path) -> list[Path]:
    """Files, and folders that `datasets` saved, by name; a link back to a folder above ends."""
    found: list[Path] = []

    def enter(folder: Path, above: frozenset[str]) -> None:
        for entry in sorted(folder.iterdir()):
            if not entry.is_dir() or is_dataset(entry):
                found.append(entry)
            elif (real := os.path.realpath(entry)) not in above:
                enter(entry, above | {real})

    if start.is_dir() and not is_dataset(start):
        enter(start, frozenset({os.path.realpath(start)}))
    else:
        found.append(start)
    return sorted(found)


def _readable(files: list[File], left_out: dict[str, list[str]]) -> list[File]:
    kinds = {file.name: kind_of(file.name) for file in files}
    tables = any(kind and kind[0] != "text" for kind in kinds.values())
    chosen = []
    for file in files:
        kind, last = kinds[file.name], PurePosixPath(file.name).name.lower()
        if not is_remote(file.address) and os.path.isdir(file.address):
            chosen.append(file)
        elif PurePosixPath(file.name).name.startswith("."):
            left_out.setdefault("hidden files", []).append(file.name)
        elif kind is None:
            ending = PurePosixPath(last).suffix or "without an ending"
            left_out.setdefault(f"unreadable files ({ending})", []).append(file.name)
        elif last in _COMPANION_JSON or (
            tables and kind[0] == "text" and _COMPANIONS.match(last) and len(files) > 1
        ):
            left_out.setdefault("files that describe the data beside it", []).append(file.name)
        else:
            chosen.append(file)
    return chosen


def _by_split(
    address: str, files: list[File], left_out: dict[str, list[str]]
) -> dict[str, list[File]]:
    splits: dict[str | None, list[File]] = {}
    for file in files:
        splits.setdefault(split_of(file.name), []).append(file)
    if tests := splits.pop("test", []):
        if not splits:
            raise PlaceError(
                f"{address}: all of its files are called test ({tests[0].name}...), which is not "
                "trained on unasked; --ignore-split-names takes them as they are"
            )
        reason = "files called test (--ignore-split-names takes all files together)"
        left_out[reason] = [file.name for file in tests]
    unnamed = splits.pop(None, [])
    if not splits:
        return {"": unnamed}
    if unnamed and "train" not in splits:
        splits["train"] = unnamed  # what stands beside files for validation is to be trained on
    elif unnamed:
        reason = "files beside those called train (--ignore-split-names takes all together)"
        left_out[reason] = [file.name for file in unnamed]
    return {name: splits[name] for name in ("train", "validation") if name in splits}


def _count(left_out: dict[str, list[str]]) -> list[str]:
    counted = Counter({reason: len(names) for reason, names in left_out.items()})
    return [f"{count} {reason}" for reason, count in counted.most_common()]
