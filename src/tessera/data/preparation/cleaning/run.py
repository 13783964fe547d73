"""Cleaning as a whole: stage after stage, and what came of it."""

import contextlib
import dataclasses
import functools
import itertools
import json
import shutil
import time
from collections.abc import Callable, Sequence
from typing import Any

from tessera.data.preparation import places
from tessera.data.preparation.cleaning import corpus as plans
from tessera.data.preparation.cleaning import stages
from tessera.data.preparation.cleaning.corpus import Corpus
from tessera.data.preparation.cleaning.report import describe, summarize
from tessera.data.preparation.cleaning.stages import JoinTask, MatchTask
from tessera.data.preparation.cleaning.work_folder import WorkFolder
from tessera.data.preparation.config import CleanConfig
from tessera.data.preparation.executors.executor import (
    Plan,
    fingerprint_of,
    log_folder,
    run,
    shared_folder,
)
from tessera.data.preparation.executors.local import Work
from tessera.data.preparation.notes import Notes
from tessera.data.preparation.progress_bar import progress_bar
from tessera.data.preparation.text_files import cut_into_parts, read_part
from tessera.paths import absolute, join

_DOCUMENTS_AT_ONCE = 1 << 24
"""Whose keys a process that matches them holds: about 0.5 GB."""


def clean(config: CleanConfig) -> int:
    """Clean what is not cleaned yet, and say what became of every document.

    Returns:
        The exit status.

    Raises:
        ValueError: something the user has to mend. Finished work stays.
    """
    started = time.monotonic()
    config = dataclasses.replace(config, out=absolute(places.expanded(config.out)))
    plans.check_filters(config)
    corpus = plans.corpus_of(config)
    plan = plans.plan_of(corpus, config)
    fingerprint = fingerprint_of(plan)
    if plans.is_done(config, plan, fingerprint):
        plans.tidy(config)
        print(f"{config.out} is up to date")
        return 0
    for source in corpus.inputs.values():
        source.check_first_records()
    base = shared_folder(config.out, config.work)
    stage = _Stages(config, WorkFolder(base.absolute() / "work" / fingerprint), fingerprint)
    evaluation_texts = _index_evaluation_texts(config, stage.folder)
    plans.begin(config, corpus, fingerprint)
    _run_stages(corpus, config, stage)
    summary = summarize(stage.folder, corpus.splits, evaluation_texts)
    content = json.dumps({**summary, "prepared_from": plan}, indent=2, ensure_ascii=False)
    places.write(join(config.out, plans.SUMMARY), content.encode())
    plans.tidy(config)
    shutil.rmtree(stage.folder.path)
    with contextlib.suppress(OSError):  # of another plan
        stage.folder.path.parent.rmdir()
    print("\n".join(describe(summary)))
    print(f"cleaned in {time.monotonic() - started:.0f} s ({config.executor.name}): {config.out}")
    return 0


class _Stages:
    """Runs one stage after the other, each with its bar."""

    def __init__(self, config: CleanConfig, folder: WorkFolder, fingerprint: str) -> None:
        self.folder = folder
        self._config = config.executor
        self._logs = log_folder(config.out, config.executor, fingerprint)

    def run(
        self,
        name: str,
        items: Sequence[Any],
        work: Work,
        finished: str | Callable[[], set[int]],
        weights: Sequence[int],
    ) -> None:
        """Do what is not done of a stage.

        Args:
            name: For the bar.
            items: One for each task.
            work: What to do with them.
            finished: Under which name the stage leaves records, or what says which items are done.
            weights: Bytes that each item reads.
        """
        if isinstance(finished, str):
            finished = functools.partial(self.folder.finished, finished)
        plan = Plan(
            items=items,
            work=work,
            finished=finished,
            logs=self._logs / name,
            weights=weights,
            preload=("tessera.data.preparation.cleaning.stages",),
        )
        with progress_bar(sum(weights), name) as bar:
            for done in run(plan, self._config):
                bar.update(done)


