"""Probes of the model while it is trained: what a loss over all tokens does not tell.

Loss by position, the same targets with little context and with all, names recalled over distances,
and a linear probe on frozen features. Texts, masks and names are made once, before the first step,
and depend on the configuration and the documents alone: the same values come out on any number of
ranks and however often the run was resumed. Nothing is drawn from a generator that training uses.
"""

import logging
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from composer.core import State
from composer.loggers import Logger

from tessera.batch import PackedBatch
from tessera.data.validation import validation_batches
from tessera.evaluation.linear_probe import fitted, mean_vectors
from tessera.evaluation.masked_lm import contents_of
from tessera.evaluation.predictions import (
    Predictions,
    Question,
    position_buckets,
    predictions,
    question,
)
from tessera.evaluation.recall import RecallTexts, recall_texts, recalled
from tessera.evaluation.segments import Segment, batches_of
from tessera.evaluation.tasks.config import NAME_TOKENS, PHRASE_TOKENS
from tessera.evaluation.tasks.inputs.tables import read_split
from tessera.files import JsonObject
from tessera.model.scoring import answers
from tessera.tokenizer import Tokenizer
from tessera.training import distributed
from tessera.training.callbacks.evaluator import Batches, Measurement
from tessera.training.callbacks.progress import finite_or_none
from tessera.training.config import LinearProbeConfig, ProbeConfig, RunConfig

log = logging.getLogger(__name__)

_INVERSE_PENALTY = 0.1
"""Of the linear probe: few texts and many features."""


@dataclass(frozen=True, kw_only=True)
class Labelled:
    """Labelled texts, laid into batches."""

    batches: list[PackedBatch]
    """Of all ranks."""
    labels: np.ndarray
    """(n,) whole numbers, in the order of the batches: the training texts first."""
    training_texts: int


@dataclass(frozen=True, kw_only=True)
class Probing:
    """What is asked, the same each time."""

    masked: dict[str, Batches]
    """This rank's masked documents of each source."""
    short: int | None
    """None: no document is longer than that."""
    recall: RecallTexts | None
    labelled: Labelled | None
    max_seq_len: int
    pad_id: int
    left_out: list[str] = field(default_factory=list)
    """What cannot be asked, and why."""


@dataclass(eq=False, kw_only=True)
class Probes(Measurement):
    """Asks, and records the answers and what they cost."""

    masking_rate: float
    probing: Probing

    def __post_init__(self) -> None:
        super().__post_init__()
        self._began = time.monotonic()
        self._spent = 0.0

    def fit_start(self, state: State, logger: Logger) -> None:
        """Start the clock that the probes' share of the time is taken of."""
        self._began = time.monotonic()
        super().fit_start(state, logger)

    def measure(self, state: State) -> JsonObject:
        """A record of all probes.

        `seconds` is what they took, `time_share` their share of the time since training was started
        or resumed.
        """
        begin = time.monotonic()
        found = {
            **self._masked(state),
            **self._recall(state),
            **self._linear_probe(state),
        }
        now = time.monotonic()
        self._spent += now - begin
        return {
            "kind": "probes",
            "step": self.train_step.clock.steps,
            "tokens": self.train_step.clock.tokens,
            "masking_rate": self.masking_rate,
            **found,
            "seconds": now - begin,
            "time_share": self._spent / max(1e-9, now - self._began),
        }

    def _masked(self, state: State) -> JsonObject:
        probing = self.probing
        asked = [
            question(batch, probing.short, probing.pad_id)
            for batches in probing.masked.values()
            for batch in batches()
        ]
        found = iter(self.ask(state, [b for one in asked for b in one.batches], answers))
        parts = [_answered(one, found) for one in asked]
        buckets = position_buckets(probing.max_seq_len)
        sums = distributed.gather([_sums(part, buckets) for part in parts])
        whole = _added([one for of_rank in sums for one in of_rank], len(buckets))
        result: JsonObject = {
            "position": {
                f"{low}-{high}": _means(masked, loss, right)
                for (low, high), (masked, loss, right) in zip(buckets, whole[:-1], strict=True)
                if masked
            }
        }
        masked, loss, short = whole[-1]
        if masked:
            result["context"] = {
                "masked_tokens": int(masked),
                "loss": finite_or_none(loss / masked),
                f"loss_with_{probing.short}_tokens": finite_or_none(short / masked),
                "gain": finite_or_none((short - loss) / masked),
            }
        return result

    def _recall(self, state: State) -> JsonObject:
        texts = self.probing.recall
        if texts is None:
            return {}
        own = _dealt(texts.batches)
        found = [one.float().cpu() for one in self.ask(state, own, answers)]
        each = recalled(texts, _collected(found))
        return {
            "recall": {
                "without_mention" if kind is None else str(kind): {
                    "loss": finite_or_none(one.loss),
                    "accuracy": one.accuracy,
                }
                for kind, one in each.items()
            }
        }

    def _linear_probe(self, state: State) -> JsonObject:
        labelled = self.probing.labelled
        if labelled is None:
            return {}
        found = self.ask(state, _dealt(labelled.batches), mean_vectors)
        parts = _collected([one.float().cpu().numpy() for one in found])
        accuracy = None
        if distributed.rank() == 0:
            features = np.concatenate(parts)
            count, labels = labelled.training_texts, labelled.labels
            if np.isfinite(features).all():
                (classifier,) = fitted(features[:count], labels[:count], [_INVERSE_PENALTY])
                right = classifier.predict(features[count:]) == labels[count:]
                accuracy = float(right.mean())
        return {"linear_probe": {"accuracy": accuracy}}


def _answered(asked: Question, found: Iterator[Any]) -> Predictions:
    return predictions(asked, [next(found) for _ in asked.batches])


