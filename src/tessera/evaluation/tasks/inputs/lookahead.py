"""What tasks read: whether it is there, its columns and its labels, before any job. No torch."""

from collections.abc import Iterator, Sequence
from hashlib import sha256

from tessera.config import mistake, to_plain
from tessera.evaluation.tasks.config import (
    Finetuned,
    LateInteraction,
    LinearProbe,
    MaskedLm,
    Recall,
    Search,
    Similarity,
    Task,
    TokenClassification,
    splits_of,
    texts_of,
)
from tessera.evaluation.tasks.inputs.labels import labelled
from tessera.evaluation.tasks.inputs.tables import COLUMNS, Column, look_at, read_columns


def fingerprint(task: Task) -> str:
    """Of all that a task reads.

    Raises:
        ValueError: something is not there, or lacks a column; names everything of which this is so.
    """
    seen: dict[str, str] = {}
    problems = [said for _, said in _looked_at(task, seen)]
    if isinstance(task, MaskedLm | Recall) and task.texts is None:
        if task.data is None or task.tokenizer is None:
            raise ValueError(
                "names no documents; give --config YAML, the phase whose validation documents "
                "are to be predicted, or `texts`, or `data` and `tokenizer`, in the suite"
            )
        seen["data"] = str(to_plain(task.data))
    if isinstance(task, Search) and (task.mteb or task.validation_mteb):
        from tessera.evaluation.tasks import benchmarks

        for named in [*task.mteb, *task.validation_mteb]:
            try:
                seen[f"mteb {named}"] = benchmarks.look_at(named)
            except (ValueError, OSError) as error:
                problems.append(mistake(error) or str(error))
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    return sha256(str(sorted(seen.items())).encode()).hexdigest()[:16]


def missing(task: Task) -> list[str]:
    """What a task reads that is not there or lacks a column, each begun with its key."""
    return [f"{key}: {said}" for key, said in _looked_at(task, {})]


def _looked_at(task: Task, seen: dict[str, str]) -> Iterator[tuple[str, str]]:
    """The keys of what cannot be read, with why; fingerprints of what can go into `seen`."""
    for key, where in splits_of(task).items():
        try:
            seen[f"{key} {where}"] = look_at(where, columns_of(task, key))
        except (ValueError, OSError) as error:
            yield key, mistake(error) or str(error)


def columns_of(task: Task, key: str) -> Sequence[Column]:
    """The columns that a split of a task must have."""
    if isinstance(task, MaskedLm | Recall):
        return [task.text]
    if isinstance(task, TokenClassification):
        return [task.words, task.labels]
    if isinstance(task, Finetuned):
        return texts_of(task)
    if isinstance(task, Similarity):
        return [task.text, task.pair, task.score]
    if isinstance(task, LinearProbe):
        return [task.text, *([task.pair] if task.pair else []), task.label]
    if key == "train" and isinstance(task, LateInteraction):
        # Pairs or a teacher's scores: the job sees which.
        return [("query_id", "query", "query-id", "anchor")]
    if key == "train" and isinstance(task, Search) and task.train_queries is not None:
        return COLUMNS["relevance"]
    return COLUMNS[key.rpartition(".")[2]]


def check_labels(task: Task) -> None:
    """Read every row of a task with labels, as its jobs will.

    Raises:
        ValueError: a row lacks a column or has a label that cannot be used; names file, row and
            column of the first of each kind.
    """
    if not isinstance(task, Finetuned | LinearProbe | Similarity):
        return
    read, problems = {}, []
    for key, where in splits_of(task).items():
        columns = [str(column) for column in columns_of(task, key)]
        kept = columns if isinstance(task, TokenClassification) else columns[-1:]
        try:
            read[key] = read_columns(where, columns, kept, task.limit)
        except (ValueError, OSError) as error:
            problems.append(mistake(error) or str(error))
    if problems:
        raise ValueError("; ".join(dict.fromkeys(problems)))
    labelled(task, read)
