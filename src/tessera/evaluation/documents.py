"""The documents a language model is asked about: a phase's validation splits, or one's own texts.

Either way they are packed, masked and ordered by `data.validation`, as in training.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

import numpy as np

from tessera.batch import PackedBatch
from tessera.checkpoints.checkpoint import build_model
from tessera.checkpoints.reader import read_checkpoint
from tessera.data.config import DataConfig, SourceConfig
from tessera.data.sources.source import Documents, OpenSource, open_source
from tessera.data.validation import validation_batches
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.masked_lm import contents_of
from tessera.evaluation.tasks.config import MaskedLm, Recall
from tessera.evaluation.tasks.inputs.tables import read_split
from tessera.evaluation.tasks.loading import check_finite
from tessera.files import JsonObject
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.tokenizer import Tokenizer, load_tokenizer, tokenizer_of

_OWN = "texts"
_ROW_TOKENS = 2048
_UNKNOWN_LENGTH = 8192


@dataclass(frozen=True, kw_only=True)
class Material:
    """A model, and documents in its tokens."""

    model: ModernBertForMaskedLM
    tokenizer: Tokenizer
    data: DataConfig
    sources: list[str]
    """Those of `data` that have documents to ask about."""
    open_source: OpenSource
    split: str
    """What they are, for the records."""
    notes: list[str] = field(default_factory=list)

    def batches(
        self, source: str, *, rate: float, max_tokens: int, seed: int
    ) -> Iterator[PackedBatch]:
        """Masked documents of a source, the same for every model of this tokenizer."""
        return validation_batches(
            self.data,
            source,
            self.tokenizer,
            vocab_size=self.model.config.vocab_size,
            masking_rate=rate,
            max_tokens=max_tokens,
            seed=seed,
            open_source=self.open_source,
        )

    def contents(self, *, seed: int) -> Iterator[Iterator[np.ndarray]]:
        """The documents of each source, without [CLS] and [SEP], for as long as they are asked."""
        everything = np.iinfo(np.int64).max
        for source in self.sources:
            batches = self.batches(source, rate=0.15, max_tokens=everything, seed=seed)
            yield contents_of(batches)


def material(asked: Model, task: MaskedLm | Recall, device: str) -> Material:
    """The model on a device, and the documents of a task.

    Raises:
        ValueError: it is no model of ours or has another tokenizer than the documents, or there are
            no documents.
    """
    checkpoint = read_checkpoint(asked.source)
    files, notes = checkpoint.tokenizer_files, []
    own = tokenizer_of(files, f"in {asked.source}") if files is not None else None
    tokenizer = load_tokenizer(task.tokenizer) if task.tokenizer is not None else own
    if tokenizer is None:
        raise ValueError(f"{asked.source}: holds no tokenizer; name one as `tokenizer`")
    if own is not None and own.fingerprint != tokenizer.fingerprint:
        raise ValueError(
            f"{asked.source}: was trained with another tokenizer than the documents were made "
            "with; losses of different tokens cannot be compared"
        )
    opener: OpenSource = open_source
    if task.texts is not None:
        length = task.max_seq_len or checkpoint.max_seq_len or _UNKNOWN_LENGTH
        data = DataConfig(
            sources={_OWN: SourceConfig(local=task.texts)},
            max_seq_len=length,
            row_tokens=max(length, _ROW_TOKENS),
        )
        rows = read_split(task.texts, [task.text])
        opener = partial(_opened, OwnTexts([str(row[task.text]) for row in rows], tokenizer))
        if task.tokenizer is None:
            notes.append(
                "asked in its own tokens: losses of models with another tokenizer are not to be "
                "compared"
            )
    else:
        assert task.data is not None, "a task without documents is no job"
        data = task.data
        if task.max_seq_len is not None:
            longer = max(data.row_tokens, task.max_seq_len)
            data = replace(data, max_seq_len=task.max_seq_len, row_tokens=longer)
    sources = [n for n, source in data.sources.items() if source.validation_split is not None]
    if not sources:
        raise ValueError("no source of data has a validation_split: there is nothing to predict")
    model = build_model(checkpoint)
    check_finite(asked, model)
    return Material(
        model=model.to(device).eval(),
        tokenizer=tokenizer,
        data=data,
        sources=sources,
        open_source=opener,
        split="validation" if task.texts is None else _OWN,
        notes=notes,
    )


def _opened(
    texts: "OwnTexts", name: str, source: SourceConfig, split: str, vocab_size: int | None
) -> Documents:
    return texts


class OwnTexts:
    """Texts in memory as a source: one shard, in the tokens of a tokenizer."""

    def __init__(self, texts: Sequence[str], tokenizer: Tokenizer) -> None:
        """Tokenize the texts.

        Raises:
            ValueError: a text cannot be encoded, or all are empty.
        """
        self._documents = tokenizer.encode_batch(texts)
        if not any(map(len, self._documents)):
            raise ValueError("the texts hold no token to predict")
        self.samples = np.array([len(texts)], dtype=np.int64)
        self.shard_bytes = np.array([sum(d.nbytes for d in self._documents)], dtype=np.int64)
        self.index_fingerprint = _OWN
        self.summary: JsonObject = {"special_tokens": "none"}
        self.tokenizer_fingerprint: str | None = tokenizer.fingerprint

    def document(self, shard: int, sample: int) -> np.ndarray:
        """The token ids of a text."""
        return self._documents[sample]

    def document_id(self, shard: int, sample: int) -> str:
        """Its row, from 0."""
        return str(sample)

    def lengths(self, shard: int) -> np.ndarray:
        """(texts,) tokens of each."""
        return np.array([len(document) for document in self._documents])

    def lengths_here(self, shard: int) -> np.ndarray | None:
        """The same: all is in memory."""
        return self.lengths(shard)

    def lacking(self) -> str | None:
        """Nothing."""
        return None

    def will_need(self, shards: Iterable[int]) -> None:
        """Nothing is fetched."""

    def close(self) -> None:
        """Nothing is open."""