def _run_stages(corpus: Corpus, config: CleanConfig, stage: _Stages) -> None:
    folder, path = stage.folder, str(stage.folder.path)
    parts, weights = corpus.tasks, [task.part.bytes for task in corpus.tasks]
    filtering = stages.Filtering(
        work=path,
        filters={name: about.filters for name, about in config.sources.items()},
        against_words=config.against_words if config.against else 0,
        duplicates=config.duplicates,
    )
    stage.run("filtering", parts, filtering, stages.FILTERED, weights)
    passed = [folder.record(stages.FILTERED, task.number)["passed"] for task in parts]
    offsets = tuple(itertools.accumulate(passed, initial=0))[:-1]
    if config.duplicates.bands:
        _find_copies(config.duplicates.bands, sum(passed), offsets, stage)
    joins = {name: s.join for name, s in config.sources.items() if s.join is not None}
    shelves: dict[str, int] = {}
    for name, _, numbers in corpus.splits:
        shelves[name] = max(shelves.get(name, 1), len(numbers))
    writing = stages.Writing(
        work=path,
        offsets=offsets,
        copies=config.duplicates.bands > 0,
        shelves=shelves,
        joins=joins,
    )
    stage.run("writing", parts, writing, stages.WRITTEN, weights)
    tasks = _join_tasks(corpus, config, shelves)
    if tasks:
        joining = stages.Joining(work=path, joins=joins)
        each = [sum(weights) // len(tasks)] * len(tasks)
        stage.run("joining", tasks, joining, stages.JOINED, each)


def _find_copies(bands: int, documents: int, offsets: tuple[int, ...], stage: _Stages) -> None:
    folder, path = stage.folder, str(stage.folder.path)
    pieces = 1 + documents // _DOCUMENTS_AT_ONCE
    tasks = tuple(
        MatchTask(band=band, piece=piece, pieces=pieces)
        for band in range(bands)
        for piece in range(pieces)
    )

    def matched() -> set[int]:
        there = [folder.matches(task.band, task.piece).exists() for task in tasks]
        return {place for place, done in enumerate(there) if done}

    matching = stages.Matching(work=path, offsets=offsets)
    keys_bytes = 8 * documents
    each = [keys_bytes // pieces] * len(tasks)
    stage.run("matching", tasks, matching, matched, each)
    clustering = stages.Clustering(work=path)
    stage.run("clustering", [tasks], clustering, stages.CLUSTERED, [keys_bytes])


def _join_tasks(corpus: Corpus, config: CleanConfig, shelves: dict[str, int]) -> list[JoinTask]:
    tasks: list[JoinTask] = []
    for name, split, numbers in corpus.splits:
        if config.sources[name].join is None:
            continue
        below = f"{split}/" if split else ""
        tasks += [
            JoinTask(
                number=len(tasks) + shelf,
                shelf=shelf,
                parts=numbers,
                source=name,
                split=split,
                text=join(plans.text_folder(config, name), f"{below}{shelf:06}.jsonl.zst"),
            )
            for shelf in range(shelves[name])
        ]
    return tasks


def _index_evaluation_texts(config: CleanConfig, folder: WorkFolder) -> dict[str, dict[str, int]]:
    """Write the words of evaluation texts; returns how many texts and runs of words there are."""
    from tessera.data.preparation.cleaning.datatrove_shingles import index_runs

    facts: dict[str, dict[str, int]] = {}
    for name, about in config.against.items():
        texts: list[str] = []
        for source in plans.evaluation_inputs(about):
            files = source.found.splits[""]
            for part in cut_into_parts(files, source.root, config.part_size.value, source.reading):
                texts += [text for _, text in read_part(part, source.reading, Notes())]
        facts[name] = found = index_runs(folder.index, name, texts, config.against_words)
        if not found["runs"]:
            raise ValueError(
                f"against.{name}: none of its {len(texts)} texts has {config.against_words} words; "
                "name other columns, or a smaller against_words"
            )
    return facts
