"""Text to shards: what there is to make, making what is missing, publishing what is complete."""

import dataclasses
import os
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tessera.data.preparation import places
from tessera.data.preparation.config import SourceConfig, TokenizeConfig
from tessera.data.preparation.executors.executor import Plan, fingerprint_of, log_folder, run
from tessera.data.preparation.formats.records import Reading
from tessera.data.preparation.inputs import Input, input_of, refuse_output_inside
from tessera.data.preparation.mds_writer import compressor
from tessera.data.preparation.places import File
from tessera.data.preparation.progress_bar import progress_bar
from tessera.data.preparation.shard_folders import ShardFolder, shard_folder
from tessera.data.preparation.text_files import Part, cut_into_parts
from tessera.data.preparation.tokenizing import Task, Tokenizing
from tessera.paths import absolute, join
from tessera.tokenizer import Tokenizer, load_tokenizer

SPLITS = ("train", "validation")


@dataclass(frozen=True, kw_only=True)
class Split:
    """One folder of shards to make."""

    source: Input
    name: str
    folder: ShardFolder
    parts: tuple[Part, ...]
    plan: dict[str, Any]
    """What decides the result; finished work of another one is not replaced unasked."""

    @property
    def chosen_by_hash(self) -> bool:
        """Whether it shares its documents with another split of the source."""
        return self.plan["validation_share"] is not None


def make_shards(config: TokenizeConfig) -> int:
    """Plan, work through the parts that are missing, publish every split that is complete.

    Returns:
        The exit status.

    Raises:
        ValueError: something the user has to mend. Finished work stays.
    """
    started = time.monotonic()
    compressor(config.compression)
    name = config.tokenizer or join(config.out, "tokenizer")
    tokenizer = load_tokenizer(places.expanded(name))
    splits = [s for s in plan_splits(config, tokenizer) if not is_done(s, config.overwrite)]
    if not splits:
        print("nothing to do")
        return 0
    for source in {split.source.name: split.source for split in splits}.values():
        source.check_first_records()
    for split in splits:
        split.folder.begin(split.plan, overwrite=config.overwrite)
    plan = plan_of_tasks(splits, config, tokenizer)
    with progress_bar(sum(plan.weights), "tokenizing") as bar:
        for finished_bytes in run(plan, config.executor):
            bar.update(finished_bytes)
    for split in splits:
        refuse_nothing(split)
    for split in splits:
        about = config.sources[split.source.name]
        summary = split.folder.publish(
            len(split.parts),
            vocab_size=tokenizer.size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            prepared_from=split.plan,
            more=provenance(split, about),
        )
        print(describe(split, summary))
    seconds = time.monotonic() - started
    print(f"{sum(plan.weights) / 1e6:.1f} MB in {seconds:.0f} s ({config.executor.name})")
    return 0


# ---- what there is to do


def plan_splits(config: TokenizeConfig, tokenizer: Tokenizer) -> list[Split]:
    """Every folder of shards that the sources ask for."""
    if not config.sources:
        raise ValueError(
            f"no input: name sources, or put them into {Path(config.out) / 'text'} "
            "(data_prep/harvest.py does so for the demo)"
        )
    splits = []
    for name, about in config.sources.items():
        source = input_of(name, about, ignore_split_names=config.ignore_split_names)
        refuse_output_inside(source.path, f"{places.expanded(config.out)}/{name}")
        files = source.found.splits
        cut = {
            split: cut_into_parts(chosen, source.root, config.part_size.value, source.reading)
            for split, chosen in files.items()
        }
        for split in SPLITS if "" in files else files:
            together = "" if "" in files else split
            chosen, parts = files[together], cut[together]
            splits.append(
                Split(
                    source=source,
                    name=split,
                    folder=shard_folder(f"{places.expanded(config.out)}/{name}/{split}"),
                    parts=tuple(parts),
                    plan=plan_of_split(chosen, source.reading, config, tokenizer, "" in files),
                )
            )
    return splits


def plan_of_split(
    files: list[File], reading: Reading, config: TokenizeConfig, tokenizer: Tokenizer, shared: bool
) -> dict[str, Any]:
    """What decides the shards of a split. Defaults that came later are left out of it."""
    later = {"encoding": reading.encoding, "quoting": reading.quoting}
    defaults = {"encoding": "utf-8", "quoting": None}
    return {
        "files": [[file.name, file.bytes, file.changed] for file in files],
        "validation_share": config.validation_share if shared else None,
        "text_column": reading.text,
        "id_column": reading.id,
        "shard_bytes": config.shard_size.value,
        "part_bytes": config.part_size.value,
        "compression": config.compression,
        "tokenizer": tokenizer.fingerprint,
        **{key: value for key, value in later.items() if value != defaults[key]},
    }