def _sums(part: Predictions, buckets: Sequence[tuple[int, int]]) -> list[tuple[float, ...]]:
    """(tokens, loss, right) of each bucket of positions, then (tokens, loss, short loss)."""
    places = [(part.positions >= low) & (part.positions <= high) for low, high in buckets]
    sums = [(float(c.sum()), math.fsum(part.losses[c]), float(part.right[c].sum())) for c in places]
    beyond = ~np.isnan(part.short)
    return [
        *sums,
        (float(beyond.sum()), math.fsum(part.losses[beyond]), math.fsum(part.short[beyond])),
    ]


def _added(parts: Sequence[list[tuple[float, ...]]], buckets: int) -> list[tuple[float, ...]]:
    """Sums over batches, the same in whatever order they come."""
    if not parts:
        return [(0.0, 0.0, 0.0)] * (buckets + 1)
    return [
        tuple(math.fsum(part[row][i] for part in parts) for i in range(3))
        for row in range(buckets + 1)
    ]


def _means(masked: float, loss: float, right: float) -> JsonObject:
    return {
        "loss": finite_or_none(loss / masked),
        "accuracy": right / masked,
        "masked_tokens": int(masked),
    }


def _dealt(batches: Sequence[PackedBatch]) -> Sequence[PackedBatch]:
    """This rank's part of batches that are dealt out in turn."""
    return batches[distributed.rank() :: distributed.world_size()]


def _collected(own: Sequence[Any]) -> list[Any]:
    """What every rank found out about its part of dealt batches, in the order of the batches."""
    parts = distributed.gather(list(own))
    total = sum(map(len, parts))
    return [parts[n % len(parts)][n // len(parts)] for n in range(total)]


# ---- what is asked


def probing_of(config: RunConfig, probes: ProbeConfig, tokenizer: Tokenizer) -> Probing:
    """Make the texts of all probes.

    Raises:
        ValueError: nothing can be asked, or a labelled file cannot be used; names it.
    """
    data = config.train_data
    if config.evaluation.sources is not None:
        data = replace(data, sources=config.evaluation.sources)
    names = [
        name
        for name, source in data.sources.items()
        if source.validation_split is not None and source.weight > 0
    ]
    left_out = []

    def batches(name: str, max_tokens: int, rank: int, world_size: int) -> Iterator[PackedBatch]:
        return validation_batches(
            data,
            name,
            tokenizer,
            vocab_size=config.model.vocab_size,
            masking_rate=config.evaluation.masking_rate,
            max_tokens=max_tokens,
            seed=config.seed,
            rank=rank,
            world_size=world_size,
        )

    short = probes.short if probes.short < data.max_seq_len else None
    if short is None:
        left_out.append(
            f"context: no document is longer than {data.max_seq_len} tokens, and short is "
            f"{probes.short}"
        )
    recall = None
    if probes.names and names:
        everything = np.iinfo(np.int64).max
        try:
            recall = recall_texts(
                [contents_of(batches(name, everything, 0, 1)) for name in names],
                tokenizer,
                distances=probes.distances,
                names=probes.names,
                name_tokens=NAME_TOKENS,
                phrase_tokens=PHRASE_TOKENS,
                max_seq_len=data.max_seq_len,
                row_tokens=data.row_tokens,
                seed=config.seed,
            )
        except ValueError as error:
            raise ValueError(f"evaluation.probes: recall: {error}; or set names to 0") from None
        left = [d for d in probes.distances if d not in recall.distances]
        if left:
            left_out.append(
                f"recall over {', '.join(map(str, left))} tokens, with {data.max_seq_len} in view"
            )
        if recall.names < probes.names:
            left_out.append(f"recall of {probes.names - recall.names} names: there is no more text")
    rank, world_size = distributed.rank(), distributed.world_size()
    return Probing(
        masked={
            name: partial(batches, name, probes.max_tokens, rank, world_size) for name in names
        },
        short=short,
        recall=recall,
        labelled=_labelled(config, probes.linear_probe, tokenizer),
        max_seq_len=data.max_seq_len,
        pad_id=tokenizer.pad_id,
        left_out=left_out,
    )


def _labelled(
    config: RunConfig, asked: LinearProbeConfig | None, tokenizer: Tokenizer
) -> Labelled | None:
    if asked is None:
        return None
    key = "evaluation.probes.linear_probe"
    columns = [asked.text, asked.label]
    try:
        train = read_split(asked.train, columns, asked.limit)
        test = read_split(asked.test, columns, asked.limit)
    except ValueError as error:
        raise ValueError(f"{key}: {error}") from None
    classes = list(dict.fromkeys(str(row[asked.label]) for row in train))
    if len(classes) < 2:
        raise ValueError(
            f"{key}.train: {asked.train}: its first {len(train)} rows have one label alone, "
            f"{classes[0]}; name a file with more, or raise limit"
        )
    strangers = {str(row[asked.label]) for row in test} - set(classes)
    if strangers:
        raise ValueError(
            f"{key}.test: {asked.test}: has labels that train has not: "
            f"{', '.join(sorted(strangers)[:5])}"
        )
    data = config.train_data
    room = min(asked.max_tokens, data.max_seq_len) - 2
    rows = [*train, *test]
    segments = [
        Segment.of(ids[:room], tokenizer.cls_id, tokenizer.sep_id)
        for ids in tokenizer.encode_batch([str(row[asked.text]) for row in rows])
    ]
    return Labelled(
        batches=batches_of(
            segments,
            row_tokens=data.row_tokens,
            max_seq_len=data.max_seq_len,
            pad_id=tokenizer.pad_id,
        ),
        labels=np.array([classes.index(str(row[asked.label])) for row in rows]),
        training_texts=len(train),
    )
