"""Recall of names over distances, on the packed model; `evaluation.recall` makes the texts."""

import statistics
from pathlib import Path

import torch

from tessera.evaluation.documents import material
from tessera.evaluation.jobs.records import Job, Outcome, Table
from tessera.evaluation.recall import recall_texts, recalled
from tessera.evaluation.tasks.config import Recall
from tessera.model.scoring import answers


@torch.inference_mode()
def run(job: Job, device: str, scratch: Path, kept: Path | None) -> Outcome:
    """Ask one model for the names.

    Raises:
        ValueError: it is no model of ours or has another tokenizer than the documents, or these are
            too short.
    """
    task = job.task
    assert isinstance(task, Recall)
    asked = material(job.model, task, device)
    texts = recall_texts(
        asked.contents(seed=task.seed),
        asked.tokenizer,
        distances=task.distances,
        names=task.names,
        name_tokens=task.name_tokens,
        phrase_tokens=task.phrase_tokens,
        max_seq_len=asked.data.max_seq_len,
        row_tokens=asked.data.row_tokens,
        seed=task.seed,
    )
    found = recalled(texts, [answers(asked.model, b.to(device)).cpu() for b in texts.batches])
    control = found.pop(None)
    notes = list(asked.notes)
    left = [str(d) for d in task.distances if d not in texts.distances]
    if left:
        notes.append(
            f"distances left out: {', '.join(left)} do not fit between a phrase of "
            f"{task.phrase_tokens} tokens and the {asked.data.max_seq_len} tokens in view"
        )
    if texts.names < task.names:
        notes.append(
            f"{texts.names} names of {task.names}: there is no text for more, at "
            f"{asked.data.max_seq_len} tokens each"
        )
    if texts.documents_per_text > 1:
        notes.append(
            f"a text is {texts.documents_per_text:.1f} documents on average, end to end: they are "
            f"shorter than {asked.data.max_seq_len} tokens"
        )
    tokens = texts.names * texts.name_tokens
    columns = ["tokens before", "recalled", "without the mention", "loss", "without it", "tokens"]
    rows = [
        [str(d), one.accuracy, control.accuracy, one.loss, control.loss, tokens]
        for d, one in found.items()
        if d is not None
    ]
    table = Table(
        title="Names recalled, by how many tokens before they stood",
        columns=columns,
        rows=rows,
        plot=["recalled", "without the mention"],
    )
    scores = {
        "accuracy": statistics.fmean(one.accuracy for one in found.values()),
        "accuracy_without_the_mention": control.accuracy,
        "loss": statistics.fmean(one.loss for one in found.values()),
        "loss_without_the_mention": control.loss,
    }
    return Outcome(scores=scores, validation=scores, split=asked.split, tables=[table], notes=notes)
