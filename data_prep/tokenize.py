"""Tokenize text into MDS shards, one folder per source and split.

Each input is a source: NAME=PATH, or a PATH whose last part is the name. A path is a file or folder
of JSONL (.gz, .zst), Parquet, CSV or text files, or a folder that `datasets` saved. Files or
folders named train... and validation... are those splits; otherwise a share of the documents,
chosen by a hash of the text, is kept for validation.

Killed at any moment, it goes on where it was when started again. The result does not depend on the
number of workers.
"""

import os
import sys
from pathlib import Path

if __name__ == "__main__":  # this file must not hide the standard library's tokenize
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]
    os.environ["PYTHONSAFEPATH"] = "1"  # nor in the processes it starts

import argparse
import fcntl
import json
import multiprocessing
import shutil
import signal
import time
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import xxhash
from tqdm import tqdm

from tessera.data.documents import Columns, Document, Part, cut_into_parts, find_splits, read_part
from tessera.data.shard_writer import PARTS, publish, write_part
from tessera.data.shards import INDEX, SUMMARY, write_whole
from tessera.data.tokenizer import Tokenizer, load_tokenizer
from tessera.quantities import ByteSize

BATCH_CHARACTERS = 1 << 20
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One folder of shards to make."""

    source: str
    name: str
    folder: Path
    parts: tuple[Part, ...]
    plan: dict[str, Any]
    """What decides the result; a rerun with another one is refused."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """One part of one split, for one worker."""

    part: Part
    folder: Path
    """Where the part's shards go."""
    columns: Columns
    chosen: tuple[str, float] | None
    """(split, share for validation) if documents are assigned to splits by their hash."""
    shard_bytes: int
    compression: str | None


