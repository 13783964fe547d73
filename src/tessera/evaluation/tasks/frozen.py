"""What frozen features hold: a linear probe for classes, the cosine for rated similarity.

Features are the mean of a text's vectors after each layer. Nothing of the model is trained; the
layer, and the penalty of the probe, are those that are best on validation.
"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tessera.evaluation.jobs.records import Job, Outcome, Table
from tessera.evaluation.linear_probe import fitted
from tessera.evaluation.tasks.config import LinearProbe, Similarity, main_metric
from tessera.evaluation.tasks.inputs.labels import labelled
from tessera.evaluation.tasks.inputs.tables import Row, read_split
from tessera.evaluation.tasks.loading import check_finite, load_tokenizer
from tessera.evaluation.tasks.memory import halving
from tessera.evaluation.tasks.metrics import (
    classification_scores,
    regression_scores,
)

_BATCH = 64

Features = np.ndarray
"""(layers, n, D) float32; the first layer is the embeddings, the last what the encoder gives."""


def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Probe one model.

    Raises:
        ValueError: the data or the model cannot be used; names file and row.
    """
    task = job.task
    assert isinstance(task, LinearProbe | Similarity)
    encode = _encoder(job, task, device)
    notes: list[str] = []

    def features(texts: Sequence[Any]) -> Features:
        return halving(lambda batch: encode(texts, batch), _BATCH, notes)

    found = _similarity(task, features) if isinstance(task, Similarity) else _probe(task, features)
    return Outcome(
        scores=found.scores,
        validation=found.validation,
        split=found.split,
        tables=found.tables,
        notes=list(dict.fromkeys(notes)),
    )


def _probe(task: LinearProbe, features: Callable[[Sequence[Any]], Features]) -> Outcome:
    wanted = {"train": task.train, "validation": task.validation, "test": task.test}
    columns = [task.text, *([task.pair] if task.pair else []), task.label]
    rows = {
        split: read_split(where, columns, task.limit)
        for split, where in wanted.items()
        if where is not None
    }
    found = labelled(
        task, {split: {task.label: [r[task.label] for r in some]} for split, some in rows.items()}
    )
    labels = {split: np.array(numbers) for split, numbers in found.labels.items()}
    seen = {split: features(_texts(task, some)) for split, some in rows.items()}
    metric, split = main_metric(task), "test" if task.test is not None else "validation"
    chosen: list[tuple[float, float, dict[str, float], dict[str, float]]] = []
    for layer in range(len(seen["train"])):
        best: tuple[float, float, dict[str, float], dict[str, float]] | None = None
        models = fitted(seen["train"][layer], labels["train"], task.inverse_penalties)
        for penalty, classifier in zip(task.inverse_penalties, models, strict=True):
            scores = {
                name: classification_scores(
                    task.metrics, labels[name], classifier.predict(seen[name][layer])
                )
                for name in ("validation", split)
            }
            value = scores["validation"][metric]
            if best is None or value > best[0]:
                best = value, penalty, scores["validation"], scores[split]
        assert best is not None, "there is at least one penalty"
        chosen.append(best)
    top = max(range(len(chosen)), key=lambda layer: chosen[layer][0])
    names = _layer_names(task.layers, len(chosen))
    columns = ["layer", metric, "validation", "C"]
    table = Table(
        title="A linear probe on each layer",
        columns=columns,
        rows=[
            [name, scores[metric], value, f"{penalty:g}"]
            for name, (value, penalty, _, scores) in zip(names, chosen, strict=True)
        ],
        plot=[metric],
    )
    return Outcome(
        scores={**chosen[top][3], f"{metric}_of_the_last_layer": chosen[-1][3][metric]},
        validation=chosen[top][2],
        split=split,
        tables=[table],
    )


