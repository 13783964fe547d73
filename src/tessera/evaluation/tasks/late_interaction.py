"""Documents found by a vector a token: sentence-transformers' multi-vector encoder, scored by mteb.

The model is ColBERT's as PyLate sets it up: a token before queries and one before documents,
queries filled with mask tokens, punctuation of documents left out, a projection without bias.
"""

import math
import string
from dataclasses import replace
from pathlib import Path
from typing import Any

from tessera.evaluation.jobs.records import Job, Outcome
from tessera.evaluation.tasks.benchmarks import judged, open_benchmarks, quiet
from tessera.evaluation.tasks.config import LateInteraction
from tessera.evaluation.tasks.inputs.tables import Column, open_table, read_split
from tessera.evaluation.tasks.loading import check_finite
from tessera.evaluation.tasks.memory import halving
from tessera.evaluation.tasks.retrieval import arguments_of, longest, lookups, open_pairs

_QUERY, _DOCUMENT = "[Q] ", "[D] "
_VECTORS_BYTES = 8 << 30
_IDS: list[Column] = ["query_id", "document_ids", "scores"]
_TAUGHT: list[Column] = [("query", "anchor"), "documents", "scores"]


def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Train one multi-vector encoder, if there is something to train on, and score it.

    Args:
        job: of a task of late interaction.
        device: `cpu` or `cuda`.
        scratch: a folder for what is needed meanwhile.
        kept: where the trained model goes, if it is wanted.

    Raises:
        ValueError: the data or the model cannot be used.
    """
    task = job.task
    assert isinstance(task, LateInteraction)
    quiet()
    notes: list[str] = []
    opened = open_benchmarks(task, notes)
    taught = task.train is not None and _is_taught(task)
    rows = None
    if task.train is not None:
        rows = _taught(task) if taught else open_pairs(task, notes)

    def attempt(minibatch: int) -> Any:
        import transformers
        from mteb.models.sentence_transformer_wrapper import MultiVectorWrapper

        transformers.set_seed(job.seed)
        model = _model(job, task, device, notes)
        check_finite(job.model, model)
        if rows is not None:
            _train(job, task, model, rows, taught, minibatch, device, scratch)
        searching = MultiVectorWrapper(model, corpus_chunk_size=_documents_at_once(model))
        return model, judged(opened, searching, minibatch, device)

    model, outcome = halving(attempt, task.minibatch, notes)
    if kept is not None:
        model.save(str(kept))
    return replace(outcome, notes=list(dict.fromkeys(notes)))


def _model(job: Job, task: LateInteraction, device: str, notes: list[str]) -> Any:
    """The encoder of a folder: one that was saved as such, or one made of a masked LM's."""
    from sentence_transformers import MultiVectorEncoder
    from sentence_transformers.base.modules import Normalize, Transformer
    from sentence_transformers.base.modules.dense import Dense
    from sentence_transformers.multi_vector_encoder.modules import MultiVectorMask
    from torch import nn
    from transformers import AddedToken

    folder = Path(job.model.folder)
    if (folder / "modules.json").is_file():
        model: Any = MultiVectorEncoder(str(folder), device=device, trust_remote_code=False)
    else:
        encoder: Any = Transformer(str(folder))
        if encoder.tokenizer.mask_token is None:
            raise ValueError(f"{job.model.source}: its tokenizer has no mask token, which fills up")
        marks = [AddedToken(mark, normalized=False, special=True) for mark in (_QUERY, _DOCUMENT)]
        encoder.tokenizer.add_special_tokens({"additional_special_tokens": marks})
        if len(encoder.tokenizer) > encoder.auto_model.get_input_embeddings().num_embeddings:
            encoder.auto_model.resize_token_embeddings(len(encoder.tokenizer))
        modules: list[nn.Module] = [encoder]
        if task.train is not None:
            projection = Dense(
                encoder.get_embedding_dimension(),
                task.dimensions,
                bias=False,
                activation_function=nn.Identity(),
                module_input_name="token_embeddings",
            )
            modules.append(projection)
        else:
            notes.append("nothing was trained: the tokens' vectors are the model's own")
        modules.append(MultiVectorMask(skiplist_words=list(string.punctuation)))
        modules.append(Normalize(module_input_name="token_embeddings"))
        prompts = {"query": _QUERY, "document": _DOCUMENT}
        model = MultiVectorEncoder(modules=modules, device=device, prompts=prompts)
    encoder = model[0]
    encoder.document_length = longest(model, task.max_tokens, notes)
    encoder.query_length = None
    length = longest(model, task.query_tokens, notes)
    encoder.query_expansion = {"strategy": "fixed", "attend": False, "length": length}
    return model