def main() -> int:
    """Tokenize what is missing; returns the exit status."""
    arguments = parse_arguments()
    try:
        return tokenize(arguments)
    except (ValueError, PermissionError) as error:
        print(error, file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("interrupted; the same command goes on from here", file=sys.stderr)
        return 130


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("input", nargs="*", help="[NAME=]PATH of a source (default: the folders in OUT/text)")
    add("--out", default="data/demo", help="folder for NAME/{train,validation} (%(default)s)")
    add("--tokenizer", help="folder or Hugging Face id (default: OUT/tokenizer)")
    add("--text-column", default="text", help="column that holds the text (%(default)s)")
    add("--id-column", help="column that holds ids (default: 'id', or the place in the file)")
    add("--validation-share", type=float, default=0.01, help="where inputs name no splits (0.01)")
    add("--shard-size", default="64mb", help="size of a shard, at most (%(default)s)")
    add("--part-size", default="64mb", help="input that a worker takes at a time (%(default)s)")
    add("--compression", help="such as zstd or zstd:7; needs decompressing when read")
    add("--workers", type=int, default=len(os.sched_getaffinity(0)), help="processes (%(default)s)")
    add("--overwrite", action="store_true", help="replace shards made from other input or options")
    return parser.parse_args()


def tokenize(arguments: argparse.Namespace) -> int:
    """Plan, work through the parts that are missing, publish every split that is complete."""
    started = time.monotonic()
    tokenizer_name = arguments.tokenizer or str(Path(arguments.out) / "tokenizer")
    tokenizer = load_tokenizer(tokenizer_name)
    splits = [split for split in plan_splits(arguments, tokenizer) if not is_done(split, arguments)]
    tasks = [task for split in splits for task in tasks_of(split, arguments)]
    total_bytes = sum(task.part.bytes for task in tasks)
    with tqdm(
        total=total_bytes,
        unit="B",
        unit_scale=True,
        desc="tokenizing",
        mininterval=1,
        disable=not tasks,
    ) as bar:
        for finished_bytes in work_through(tasks, tokenizer_name, arguments.workers):
            bar.update(finished_bytes)
    for split in splits:
        summary = publish(
            split.folder,
            [part_folder(split, number) for number in range(len(split.parts))],
            vocab_size=tokenizer.size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            prepared_from=split.plan,
        )
        print(describe(split, summary))
    seconds = time.monotonic() - started
    print(f"{total_bytes / 1e6:.1f} MB in {seconds:.0f} s with {arguments.workers} workers")
    return 0


# ---- what there is to do


def plan_splits(arguments: argparse.Namespace, tokenizer: Tokenizer) -> list[Split]:
    """Every folder of shards that the inputs ask for."""
    if not 0 < arguments.validation_share < 1:
        raise ValueError(f"--validation-share is in (0, 1); got {arguments.validation_share}")
    if arguments.workers < 1:
        raise ValueError(f"--workers must be at least 1; got {arguments.workers}")
    part_bytes = size_option(arguments, "part_size")
    splits = []
    for source, path in named_inputs(arguments).items():
        files = find_splits(path)
        root = path if path.is_dir() else path.parent
        for name in ("train", "validation") if "" in files else files:
            chosen = files.get("") or files[name]
            parts = cut_into_parts(chosen, root, part_bytes)
            stats = [(str(f.relative_to(root)), f.stat()) for f in chosen]
            plan = {
                "files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats],
                "validation_share": arguments.validation_share if "" in files else None,
                "text_column": arguments.text_column,
                "id_column": arguments.id_column,
                "shard_bytes": size_option(arguments, "shard_size"),
                "part_bytes": part_bytes,
                "compression": arguments.compression,
                "tokenizer": tokenizer.fingerprint,
            }
            folder = Path(arguments.out) / source / name
            splits.append(
                Split(source=source, name=name, folder=folder, parts=tuple(parts), plan=plan)
            )
    return splits


def size_option(arguments: argparse.Namespace, option: str) -> int:
    """The bytes of an option such as '64mb'."""
    try:
        size = ByteSize.parse(getattr(arguments, option)).value
    except ValueError as error:
        raise ValueError(f"--{option.replace('_', '-')}: {error}") from error
    if not 1000 <= size < 2**31:
        raise ValueError(f"--{option.replace('_', '-')} must be from 1kb to 2gb; got {size}b")
    return size


def named_inputs(arguments: argparse.Namespace) -> dict[str, Path]:
    """The path of every source, by name."""
    inputs = arguments.input or [str(p) for p in sorted((Path(arguments.out) / "text").glob("*/"))]
    if not inputs:
        raise ValueError(
            f"no input: name sources, or put them into {Path(arguments.out) / 'text'} "
            "(data_prep/harvest.py does so for the demo)"
        )
    named: dict[str, Path] = {}
    for text in inputs:
        name, separator, path = text.rpartition("=")
        name = name if separator else Path(path).name.split(".")[0]
        if not name or "/" in name or name in named or name in ("text", "tokenizer"):
            raise ValueError(
                f"'{text}': '{name}' cannot name a source: it is taken, or no folder's name; "
                "write NAME=PATH"
            )
        named[name] = Path(path)
    return named


def is_done(split: Split, arguments: argparse.Namespace) -> bool:
    """Whether a split is finished; refuses to touch a folder that something else was made into."""
    plan_file = split.folder / PARTS / PLAN
    previous = None
    if (split.folder / INDEX).is_file():
        summary = split.folder / SUMMARY
        previous = json.loads(summary.read_text()) if summary.is_file() else {}
        previous = previous.get("prepared_from") or {}
        if previous == split.plan:
            print(f"{split.folder} is up to date")
            shutil.rmtree(split.folder / PARTS, ignore_errors=True)
            return True
    elif plan_file.is_file():
        previous = json.loads(plan_file.read_text())
    elif split.folder.exists() and any(split.folder.iterdir()):
        previous = {}
    if previous is not None and previous != split.plan:
        if not arguments.overwrite:
            raise ValueError(f"{split.folder} {why_refused(previous, split.plan)}")
        shutil.rmtree(split.folder)
    (split.folder / PARTS).mkdir(parents=True, exist_ok=True)
    write_whole(plan_file, json.dumps(split.plan).encode())
    return False


def why_refused(previous: dict[str, Any], plan: dict[str, Any]) -> str:
    """How the contents of a folder differ from what would be written there."""
    cure = "choose another --out, or replace them with --overwrite"
    if not previous:
        return f"holds files that this script did not write; {cure}"
    differing = [key for key, value in plan.items() if previous.get(key) != value]
    if "tokenizer" in differing:
        return (
            f"holds shards of another tokenizer ({previous.get('tokenizer')}, not "
            f"{plan['tokenizer']}); one folder has one tokenizer: {cure}"
        )
    return f"was prepared with other {', '.join(differing)}; {cure}"


def tasks_of(split: Split, arguments: argparse.Namespace) -> list[Task]:
    """The parts of a split, done or not."""
    share = split.plan["validation_share"]
    return [
        Task(
            part=part,
            folder=part_folder(split, number),
            columns=Columns(text=arguments.text_column, id=arguments.id_column),
            chosen=None if share is None else (split.name, share),
            shard_bytes=split.plan["shard_bytes"],
            compression=split.plan["compression"],
        )
        for number, part in enumerate(split.parts)
    ]


def part_folder(split: Split, number: int) -> Path:
    """Where a part of a split is written before all are joined."""
    return split.folder / PARTS / f"{number:06}"


def describe(split: Split, summary: dict[str, Any]) -> str:
    """One line of statistics."""
    lengths = summary["document_tokens"]
    return (
        f"{split.source}/{split.name}: {summary['documents']} documents, "
        f"{summary['tokens']} tokens, {summary['shards']} shards; tokens per document: "
        + ", ".join(f"{name} {value}" for name, value in lengths.items())
        + f"; {summary['empty_documents']} empty left out"
    )


# ---- doing it

_tokenizer: Tokenizer | None = None
"""Of this process, loaded once."""


def work_through(tasks: list[Task], tokenizer_name: str, workers: int) -> Iterator[int]:
    """Do the tasks; yields the size of each when it is done."""
    if workers == 1 or len(tasks) < 2:
        start_worker(tokenizer_name)
        yield from map(do, tasks)
        return
    # Children of a clean server process: quick to start, and no thread of ours is forked.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["streaming", "tokenizers"])
    with context.Pool(
        min(workers, len(tasks)), initializer=start_worker, initargs=(tokenizer_name, True)
    ) as pool:
        yield from pool.imap_unordered(do, tasks)


def start_worker(tokenizer_name: str, one_of_many: bool = False) -> None:
    """Load this process's tokenizer; one of many processes uses one core, a single one all."""
    global _tokenizer
    if one_of_many:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent alone answers Ctrl-C
        os.environ["TOKENIZERS_PARALLELISM"] = "false"
    _tokenizer = load_tokenizer(tokenizer_name)


def do(task: Task) -> int:
    """Tokenize a part into shards unless that was done before; returns its size."""
    assert _tokenizer is not None
    with open(task.folder.with_suffix(".lock"), "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # a killed run's worker may still be at it
        write_part(
            task.folder,
            tokenized(documents_of(task), _tokenizer),
            vocab_size=_tokenizer.size,
            shard_bytes=task.shard_bytes,
            compression=task.compression,
        )
    return task.part.bytes


def documents_of(task: Task) -> Iterator[Document]:
    """The documents of a part that belong to the task's split."""
    for document_id, text in read_part(task.part, task.columns):
        if task.chosen is not None:
            split, share = task.chosen
            for_validation = xxhash.xxh64_intdigest(text.encode()) < share * 2**64
            if for_validation != (split == "validation"):
                continue
        yield document_id, text


def tokenized(
    documents: Iterator[Document], tokenizer: Tokenizer
) -> Iterator[tuple[str, np.ndarray]]:
    """Encode in batches of about `BATCH_CHARACTERS`."""
    batch: list[Document] = []
    characters = 0
    for document in documents:
        batch.append(document)
        characters += len(document[1])
        if characters >= BATCH_CHARACTERS:
            yield from encode(batch, tokenizer)
            batch, characters = [], 0
    yield from encode(batch, tokenizer)


def encode(batch: list[Document], tokenizer: Tokenizer) -> Iterator[tuple[str, np.ndarray]]:
    """Ids of the documents of a batch, and their token ids."""
    ids, texts = [document[0] for document in batch], [document[1] for document in batch]
    return zip(ids, tokenizer.encode_batch(texts), strict=True)


if __name__ == "__main__":
    sys.exit(main())
