"""Sets of queries, documents and relevance: one's own files, or mteb's out of the hub's cache.

mteb's own tasks, evaluators and search score them, for one vector a text or one a token.
"""

import contextlib
import copy
import logging
import re
import statistics
import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.evaluation.jobs.records import Outcome, Table
from tessera.evaluation.tasks.config import SEARCHED, Search
from tessera.evaluation.tasks.inputs.tables import COLUMNS, hub_folder, read_split

SCORES = {
    "ndcg_at_10": "nDCG@10",
    "recall_at_10": "recall@10",
    "mrr_at_10": "MRR@10",
    "map_at_100": "MAP@100",
}
"""Metrics as mteb calls them, and as they are written."""
_FORM = re.compile(r"([^/:]+)(?:/([^/:]+))?(?::([^/:]+))?")


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """What is scored as one: a set of one's own, or a task of mteb with all its parts."""

    name: str
    parts: list[Any]
    """Tasks of mteb; more than one if it is an aggregate, whose score is their mean."""


def look_at(named: str) -> str:
    """The revisions of a task of mteb, all of whose data sets are there. Imports no torch.

    Args:
        named: `NAME`, `NAME/SUBSET`, `NAME:SPLIT` or both.

    Raises:
        ValueError: there is no such task, or a data set of it is not on this machine.
    """
    found = _mteb(named)
    return " ".join(str(part.metadata.dataset["revision"]) for part in found.parts)


def open_benchmarks(task: Search, notes: list[str]) -> dict[str, list[Benchmark]]:
    """What a task asks, read: `test`, `validation` or both.

    Raises:
        ValueError: something is missing or cannot be read; names it.
    """
    opened: dict[str, list[Benchmark]] = {}
    if task.queries is not None:
        own = {key: str(getattr(task, key)) for key in SEARCHED}
        opened["test"] = [Benchmark(name="test", parts=[_own(own, notes)])]
    elif task.mteb:
        opened["test"] = [_loaded(_mteb(named)) for named in task.mteb]
    if task.validation is not None:
        opened["validation"] = [
            Benchmark(name="validation", parts=[_own(task.validation, notes)]),
        ]
    elif task.validation_mteb:
        opened["validation"] = [_loaded(_mteb(named)) for named in task.validation_mteb]
    return opened


def judged(
    opened: Mapping[str, Sequence[Benchmark]], model: Any, batch: int, device: str
) -> Outcome:
    """The scores of a model; means over benchmarks.

    Args:
        opened: from `open_benchmarks`.
        model: of sentence-transformers, or mteb's around one.
        batch: texts encoded at a time.
        device: `cpu`, or `cuda`, where texts are encoded in bfloat16, as models are trained.
    """
    scores: dict[str, dict[str, float]] = {}
    tables = []
    for split, benchmarks in opened.items():
        found = {one.name: _scored(one, model, batch, device) for one in benchmarks}
        scores[split] = _mean(list(found.values()))
        if len(found) > 1:
            rows = [[name, *values.values()] for name, values in found.items()]
            title = f"Each set of {split}"
            tables.append(Table(title=title, columns=["set", *SCORES.values()], rows=rows))
    reported = "test" if "test" in scores else "validation"
    return Outcome(
        scores=scores[reported],
        validation=scores.get("validation", scores[reported]),
        split=reported,
        tables=tables,
    )


def _mean(scores: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: statistics.fmean(one[name] for one in scores) for name in SCORES}


# ---- mteb's


def _mteb(named: str) -> Benchmark:
    """A task of mteb whose data are read out of the hub's cache, at the revision mteb names."""
    import mteb
    from mteb.abstasks.aggregated_task import AbsTaskAggregate
    from mteb.abstasks.retrieval import AbsTaskRetrieval

    match = _FORM.fullmatch(named)
    if match is None:
        raise ValueError(f"mteb: '{named}' is written NAME, NAME/SUBSET, NAME:SPLIT or both")
    name, subset, split = match.groups()
    try:
        whole = mteb.get_task(name)
    except KeyError as error:
        said = str(error.args[0]).removeprefix("KeyError: ")
        raise ValueError(f"mteb: there is no such task: {said}") from None
    whole = _with_subset(named, whole, subset)
    together = list(whole.tasks) if isinstance(whole, AbsTaskAggregate) else [whole]
    parts = [copy.copy(part) for part in together]  # mteb keeps those of an aggregate for all
    for part in parts:
        if not isinstance(part, AbsTaskRetrieval):
            raise ValueError(f"mteb: '{named}' is no retrieval, but {part.metadata.type}")
        asked = split or ("test" if "test" in part.eval_splits else part.eval_splits[0])
        if asked not in part.metadata.eval_splits:
            known = ", ".join(part.metadata.eval_splits)
            raise ValueError(f"mteb: '{name}' has no split '{asked}'; it has {known}")
        part.filter_eval_splits(eval_splits=[asked])
        where: dict[str, Any] = dict(part.metadata.dataset)
        where["path"] = str(hub_folder(where["path"], "dataset", where["revision"]))
        part.metadata = part.metadata.model_copy(update={"dataset": where})
    return Benchmark(name=named, parts=parts)


