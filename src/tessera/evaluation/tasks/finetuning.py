"""Fine-tuning on labelled texts and words, by transformers' Trainer.

Validation is asked at intervals; the weights of its best answer are kept, and give the scores.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from tessera.batch import IGNORED
from tessera.evaluation.jobs.records import Job, Outcome
from tessera.evaluation.tasks.config import (
    Classification,
    Finetuned,
    Regression,
    TokenClassification,
    main_metric,
    texts_of,
)
from tessera.evaluation.tasks.inputs.labels import labelled
from tessera.evaluation.tasks.inputs.tables import Row, read_split
from tessera.evaluation.tasks.loading import load_tokenizer, load_with_head
from tessera.evaluation.tasks.memory import halving
from tessera.evaluation.tasks.metrics import (
    classification_scores,
    regression_scores,
    word_scores,
)

Example = dict[str, Any]


@dataclass(frozen=True, kw_only=True)
class Split:
    """Tokenised rows, as the Trainer takes them."""

    examples: list[Example]
    cut_off: np.ndarray
    """Classes of words beyond the longest text: counted as wrong."""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """A task's splits, and what its head predicts."""

    splits: dict[str, Split]
    names: list[str]
    """Of the classes, in order; none for numbers."""
    scores: Callable[[np.ndarray, np.ndarray, np.ndarray], dict[str, float]]
    """(logits, labels, classes cut off) to scores."""


