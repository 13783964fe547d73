"""Documents found for queries: a bi-encoder of sentence-transformers, scored by mteb.

Trained, if there are pairs, by contrast with the other documents of its batch and mined negatives
(`CachedMultipleNegativesRankingLoss`): the published recipe, with rates chosen on validation.
"""

from dataclasses import replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from tessera.evaluation.jobs.records import Job, Outcome
from tessera.evaluation.tasks.benchmarks import judged, open_benchmarks, quiet
from tessera.evaluation.tasks.config import Retrieval, Search
from tessera.evaluation.tasks.inputs.tables import COLUMNS, DRAWN, open_table
from tessera.evaluation.tasks.loading import check_finite
from tessera.evaluation.tasks.memory import halving


def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Train one bi-encoder, if there are pairs to train on, and score it.

    Args:
        job: of a retrieval task.
        device: `cpu` or `cuda`.
        scratch: a folder for what is needed meanwhile.
        kept: where the trained model goes, if it is wanted.

    Raises:
        ValueError: the data or the model cannot be used.
    """
    from sentence_transformers import SentenceTransformer

    task = job.task
    assert isinstance(task, Retrieval)
    quiet()
    notes: list[str] = []
    opened = open_benchmarks(task, notes)
    pairs = open_pairs(task, notes) if task.train is not None else None

    def attempt(minibatch: int) -> Any:
        # The mean of the tokens' vectors: what a masked-LM folder gets, said in full.
        model = SentenceTransformer(job.model.folder, device=device, trust_remote_code=False)
        check_finite(job.model, model)
        model.max_seq_length = longest(model, task.max_tokens, notes)
        if pairs is not None:
            _train(job, task, model, pairs, minibatch, device, scratch)
        return model, judged(opened, model, minibatch, device)

    model, outcome = halving(attempt, task.minibatch, notes)
    if kept is not None:
        model.save(str(kept))
    return replace(outcome, notes=list(dict.fromkeys(notes)))


def longest(model: Any, asked: int, notes: list[str]) -> int:
    """Tokens of the longest text: as asked, or as the model can take."""
    config = getattr(getattr(model[0], "auto_model", None), "config", None)
    own = min(
        getattr(config, "max_position_embeddings", None) or asked,
        getattr(model.tokenizer, "model_max_length", None) or asked,
    )
    if own < asked:
        notes.append(f"texts are cut at {own} tokens, where the model ends, not at {asked}")
    return min(own, asked)


def open_pairs(task: Search, notes: list[str]) -> Any:
    """A `datasets.Dataset` of `anchor`, `positive` and all columns of negatives.

    Raises:
        ValueError: it cannot be read.
    """
    assert task.train is not None
    if task.train_queries is not None:
        return _pairs_of_ids(task)
    table = open_table(task.train, COLUMNS["train"], task.train_rows)
    named = [n for n in table.column_names if n == "negative" or n.startswith("negative_")]
    negatives = []
    for name in named:
        empty = table.data.column(name).null_count
        if empty:
            notes.append(
                f"{task.train}: column '{name}' is not used, {empty} of its rows are empty"
            )
        else:
            negatives.append(name)
    table = table.select_columns(["query", "positive", *negatives])
    return table.rename_column("query", "anchor")


def _pairs_of_ids(task: Search) -> Any:
    from sentence_transformers.util import resolve_ids

    assert task.train is not None
    table = open_table(task.train, COLUMNS["relevance"])
    if "score" in table.column_names:
        table = table.filter(
            lambda score: float(score) > 0, input_columns="score", keep_in_memory=True
        )
    if task.train_rows is not None and task.train_rows < len(table):
        table = table.shuffle(seed=DRAWN, keep_in_memory=True).select(range(task.train_rows))
    table = table.select_columns(["query", "document"])
    table = table.rename_columns({"query": "anchor_id", "document": "positive_id"})
    queries, documents = lookups(task)
    looked_up = resolve_ids({"anchor_id": queries, "positive_id": documents})
    try:
        return table.map(
            looked_up,
            batched=True,
            remove_columns=table.column_names,
            keep_in_memory=True,
            new_fingerprint=uuid4().hex,  # by itself it would be a hash of all texts
        )
    except KeyError as error:
        raise ValueError(f"{task.train}: {error.args[0]}") from None


def lookups(task: Search) -> list[tuple[Any, str, str]]:
    """The texts of queries and of documents that `train` names by ids, as `resolve_ids` takes them.

    Raises:
        ValueError: they cannot be read, or two have one id.
    """
    found = []
    for key in ("train_queries", "train_documents"):
        where = getattr(task, key)
        table = open_table(where, COLUMNS[key])
        count = len(table.unique("id"))
        if count < len(table):
            raise ValueError(f"{where}: {len(table)} rows, but only {count} different ids")
        found.append((table, "id", "text"))
    return found


def arguments_of(
    job: Job, device: str, scratch: Path, batch: int, accumulated: int = 1
) -> dict[str, Any]:
    """What the trainers of sentence-transformers are told, alike for all."""
    assert isinstance(job.task, Search)
    settings = job.task.training
    return {
        "output_dir": str(scratch / "trainer"),
        "learning_rate": job.point["lr"],
        "weight_decay": job.point["weight_decay"],
        "num_train_epochs": job.point["epochs"],
        "per_device_train_batch_size": batch,
        "gradient_accumulation_steps": accumulated,
        "adam_beta1": settings.betas[0],
        "adam_beta2": settings.betas[1],
        "adam_epsilon": settings.eps,
        "warmup_steps": settings.warmup,
        "lr_scheduler_type": "linear",
        "save_strategy": "no",
        "logging_strategy": "no",
        "seed": job.seed,
        "data_seed": job.seed,
        "bf16": device == "cuda",
        "use_cpu": device == "cpu",
        "dataloader_pin_memory": device == "cuda",
        "report_to": [],
        "disable_tqdm": True,
    }


def _train(
    job: Job, task: Retrieval, model: Any, pairs: Any, minibatch: int, device: str, scratch: Path
) -> None:
    import transformers
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
    )

    transformers.set_seed(job.seed)
    arguments = SentenceTransformerTrainingArguments(
        **arguments_of(job, device, scratch, task.training.batch), batch_sampler="no_duplicates"
    )
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=minibatch)
    trainer = SentenceTransformerTrainer(
        model=model, args=arguments, train_dataset=pairs, loss=loss
    )
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    model.eval()
