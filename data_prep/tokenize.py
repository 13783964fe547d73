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

from tessera.data.preparation.mds_writer import PARTS, has_documents, publish, write_part
from tessera.data.preparation.text_files import (
    TEXT_COLUMN_HELP,
    Columns,
    Document,
    Input,
    Part,
    cut_into_parts,
    find_splits,
    parse_inputs,
    read_part,
)
from tessera.data.sources.mds_shard import INDEX, SUMMARY
from tessera.files import write_whole
from tessera.paths import LOCAL, SOURCE, named_path, option
from tessera.quantities import ByteSize
from tessera.tokenizer import Tokenizer, load_tokenizer

BATCH_CHARACTERS = 1 << 20
PLAN = "plan.json"


@dataclass(frozen=True, kw_only=True)
class Split:
    """One folder of shards to make."""

    source: Input
    name: str
    folder: Path
    parts: tuple[Part, ...]
    plan: dict[str, Any]
    """What decides the result; finished work of another one is not replaced unasked."""


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

    @property
    def bytes(self) -> int:
        """How much of the input it accounts for: what two splits read counts half for each."""
        return self.part.bytes // (1 if self.chosen is None else 2)


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
    add(
        "input",
        nargs="*",
        type=named_path,
        help="[NAME=]PATH of a source (default: the folders in OUT/text)",
    )
    add(
        "--out",
        type=option(LOCAL),
        default="data/demo",
        help="folder for NAME/{train,validation} (%(default)s)",
    )
    add(
        "--tokenizer",
        type=option(SOURCE),
        help="folder or Hugging Face id (default: OUT/tokenizer)",
    )
    add("--text-column", action="append", default=[], metavar="COLUMN", help=TEXT_COLUMN_HELP)
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
    splits = plan_splits(arguments, tokenizer)
    splits = [split for split in splits if not is_done(split, overwrite=arguments.overwrite)]
    if not splits:
        print("nothing to do")
        return 0
    for source in {split.source.name: split.source for split in splits}.values():
        source.check_first_records()
    for split in splits:
        begin(split, overwrite=arguments.overwrite)
    tasks = [task for split in splits for task in tasks_of(split)]
    total_bytes = sum(task.bytes for task in tasks)
    with tqdm(
        total=total_bytes, unit="B", unit_scale=True, desc="tokenizing", mininterval=1
    ) as bar:
        for finished_bytes in work_through(tasks, tokenizer_name, arguments.workers):
            bar.update(finished_bytes)
    for split in splits:
        refuse_nothing(split)
    for split in splits:
        summary = publish(
            split.folder,
            part_folders(split),
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
    for source in sources(arguments):
        files, root = find_splits(source.path), source.root
        for name in ("train", "validation") if "" in files else files:
            chosen = files.get("") or files[name]
            parts = cut_into_parts(chosen, root, part_bytes)
            stats = [(str(f.relative_to(root)), f.stat()) for f in chosen]
            plan = {
                "files": [[file, stat.st_size, stat.st_mtime_ns] for file, stat in stats],
                "validation_share": arguments.validation_share if "" in files else None,
                "text_column": source.columns.text,
                "id_column": source.columns.id,
                "shard_bytes": size_option(arguments, "shard_size"),
                "part_bytes": part_bytes,
                "compression": arguments.compression,
                "tokenizer": tokenizer.fingerprint,
            }
            folder = Path(arguments.out) / source.name / name
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


def sources(arguments: argparse.Namespace) -> list[Input]:
    """The inputs, each with a name that its folder can have."""
    inputs = arguments.input or [str(p) for p in sorted((Path(arguments.out) / "text").glob("*/"))]
    if not inputs:
        raise ValueError(
            f"no input: name sources, or put them into {Path(arguments.out) / 'text'} "
            "(data_prep/harvest.py does so for the demo)"
        )
    found = parse_inputs(inputs, arguments.text_column, arguments.id_column)
    taken = {"", "text", "tokenizer"}
    for source in found:
        if source.name in taken or "/" in source.name:
            raise ValueError(
                f"{source.path}: '{source.name}' cannot name a source: it is taken, or no folder's "
                "name; write NAME=PATH"
            )
        taken.add(source.name)
    return found


def is_done(split: Split, *, overwrite: bool) -> bool:
    """Whether a split is finished; refuses a folder that holds something else. Begins nothing."""
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
        if any(path.is_dir() for path in plan_file.parent.glob("[0-9]" * 6)):
            previous = json.loads(plan_file.read_text())
    elif split.folder.exists() and {path.name for path in split.folder.iterdir()} - {PARTS}:
        previous = {}
    if previous not in (None, split.plan) and not overwrite:
        raise ValueError(f"{split.folder} {why_refused(previous or {}, split.plan)}")
    return False


def begin(split: Split, *, overwrite: bool) -> None:
    """Make the folder of a split that is not done, or take up what was begun by the same plan."""
    plan_file = split.folder / PARTS / PLAN
    begun = json.loads(plan_file.read_text()) if plan_file.is_file() else None
    old = split.folder if overwrite else split.folder / PARTS
    if begun != split.plan and old.exists():
        (split.folder / INDEX).unlink(missing_ok=True)  # first: killed here, nothing looks finished
        shutil.rmtree(old)
    (split.folder / PARTS).mkdir(parents=True, exist_ok=True)
    write_whole(plan_file, json.dumps(split.plan).encode())


def refuse_nothing(split: Split) -> None:
    """Refuse to publish a split without a document, which training would refuse."""
    if has_documents(part_folders(split)):
        return
    share = split.plan["validation_share"]
    if share is None or split.name == "train":
        raise ValueError(f"{split.source.path}: no document in it has text for {split.name}")
    raise ValueError(
        f"{split.source.path}: none of its documents is for validation; raise --validation-share "
        f"from {share} (with --overwrite), or name files train... and validation..."
    )


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


def tasks_of(split: Split) -> list[Task]:
    """The parts of a split, done or not."""
    share = split.plan["validation_share"]
    return [
        Task(
            part=part,
            folder=folder,
            columns=split.source.columns,
            chosen=None if share is None else (split.name, share),
            shard_bytes=split.plan["shard_bytes"],
            compression=split.plan["compression"],
        )
        for part, folder in zip(split.parts, part_folders(split), strict=True)
    ]


def part_folders(split: Split) -> list[Path]:
    """Where the parts of a split are written before all are joined."""
    return [split.folder / PARTS / f"{number:06}" for number in range(len(split.parts))]


def describe(split: Split, summary: dict[str, Any]) -> str:
    """One line of statistics."""
    lengths = summary["document_tokens"]
    return (
        f"{split.source.name}/{split.name}: {summary['documents']} documents, "
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
    return task.bytes


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