def is_done(split: Split, overwrite: bool) -> bool:
    """Whether a split is finished; refuses a folder that holds something else. Begins nothing."""
    folder = split.folder
    previous = folder.finished_plan()
    if previous is not None:
        if previous == split.plan:
            print(f"{folder.address} is up to date")
            folder.clear_parts()
            return True
    elif (begun := folder.begun_plan()) is not None:
        previous = begun if folder.finished_parts() else None
    elif folder.holds_files_of_others():
        previous = {}
    if previous not in (None, split.plan) and not overwrite:
        raise ValueError(f"{folder.address} {why_refused(previous or {}, split.plan)}")
    return False


def why_refused(previous: dict[str, Any], plan: dict[str, Any]) -> str:
    """How the contents of a folder differ from what would be written there."""
    cure = "choose another --out, or replace them with --overwrite"
    if not previous:
        return f"holds files that this script did not write; {cure}"
    keys = [*plan, *(key for key in previous if key not in plan)]
    differing = [key for key in keys if previous.get(key) != plan.get(key)]
    if "tokenizer" in differing:
        return (
            f"holds shards of another tokenizer ({previous.get('tokenizer')}, not "
            f"{plan['tokenizer']}); one folder has one tokenizer: {cure}"
        )
    return f"was prepared with other {', '.join(differing)}; {cure}"


def plan_of_tasks(splits: list[Split], config: TokenizeConfig, tokenizer: Tokenizer) -> Plan:
    """The parts of all splits, done or not; one that feeds two splits is one task."""
    shared: dict[tuple[str, str], list[Split]] = {}
    for split in splits:
        shared.setdefault((split.source.name, "" if split.chosen_by_hash else split.name), [])
        shared[split.source.name, "" if split.chosen_by_hash else split.name].append(split)
    tasks = [
        Task(
            part=dataclasses.replace(part, root=absolute(part.root or ".")),
            number=number,
            folders=tuple((split.name, absolute(split.folder.address)) for split in together),
            validation_share=together[0].plan["validation_share"],
            reading=together[0].source.reading,
            shard_bytes=together[0].plan["shard_bytes"],
            compression=together[0].plan["compression"],
        )
        for together in shared.values()
        for number, part in enumerate(together[0].parts)
    ]
    folders = {absolute(split.folder.address): split.folder for split in splits}

    def finished() -> set[int]:
        whole = {address: folder.finished_parts() for address, folder in folders.items()}
        return {
            index
            for index, task in enumerate(tasks)
            if all(task.number in whole[address] for _, address in task.folders)
        }

    fingerprint = fingerprint_of([[split.folder.address, split.plan] for split in splits])
    return Plan(
        items=tasks,
        work=Tokenizing(tokenizer=_absolute_if_here(tokenizer.name)),
        finished=finished,
        logs=log_folder(config.out, config.executor, fingerprint),
        weights=[task.bytes for task in tasks],
        preload=("tessera.data.preparation.tokenizing",),
    )


def _absolute_if_here(name: str) -> str:
    return os.path.abspath(name) if os.path.isdir(name) else name


# ---- what was done


def refuse_nothing(split: Split) -> None:
    """Refuse to publish a split without a document, which training would refuse."""
    if split.folder.has_documents(len(split.parts)):
        return
    share = split.plan["validation_share"]
    if share is None or split.name == "train":
        raise ValueError(f"{split.source.path}: no document in it has text for {split.name}")
    raise ValueError(
        f"{split.source.path}: none of its documents is for validation; raise --validation-share "
        f"from {share} (with --overwrite), or name files train... and validation..."
    )


def provenance(split: Split, about: SourceConfig) -> dict[str, Any]:
    """What `tessera.json` says beside counts and plan: what was left out, and on what terms."""
    left_out = {why: len(names) for why, names in split.source.found.left_out.items()}
    known = {"left_out": left_out, "licence": about.licence, "published_tokens": about.tokens}
    return {key: value for key, value in known.items() if value}


def describe(split: Split, summary: dict[str, Any]) -> str:
    """One line of statistics, and one for everything that was noticed on the way."""
    lengths = summary["document_tokens"]
    line = (
        f"{split.source.name}/{split.name}: {summary['documents']} documents, "
        f"{summary['tokens']} tokens, {summary['shards']} shards; tokens per document: "
        + ", ".join(f"{name} {value}" for name, value in lengths.items())
        + f"; {summary['empty_documents']} empty left out"
    )
    noted = summary.get("noted", {})
    noted_lines = (
        f"  {count} {what}; the first is {place}" for what, (count, place) in noted.items()
    )
    return "\n".join([line, *noted_lines])
