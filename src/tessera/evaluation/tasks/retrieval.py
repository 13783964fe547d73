"""Documents found for queries: a bi-encoder of sentence-transformers, scored by mteb.

Trained, if there are pairs, by contrast with the other documents of its batch and mined negatives
(`CachedMultipleNegativesRankingLoss`): the published recipe, with rates chosen on validation.
"""

import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from tessera.evaluation.jobs.records import Job, Outcome
from tessera.evaluation.tasks.config import Retrieval
from tessera.evaluation.tasks.loading import check_finite
from tessera.evaluation.tasks.memory import halving
from tessera.evaluation.tasks.tables import read_split

_SCORES = ("ndcg_at_10", "recall_at_10", "mrr_at_10", "map_at_100")


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
    _quiet()
    notes: list[str] = []
    parts = {"test": {key: getattr(task, key) for key in ("queries", "documents", "relevance")}}
    if task.validation is not None:
        parts["validation"] = task.validation
    data = {split: _data(where, notes) for split, where in parts.items()}

    def attempt(minibatch: int) -> Any:
        # The mean of the tokens' vectors: what a masked-LM folder gets, said in full.
        model = SentenceTransformer(job.model.folder, device=device, trust_remote_code=False)
        check_finite(job.model, model)
        model.max_seq_length = task.max_tokens
        if task.train is not None:
            _train(job, task, model, minibatch, device, scratch)
        return model, {
            split: _scores(split, content, model, minibatch) for split, content in data.items()
        }

    model, scores = halving(attempt, task.minibatch, notes)
    if kept is not None:
        model.save(str(kept))
    validation = scores.get("validation", scores["test"])
    return Outcome(scores=scores["test"], validation=validation, split="test", notes=notes)


def _train(
    job: Job, task: Retrieval, model: Any, minibatch: int, device: str, scratch: Path
) -> None:
    import transformers
    from datasets import Dataset
    from sentence_transformers import (
        SentenceTransformerTrainer,
        SentenceTransformerTrainingArguments,
    )
    from sentence_transformers.sentence_transformer.losses import (
        CachedMultipleNegativesRankingLoss,
    )

    assert task.train is not None
    transformers.set_seed(job.seed)
    rows = read_split(task.train, ["query", "positive"])
    columns = {"anchor": "query", "positive": "positive"}
    if all(row.get("negative") for row in rows):
        columns["negative"] = "negative"
    settings = task.training
    pairs = Dataset.from_dict(
        {name: [str(row[column]) for row in rows] for name, column in columns.items()}
    )
    arguments = SentenceTransformerTrainingArguments(
        output_dir=str(scratch / "trainer"),
        learning_rate=job.point["lr"],
        weight_decay=job.point["weight_decay"],
        num_train_epochs=job.point["epochs"],
        per_device_train_batch_size=settings.batch,
        adam_beta1=settings.betas[0],
        adam_beta2=settings.betas[1],
        adam_epsilon=settings.eps,
        warmup_steps=settings.warmup,
        lr_scheduler_type="linear",
        batch_sampler="no_duplicates",
        save_strategy="no",
        logging_strategy="no",
        seed=job.seed,
        data_seed=job.seed,
        bf16=device == "cuda",
        use_cpu=device == "cpu",
        report_to=[],
        disable_tqdm=True,
    )
    loss = CachedMultipleNegativesRankingLoss(model, mini_batch_size=minibatch)
    SentenceTransformerTrainer(model=model, args=arguments, train_dataset=pairs, loss=loss).train()
    model.eval()


def _data(where: Mapping[str, str], notes: list[str]) -> dict[str, Any]:
    """Queries, documents and what is relevant, as mteb takes them."""
    queries = read_split(where["queries"], ["id", "text"])
    documents = read_split(where["documents"], ["id", "text"])
    known = [{str(row["id"]) for row in rows} for rows in (queries, documents)]
    relevant: dict[str, dict[str, int]] = {}
    strangers = 0
    for row in read_split(where["relevance"], ["query", "document"]):
        query, document = str(row["query"]), str(row["document"])
        if query not in known[0] or document not in known[1]:
            strangers += 1
            continue
        relevant.setdefault(query, {})[document] = int(row.get("score", 1))
    if strangers:
        notes.append(
            f"{where['relevance']}: {strangers} lines name queries or documents that are not there"
        )
    if not relevant:
        raise ValueError(f"{where['relevance']}: names no query and document that are there")
    silent = len(known[0] - set(relevant))
    if silent:
        notes.append(f"{where['queries']}: {silent} queries without a relevant document, left out")
    return {
        "queries": [{"id": str(row["id"]), "text": str(row["text"])} for row in queries],
        "documents": [
            {"id": str(row["id"]), "title": str(row.get("title") or ""), "text": str(row["text"])}
            for row in documents
        ],
        "relevant": relevant,
    }


def _scores(split: str, data: Mapping[str, Any], model: Any, minibatch: int) -> dict[str, float]:
    """Score by mteb's own task, evaluator and search."""
    import mteb
    from datasets import Dataset
    from mteb.abstasks.retrieval import AbsTaskRetrieval
    from mteb.abstasks.task_metadata import TaskMetadata

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
                        "queries": Dataset.from_list(data["queries"]),
                        "corpus": Dataset.from_list(data["documents"]),
                        "relevant_docs": data["relevant"],
                        "top_ranked": None,
                    }
                }
            }
            self.data_loaded = True

    results = mteb.evaluate(
        model,
        OwnRetrieval(),
        cache=None,
        encode_kwargs={"batch_size": minibatch, "show_progress_bar": False},
        show_progress_bar=False,
    )
    (scores,) = results.task_results[0].scores["test"]
    return {name: float(scores[name]) for name in _SCORES}


def _quiet() -> None:
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    for name in ("mteb", "sentence_transformers", "accelerate", "datasets"):
        logging.getLogger(name).setLevel(logging.ERROR)