def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Fine-tune one model at one point of the grid, and score it.

    Args:
        job: of a task that is fine-tuned.
        device: `cpu` or `cuda`.
        scratch: a folder for what is needed meanwhile.
        kept: where the trained model goes, if it is wanted.

    Raises:
        ValueError: the data or the model cannot be used; names file and row.
    """
    task = job.task
    assert isinstance(task, Finetuned)
    tokenizer = load_tokenizer(job.model.folder)
    prepared = (
        _words(task, tokenizer)
        if isinstance(task, TokenClassification)
        else _texts(task, tokenizer)
    )
    notes: list[str] = []

    def attempt(microbatch: int) -> Outcome:
        return _train(job, task, tokenizer, prepared, microbatch, device, scratch, kept)

    outcome = halving(attempt, task.training.batch, notes)
    return Outcome(
        scores=outcome.scores,
        validation=outcome.validation,
        split=outcome.split,
        tables=outcome.tables,
        notes=[*notes, *outcome.notes],
    )


def _train(
    job: Job,
    task: Finetuned,
    tokenizer: Any,
    prepared: Prepared,
    microbatch: int,
    device: str,
    scratch: Path,
    kept: Path | None,
) -> Outcome:
    import transformers

    transformers.set_seed(job.seed)
    kind: Literal["sequence", "token"] = (
        "token" if isinstance(task, TokenClassification) else "sequence"
    )
    model = load_with_head(job.model, kind, max(1, len(prepared.names)))
    if prepared.names:
        model.config.id2label = dict(enumerate(prepared.names))
        model.config.label2id = {name: number for number, name in enumerate(prepared.names)}
    settings = task.training
    steps_an_epoch = math.ceil(len(prepared.splits["train"].examples) / settings.batch)
    steps = steps_an_epoch * int(job.point["epochs"])
    every = steps_an_epoch if settings.evaluations is None else steps // settings.evaluations
    every = max(1, min(every, steps))
    metric = main_metric(task)
    asked = "validation"

    def scores(predicted: Any) -> dict[str, float]:
        return prepared.scores(
            predicted.predictions, predicted.label_ids, prepared.splits[asked].cut_off
        )

    arguments = transformers.TrainingArguments(
        output_dir=str(scratch / "trainer"),
        learning_rate=job.point["lr"],
        weight_decay=job.point["weight_decay"],
        max_steps=steps,
        per_device_train_batch_size=microbatch,
        gradient_accumulation_steps=max(1, settings.batch // microbatch),
        per_device_eval_batch_size=microbatch,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_epsilon=settings.eps,
        warmup_steps=round(steps * settings.warmup),
        lr_scheduler_type="linear",
        eval_strategy="steps",
        eval_steps=every,
        save_strategy="steps",
        save_steps=every,
        save_total_limit=1,
        save_only_model=True,
        load_best_model_at_end=True,
        metric_for_best_model=metric,
        greater_is_better=True,
        seed=job.seed,
        data_seed=job.seed,
        bf16=device == "cuda" and not isinstance(task, Regression),
        use_cpu=device == "cpu",
        dataloader_pin_memory=device == "cuda",
        report_to=[],
        disable_tqdm=True,
        logging_strategy="no",
    )
    make: Any = (
        transformers.DataCollatorForTokenClassification
        if kind == "token"
        else transformers.DataCollatorWithPadding
    )
    trainer = transformers.Trainer(
        model=model,
        args=arguments,
        train_dataset=prepared.splits["train"].examples,  # type: ignore[arg-type]
        eval_dataset=prepared.splits["validation"].examples,  # type: ignore[arg-type]
        data_collator=make(tokenizer),
        compute_metrics=scores,
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    validation = _asked(trainer, prepared.splits["validation"])
    reported, split = validation, "validation"
    if "test" in prepared.splits:
        asked = "test"
        reported, split = _asked(trainer, prepared.splits["test"]), "test"
    if kept is not None:
        model.save_pretrained(str(kept))  # the Trainer's own leaves training_args.bin too
        tokenizer.save_pretrained(str(kept))
    return Outcome(scores=reported, validation=validation, split=split, notes=_notes(prepared))


def _asked(trainer: Any, split: Split) -> dict[str, float]:
    found = trainer.evaluate(split.examples)
    skipped = (
        "loss",
        "runtime",
        "samples_per_second",
        "steps_per_second",
        "model_preparation_time",
    )
    named = {name.removeprefix("eval_"): value for name, value in found.items()}
    scores = {n: float(v) for n, v in named.items() if n not in skipped and n != "epoch"}
    if not math.isfinite(named["loss"]):
        raise ValueError("the loss is not finite after training: lower training.lr")
    return scores


def _notes(prepared: Prepared) -> list[str]:
    return [
        f"{split.cut_off.size} words of {name} lie beyond max_tokens, and count as wrong"
        for name, split in prepared.splits.items()
        if split.cut_off.size and name != "train"
    ]


# ---- texts


def _texts(task: Classification | Regression, tokenizer: Any) -> Prepared:
    rows = _rows(task, texts_of(task))
    nothing = np.zeros(0, dtype=np.int64)
    found = labelled(task, _columns(rows, [task.label]))
    labels = found.labels
    if isinstance(task, Classification):

        def scores(logits: np.ndarray, truth: np.ndarray, _: np.ndarray) -> dict[str, float]:
            return classification_scores(task.metrics, truth, logits.argmax(-1))
    else:
        values = found.labels
        # Correlations do not see the scale; a head that begins at 0 learns the standard one sooner.
        mean, scale = float(np.mean(values["train"])), float(np.std(values["train"])) or 1.0
        labels = {
            split: [(value - mean) / scale for value in some] for split, some in values.items()
        }

        def scores(logits: np.ndarray, truth: np.ndarray, _: np.ndarray) -> dict[str, float]:
            return regression_scores(task.metrics, truth, logits.reshape(-1))

    splits = {
        split: Split(examples=_encoded(task, tokenizer, some, labels[split]), cut_off=nothing)
        for split, some in rows.items()
    }
    return Prepared(splits=splits, names=list(map(str, found.classes)), scores=scores)


def _encoded(
    task: Classification | Regression, tokenizer: Any, rows: Sequence[Row], labels: Sequence[Any]
) -> list[Example]:
    texts, pairs = (
        [" ".join(str(row[column]) for column in name.split("+")) for row in rows] if name else None
        for name in (task.text, task.pair)
    )
    encoded = tokenizer(texts, pairs, truncation=True, max_length=task.max_tokens)
    return [
        {**{name: encoded[name][place] for name in encoded}, "labels": label}
        for place, label in enumerate(labels)
    ]


# ---- words


def _words(task: TokenClassification, tokenizer: Any) -> Prepared:
    rows = _rows(task, [task.words, task.labels])
    found = labelled(task, _columns(rows, [task.words, task.labels]))
    outside = found.classes.index(task.outside) if task.outside in found.classes else None

    def scores(logits: np.ndarray, labels: np.ndarray, cut_off: np.ndarray) -> dict[str, float]:
        asked = labels != IGNORED
        truth = np.concatenate([labels[asked], cut_off])
        predicted = np.concatenate([logits.argmax(-1)[asked], np.full(cut_off.size, -1)])
        return word_scores(task.metrics, truth, predicted, outside)

    splits = {
        split: _aligned(
            tokenizer,
            [list(map(str, row[task.words])) for row in some],
            found.labels[split],
            task.max_tokens,
        )
        for split, some in rows.items()
    }
    return Prepared(splits=splits, names=list(map(str, found.classes)), scores=scores)


def _aligned(
    tokenizer: Any, texts: Sequence[list[str]], labels: Sequence[list[int]], max_tokens: int
) -> Split:
    """Words joined by spaces, tokenised as running text; a label at the first token of each."""
    joined = [" ".join(words) for words in texts]
    encoded = tokenizer(joined, truncation=True, max_length=max_tokens, return_offsets_mapping=True)
    examples, cut_off = [], []
    for place, (words, numbers) in enumerate(zip(texts, labels, strict=True)):
        ends = np.cumsum([len(word) + 1 for word in words])
        at = np.full(len(encoded["input_ids"][place]), IGNORED)
        seen: set[int] = set()
        for token, (start, end) in enumerate(encoded["offset_mapping"][place]):
            if end <= start:
                continue
            # A token may begin with the space before its word: its last character tells the word.
            word = int(np.searchsorted(ends, end - 1, side="right"))
            if word < len(words) and word not in seen:
                seen.add(word)
                at[token] = numbers[word]
        cut_off += [numbers[word] for word in range(len(words)) if word not in seen]
        features = {n: encoded[n][place] for n in encoded if n != "offset_mapping"}
        examples.append({**features, "labels": at.tolist()})
    return Split(examples=examples, cut_off=np.array(cut_off, dtype=np.int64))


# ---- rows


def _rows(task: Finetuned, columns: Sequence[str]) -> dict[str, list[Row]]:
    wanted = {"train": task.train, "validation": task.validation, "test": task.test}
    return {
        split: read_split(where, columns, task.limit)
        for split, where in wanted.items()
        if where is not None
    }


def _columns(
    rows: Mapping[str, Sequence[Row]], names: Sequence[str]
) -> dict[str, dict[str, list[Any]]]:
    return {
        split: {name: [row[name] for row in some] for name in names} for split, some in rows.items()
    }