def _documents_at_once(model: Any) -> int:
    """How many documents' vectors may be in memory, all of them as long as they may be."""
    longest_bytes = model[0].document_length * model.get_embedding_dimension() * 4
    return max(1, _VECTORS_BYTES // int(longest_bytes))


# ---- training


def _is_taught(task: LateInteraction) -> bool:
    """Whether `train` holds a teacher's scores of documents.

    Raises:
        ValueError: it holds neither these nor pairs.
    """
    assert task.train is not None
    first = read_split(task.train, [], limit=1)[0]
    pair = "positive" if task.train_queries is None else "document"
    if "scores" in first or "documents" in first or "document_ids" in first:
        return True
    if pair in first or (pair == "document" and "corpus-id" in first):
        return False
    raise ValueError(
        f"{task.train}: has neither 'scores' of documents nor '{pair}' beside the query; it has "
        f"{', '.join(map(str, first))}"
    )


def _taught(task: LateInteraction) -> Any:
    """A `datasets.Dataset` of a query, `candidates` documents, and a list of scores.

    Raises:
        ValueError: it cannot be read, or a row has fewer documents or not as many scores.
    """
    assert task.train is not None
    count = task.candidates
    if task.train_queries is None or task.train_documents is None:
        table = open_table(task.train, _TAUGHT, task.train_rows)
        _check_lists(task.train, table, "documents", count)
        return table.map(
            _spread,
            fn_kwargs={"count": count},
            batched=True,
            remove_columns=table.column_names,
            keep_in_memory=True,
        )
    from sentence_transformers.util import resolve_ids

    table = open_table(task.train, _IDS, task.train_rows)
    _check_lists(task.train, table, "document_ids", count)
    queries, documents = lookups(task)
    looked_up = resolve_ids({"query_id": queries, "document_ids": documents}, max_list_length=count)
    try:
        looked_up(table[:1])
    except KeyError as error:
        raise ValueError(f"{task.train}: {error.args[0]}") from None
    table.set_transform(looked_up)
    return table


def _check_lists(where: str, table: Any, name: str, count: int) -> None:
    """Refuse rows with too few documents; lists written as text are looked at later."""
    for column in (name, "scores"):
        if getattr(table.features[column], "dtype", None) == "string":
            return
        if not hasattr(table.features[column], "feature"):
            raise ValueError(f"{where}: column '{column}' holds no lists")
    scores = table.data.column("scores").combine_chunks().value_lengths().to_numpy()
    lengths = table.data.column(name).combine_chunks().value_lengths().to_numpy()
    if (lengths != scores).any():
        row = int((lengths != scores).argmax())
        raise ValueError(
            f"{where}: row {row} has {lengths[row]} documents, but {scores[row]} scores"
        )
    if (lengths < count).any():
        row = int((lengths < count).argmax())
        raise ValueError(
            f"{where}: row {row} has {lengths[row]} documents, fewer than candidates ({count})"
        )


def _spread(batch: dict[str, list[Any]], count: int) -> dict[str, list[Any]]:
    spread: dict[str, list[Any]] = {"query": [str(text) for text in batch["query"]]}
    for place in range(count):
        spread[f"document_{place + 1}"] = [str(texts[place]) for texts in batch["documents"]]
    spread["scores"] = [[float(score) for score in scores[:count]] for scores in batch["scores"]]
    return spread


def _train(
    job: Job,
    task: LateInteraction,
    model: Any,
    rows: Any,
    taught: bool,
    minibatch: int,
    device: str,
    scratch: Path,
) -> None:
    import transformers
    from sentence_transformers import MultiVectorEncoderTrainer, MultiVectorEncoderTrainingArguments
    from sentence_transformers.multi_vector_encoder.losses import (
        CachedMultiVectorMultipleNegativesRankingLoss,
        MultiVectorDistillKLDivLoss,
    )

    batch = task.training.batch
    loss: Any
    if taught:
        # Queries have nothing to do with one another, so parts of a batch are the batch.
        part = math.gcd(batch, minibatch)
        plain = arguments_of(job, device, scratch, part, batch // part)
        loss = MultiVectorDistillKLDivLoss(model, similarity_fct=scaled_scores)
    else:
        plain = arguments_of(job, device, scratch, batch) | {"batch_sampler": "no_duplicates"}
        loss = CachedMultiVectorMultipleNegativesRankingLoss(model, mini_batch_size=minibatch)
    length = min(task.train_tokens or task.max_tokens, model[0].document_length)
    arguments = MultiVectorEncoderTrainingArguments(**plain, max_length={"document": length})
    trainer = MultiVectorEncoderTrainer(model=model, args=arguments, train_dataset=rows, loss=loss)
    trainer.remove_callback(transformers.PrinterCallback)
    trainer.train()
    model.eval()


def scaled_scores(
    queries: Any, documents: Any, queries_mask: Any = None, documents_mask: Any = None
) -> Any:
    """MaxSim of each query with its candidates, scaled to [0, 1] over them, as PyLate learns it.

    Args:
        queries: (Q, T, D) vectors.
        documents: (Q, N, S, D) vectors.
        queries_mask: (Q, T) which count.
        documents_mask: (Q, N, S) which count.

    Returns:
        (Q, N) scores.
    """
    from sentence_transformers.multi_vector_encoder.scoring import colbert_kd_scores

    scores = colbert_kd_scores(
        queries, documents, queries_mask=queries_mask, documents_mask=documents_mask
    )
    low, high = scores.amin(1, keepdim=True), scores.amax(1, keepdim=True)
    return (scores - low) / (high - low + 1e-8)
