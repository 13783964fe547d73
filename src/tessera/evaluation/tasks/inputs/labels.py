"""Labels of a task's rows: checked, and as numbers. Imports no torch."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from tessera.evaluation.tasks.config import (
    Finetuned,
    LinearProbe,
    Regression,
    Similarity,
    TokenClassification,
    splits_of,
)
from tessera.evaluation.tasks.metrics import refuse_metrics

Values = Mapping[str, Sequence[Any]]
"""Of one split: what its rows have, by column."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """The labels of all splits."""

    classes: list[Any]
    """In order: numbers by size, text by letters. None for a task on numbers."""
    labels: dict[str, list[Any]]
    """By split, one a row: the number of a class, a list of these for words, or a number."""


def labelled(task: Finetuned | LinearProbe | Similarity, splits: Mapping[str, Values]) -> Labelled:
    """The labels of rows that are all to be used.

    Args:
        task: says which columns hold labels.
        splits: by `train`, `validation` and `test`.

    Raises:
        ValueError: naming file, row and column of the first label of each split that cannot be
            used, and how many more there are.
    """
    where = splits_of(task)
    if isinstance(task, Regression | Similarity):
        column = task.label if isinstance(task, Regression) else task.score
        _refuse(_faults(where, splits, column, lambda row, at: _no_number(row[column], at)))
        numbers = {split: [float(v) for v in rows[column]] for split, rows in splits.items()}
        return Labelled(classes=[], labels=numbers)
    column = task.labels if isinstance(task, TokenClassification) else task.label

    def labels_of(row: Mapping[str, Any]) -> list[Any]:
        some = row[column] if isinstance(task, TokenClassification) else [row[column]]
        return list(map(str, some)) if isinstance(task, LinearProbe) else some

    def unusable(row: Mapping[str, Any], at: str) -> str | None:
        if isinstance(task, TokenClassification):
            return _no_words(task, row, at)
        return _no_class(row[column], at)

    others = {split: rows for split, rows in splits.items() if split != "train"}
    if faults := list(_faults(where, {"train": splits["train"]}, column, unusable)):
        _refuse([*faults, *_faults(where, others, column, unusable)])
    trained = (label for row in _rows(splits["train"]) for label in labels_of(row))
    classes = _classes(task.train, column, trained)
    if not isinstance(task, TokenClassification):
        refuse_metrics(task.metrics, len(classes), task.train)
    known = {name: number for number, name in enumerate(classes)}
    said = ", ".join(map(str, classes[:8])) + (", ..." if len(classes) > 8 else "")

    def stranger(row: Mapping[str, Any], at: str) -> str | None:
        unknown = next((label for label in labels_of(row) if label not in known), None)
        if unknown is None:
            return None
        return (
            f"{at} is {unknown!r}, a label that train has not; {task.train} has {said}: mend the "
            "row, or add rows of this label to train"
        )

    _refuse(_faults(where, others, column, lambda row, at: unusable(row, at) or stranger(row, at)))
    labels: dict[str, list[Any]] = {
        split: [[known[label] for label in labels_of(row)] for row in _rows(values)]
        for split, values in splits.items()
    }
    if not isinstance(task, TokenClassification):
        labels = {split: [one for (one,) in rows] for split, rows in labels.items()}
    return Labelled(classes=classes, labels=labels)


def _rows(values: Values) -> Iterator[Mapping[str, Any]]:
    for row in zip(*values.values(), strict=True):
        yield dict(zip(values, row, strict=True))


def _faults(
    where: Mapping[str, str],
    splits: Mapping[str, Values],
    column: str,
    fault: Callable[[Mapping[str, Any], str], str | None],
) -> Iterator[str]:
    """The first fault of each split, and how many rows more have one."""
    for split, rows in splits.items():
        first, more = None, 0
        for number, row in enumerate(_rows(rows)):
            said = fault(row, f"{where[split]}: row {number}, column '{column}'")
            first, more = (said, 0) if first is None else (first, more + (said is not None))
        if first is not None:
            rest = f" (and {more} rows more of this file likewise)" if more else ""
            yield first + rest


def _refuse(faults: Iterable[str]) -> None:
    if said := list(faults):
        raise ValueError("; ".join(dict.fromkeys(said)))


def _no_class(value: Any, at: str) -> str | None:
    if isinstance(value, str):
        return None if value.strip() else f"{at} is empty: give the row a label, or remove it"
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return None
    return f"{at} is {value!r:.60}, and labels are text or whole numbers: mend it"


def _no_number(value: Any, at: str) -> str | None:
    if isinstance(value, str) and not value.strip():
        return f"{at} is empty: give the row a number, or remove it"
    try:
        is_number = math.isfinite(float(value))
    except (TypeError, ValueError):
        is_number = False
    return None if is_number else f"{at} is {value!r:.60}, where a number is needed: mend it"


def _no_words(task: TokenClassification, row: Mapping[str, Any], at: str) -> str | None:
    words, labels = row[task.words], row[task.labels]
    if not isinstance(words, list) or not isinstance(labels, list):
        return f"{at}: no lists in '{task.words}' and '{task.labels}': one label for each word"
    if len(words) != len(labels):
        return f"{at}: {len(words)} words, but {len(labels)} labels: one label for each word"
    faults = (_no_class(v, f"{at}, place {place}") for place, v in enumerate(labels))
    return next((said for said in faults if said is not None), None)


def _classes(where: str, column: str, labels: Iterator[Any]) -> list[Any]:
    found = set(labels)
    if len(found) < 2:
        raise ValueError(
            f"{where}: column '{column}' has only the label {next(iter(found), None)!r}; two are "
            "needed"
        )
    kinds = {type(label) for label in found}
    return sorted(found, key=None if len(kinds) == 1 else str)