def _with_subset(named: str, task: Any, subset: str | None) -> Any:
    if subset is None:
        return task
    if subset not in task.hf_subsets:
        raise ValueError(f"mteb: '{named}': its subsets are {', '.join(task.hf_subsets)}")
    return task.filter_languages(None, hf_subsets=[subset])


def _loaded(benchmark: Benchmark) -> Benchmark:
    """The same with its data read: what cannot be read is found out before anything is trained."""
    from datasets.exceptions import DatasetGenerationError

    for part in benchmark.parts:
        try:
            part.load_data()
        except (ValueError, KeyError, OSError, DatasetGenerationError) as error:
            said = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise ValueError(
                f"mteb {benchmark.name}: {part.metadata.dataset['path']} cannot be read: {said}"
            ) from error
    return benchmark


def _scored(benchmark: Benchmark, model: Any, batch: int, device: str) -> dict[str, float]:
    import mteb
    import torch

    found = []
    for part in benchmark.parts:
        cuda = device == "cuda"
        with torch.autocast("cuda", torch.bfloat16) if cuda else contextlib.nullcontext():
            results = mteb.evaluate(
                model,
                part,
                cache=None,
                encode_kwargs={"batch_size": batch, "show_progress_bar": False},
                show_progress_bar=False,
            )
        (split,) = part.eval_splits
        found.append(_mean(results.task_results[0].scores[split]))
    return _mean(found)


def quiet() -> None:
    """Let the libraries of search say errors alone."""
    import datasets
    from sentence_transformers.base.model_card import BaseModelCardData

    datasets.disable_progress_bars()
    warnings.filterwarnings("ignore", category=FutureWarning, module="mteb")
    for name in ("mteb", "sentence_transformers", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
    # Examples for a model card, with a bar that cannot be turned off.
    setattr(BaseModelCardData, "set_widget_examples", lambda self, dataset: None)  # noqa: B010


# ---- one's own


def _own(where: Mapping[str, str], notes: list[str]) -> Any:
    """Queries, documents and what is relevant, as a task of mteb."""
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

    queries, documents, relevant = _read(where, notes)

    class OwnRetrieval(AbsTaskRetrieval):
        metadata = TaskMetadata(
            name="OwnRetrieval",
            description="Queries and documents of one's own.",
            dataset={"path": "own/files", "revision": "1"},
            type="Retrieval",
            category="t2t",
            eval_splits=["test"],
            eval_langs=["eng-Latn"],
            main_score="ndcg_at_10",
        )

        def load_data(self, num_proc: int | None = None, **kwargs: Any) -> None:
            self.dataset = {
                "default": {
                    "test": {
                        "queries": Dataset.from_list(queries),
                        "corpus": Dataset.from_list(documents),
                        "relevant_docs": relevant,
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    return OwnRetrieval()


def _read(
    where: Mapping[str, str], notes: list[str]
) -> tuple[list[dict[str, str]], list[dict[str, str]], dict[str, dict[str, int]]]:
    queries, documents = (read_split(where[key], COLUMNS[key]) for key in SEARCHED[:2])
    known = []
    for key, rows in (("queries", queries), ("documents", documents)):
        names = Counter(str(row["id"]) for row in rows)
        name, times = names.most_common(1)[0]
        if times > 1:
            raise ValueError(f"{where[key]}: {times} rows have the id '{name}'")
        known.append(set(names))
    relevant: dict[str, dict[str, int]] = {}
    strangers = []
    for number, row in enumerate(read_split(where["relevance"], COLUMNS["relevance"])):
        query, document = str(row["query"]), str(row["document"])
        score = _whole(where["relevance"], number, row.get("score", 1))
        if query not in known[0] or document not in known[1]:
            strangers.append(document if query in known[0] else query)
        elif score > 0:
            relevant.setdefault(query, {})[document] = score
    if strangers:
        notes.append(
            f"{where['relevance']}: {len(strangers)} lines name queries or documents that are not "
            f"there, the first '{strangers[0]}'"
        )
    if not relevant:
        raise ValueError(f"{where['relevance']}: names no query and document that are there")
    silent = len(known[0] - set(relevant))
    if silent:
        notes.append(f"{where['queries']}: {silent} queries without a relevant document, left out")
    return (
        [{"id": str(row["id"]), "text": str(row["text"])} for row in queries],
        [
            {"id": str(row["id"]), "title": str(row.get("title") or ""), "text": str(row["text"])}
            for row in documents
        ],
        relevant,
    )


def _whole(where: str, number: int, value: Any) -> int:
    try:
        if float(value) == int(float(value)):
            return int(float(value))
    except (TypeError, ValueError, OverflowError):
        pass
    raise ValueError(f"{where}: row {number} has the score {value!r}; scores are whole numbers")