def _similarity(task: Similarity, features: Callable[[Sequence[Any]], Features]) -> Outcome:
    measured = {}
    for split, where in (("validation", task.validation), ("test", task.test)):
        if where is None:
            continue
        rows = read_split(where, [task.text, task.pair, task.score], task.limit)
        scores = {task.score: [row[task.score] for row in rows]}
        truth = np.array(labelled(task, {split: scores}).labels[split])
        texts = [str(row[column]) for column in (task.text, task.pair) for row in rows]
        both = features(texts)
        measured[split] = [_correlations(layer, truth) for layer in both]
    test = measured["test"]
    judge = measured.get("validation")
    top = len(test) - 1
    if judge is not None:
        top = max(range(len(judge)), key=lambda layer: judge[layer][0])
    names = _layer_names(task.layers, len(test))
    table = Table(
        title="Cosine and human ratings, after each layer",
        columns=["layer", "spearman", "mean taken off"],
        rows=[[name, *both] for name, both in zip(names, test, strict=True)],
        plot=["spearman", "mean taken off"],
    )
    validation = (judge or test)[top][0]
    return Outcome(
        scores={"spearman": test[top][0], "spearman_with_the_mean_taken_off": test[top][1]},
        validation={"spearman": validation},
        split="test",
        tables=[table],
    )


def _correlations(layer: np.ndarray, truth: np.ndarray) -> tuple[float, float]:
    """Spearman's of the cosine, plain and with the mean of all texts taken off first."""
    return (
        regression_scores(["spearman"], truth, _cosines(layer))["spearman"],
        regression_scores(["spearman"], truth, _cosines(layer - layer.mean(0)))["spearman"],
    )


def _cosines(vectors: np.ndarray) -> np.ndarray:
    """(n,) of (2n, D): the first half with the second."""
    norms = np.linalg.norm(vectors, axis=1, keepdims=True)
    one, other = np.split(vectors / np.maximum(norms, 1e-12), 2)
    cosines: np.ndarray = (one * other).sum(1)
    return cosines


def _texts(task: LinearProbe, rows: Sequence[Row]) -> list[Any]:
    if task.pair is None:
        return [str(row[task.text]) for row in rows]
    return [(str(row[task.text]), str(row[task.pair])) for row in rows]


def _layer_names(layers: str, count: int) -> list[str]:
    return ["last"] if layers == "last" else ["embeddings", *map(str, range(1, count))]


def _encoder(
    job: Job, task: LinearProbe | Similarity, device: str
) -> Callable[[Sequence[Any], int], Features]:
    """What gives the features of texts, so many at a time."""
    import torch
    from transformers import AutoModel

    tokenizer = load_tokenizer(job.model.folder)
    try:
        model: Any = AutoModel.from_pretrained(job.model.folder, attn_implementation="sdpa")
    except (ValueError, OSError) as error:
        raise ValueError(f"{job.model.source}: cannot be loaded: {error}") from error
    check_finite(job.model, model)
    model.to(device).eval()

    @torch.inference_mode()
    def encode(texts: Sequence[Any], batch: int) -> Features:
        encoded = tokenizer(list(texts), truncation=True, max_length=task.max_tokens)
        lengths = [len(ids) for ids in encoded["input_ids"]]
        order = np.argsort(lengths, kind="stable")
        found: Features | None = None
        for start in range(0, len(order), batch):
            some = order[start : start + batch]
            padded = tokenizer.pad(
                {name: [values[i] for i in some] for name, values in encoded.items()},
                return_tensors="pt",
            ).to(device)
            given = model(**padded, output_hidden_states=True)
            layers = [*given.hidden_states[:-1], given.last_hidden_state]
            if task.layers == "last":
                layers = layers[-1:]
            mask = padded["attention_mask"].unsqueeze(-1).float()
            means = torch.stack([(x.float() * mask).sum(1) / mask.sum(1) for x in layers])
            if found is None:
                found = np.empty((len(layers), len(texts), means.size(2)), np.float32)
            found[:, some] = means.cpu().numpy()
        assert found is not None, "a split has rows"
        return found

    return encode
