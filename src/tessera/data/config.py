"""What is read, and how it is packed and masked: the YAML's data sections. Imports no torch."""

import re
from dataclasses import dataclass, field
from math import inf
from typing import Literal

from tessera.paths import ShardCachePath, ShardsPath
from tessera.quantities import ByteSize, Duration

FORMATS = {"mds": "tessera.data.sources.mds"}
"""How a source may be stored, and the module that opens it; `sources.source` says what it needs."""

MIXTURE = "mixture"
"""Weights, sources that are new and sources that are taken away, in `allow_changed`."""
MAY_CHANGE = (
    MIXTURE,
    *("seed", "shuffle", "block_documents", "max_seq_len", "long_documents", "row_tokens"),
    *("waiting_pieces", "tokenizer", "masking"),
)
"""What `allow_changed` may name, beside `sources.NAME` and keys under it."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of documents: a folder of MDS shards, possibly a cache of a remote one."""

    local: ShardCachePath
    """The folder that holds, or will hold, the shards."""
    format: str = "mds"
    """What they are: a name in `FORMATS`."""
    remote: ShardsPath | None = None
    """Where the shards come from if not local already: whatever Streaming reads (s3://, a path)."""
    split: str = "train"
    """Sub-folder of `local` and `remote` with the training documents; '' for none."""
    validation_split: str | None = "validation"
    """Sub-folder with the validation documents; null if the source has none."""
    weight: float = 1.0
    """Share of the training tokens, relative to the other sources' weights. 0: not opened."""
    cache_limit: ByteSize | None = None
    """Shards beyond this size are evicted, oldest first, if they can be fetched again."""
    min_document_tokens: int | None = None
    """Shorter documents are passed over in training; nothing has to be prepared again."""
    max_document_tokens: int | None = None
    """Longer documents are passed over in training. A folder may be two sources, by length."""

    def __post_init__(self) -> None:
        found = []
        if self.format not in FORMATS:
            found.append(f"format: unknown '{self.format}'; there are {', '.join(FORMATS)}")
        least, most = self.min_document_tokens, self.max_document_tokens
        for name, value in (("min_document_tokens", least), ("max_document_tokens", most)):
            if value is not None and value < 1:
                found.append(f"{name} must be at least 1, or null; got {value}")
        if least is not None and most is not None and least > most:
            found.append(f"min_document_tokens {least} is above max_document_tokens {most}")
        if not 0 <= self.weight < inf:
            found.append(f"weight must be a number, not negative; got {self.weight}")
        if self.cache_limit is not None and self.remote is None:
            found.append("cache_limit needs a remote: without one, nothing may be evicted")
        _raise(found)


MASK_STEPS = 1 << 16
"""Shares of tokens to mask are multiples of one by this."""


@dataclass(frozen=True, kw_only=True)
class MaskingConfig:
    """Masked-language modelling: which tokens are predicted, and what the model sees instead."""

    rate: float = 0.3
    """Share of the ordinary tokens to predict, at the start of the phase."""
    final_rate: float | None = None
    """If set, the rate moves linearly from `rate` to this over the phase's `over` tokens."""
    over: Duration | None = None
    """How long the rate takes to reach `final_rate`."""
    whole_words: bool = False
    """Mask all the tokens of a word together. An ideograph is a word; eight tokens are the most."""
    spans: bool = False
    """Mask one to ten tokens in a row together, 3.8 on average; with `whole_words`, words."""

    def __post_init__(self) -> None:
        found = []
        for name in ("rate", "final_rate"):
            value = getattr(self, name)
            if value is not None and not 0 < value < 1:
                found.append(f"{name} is a share of the tokens, in (0, 1); got {value}")
            elif value is not None and not 0 < round(value * MASK_STEPS) < MASK_STEPS:
                found.append(f"{name} {value} would mask none or all: it is kept to 1/{MASK_STEPS}")
        if (self.final_rate is None) != (self.over is None):
            found.append("final_rate and over go together: set both or neither")
        if self.over is not None and (self.over.unit != "tok" or self.over.value < 1):
            found.append(f"over is counted in tokens, such as '1e9tok'; got '{self.over}'")
        _raise(found)


def row_ranges(texts: tuple[str, ...]) -> list[range]:
    """Ranges of row numbers from texts such as '1200-1247' or '1300', ends included.

    Raises:
        ValueError: Naming the text that is neither.
    """
    found = []
    for text in texts:
        match = re.fullmatch(r"\s*(\d+)\s*(?:-\s*(\d+)\s*)?", str(text))
        if match is None or int(match[2] or match[1]) < int(match[1]):
            raise ValueError(f"expected a row number or a range such as '1200-1247'; got '{text}'")
        found.append(range(int(match[1]), int(match[2] or match[1]) + 1))
    return found


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """The stream of packed rows."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    max_seq_len: int = 1024
    """Tokens of one segment at most, [CLS] and [SEP] included."""
    row_tokens: int = 8192
    """Token slots of a packed row. More waste less padding and make coarser batches."""
    long_documents: Literal["split", "truncate"] = "split"
    """A document over `max_seq_len` becomes consecutive pieces, or loses its tail."""
    lanes: int = 96
    """Independent packers, whatever the number of ranks: the number of ranks must divide it."""
    canonical_nodes: int = 1
    """Groups of shards; a node reads only the groups of its lanes. Divides `lanes`."""
    waiting_pieces: int = 256
    """At least so many pieces wait in a packer. More waste less padding, and delay pieces."""
    block_documents: int = 262_144
    """Documents are shuffled inside blocks of whole shards of about this many documents."""
    shuffle: bool = True
    """False reads shards and their documents in the order they are stored."""
    seed: int | None = None
    """Order and masks; the run's seed if null."""
    objective: Literal["masked", "causal"] = "masked"
    """What is learned: tokens that are masked, or each token from those before it alone.

    `causal` is a detour: `masking` says nothing then, and a masked phase has to follow.
    """
    masking: MaskingConfig = field(default_factory=MaskingConfig)
    skip_rows: tuple[str, ...] = ()
    """Ranges of global row numbers left out of training, such as '1200-1247'."""
    on_bad_shard: Literal["stop", "skip"] = "stop"
    """Whether a shard that cannot be read ends the run, or its documents are passed over."""
    allow_changed: tuple[str, ...] = ()
    """What may differ from the checkpoint that is resumed, by the keys its refusal names."""
    workers: int = 0
    """Processes per rank that read and pack ahead; 0 packs between steps. Divides lanes / ranks."""
    prefetch_rows: int = 16
    """Rows each worker prepares ahead."""

    @property
    def causal(self) -> bool:
        """Whether each token is predicted from those before it, and nothing is masked."""
        return self.objective == "causal"

    @property
    def predicted_shares(self) -> tuple[float, float]:
        """Share of the ordinary tokens that are predicted, at the phase's start and at its end."""
        if self.causal:
            return 1.0, 1.0
        first, last = self.masking.rate, self.masking.final_rate
        return first, first if last is None else last

    def __post_init__(self) -> None:
        found = []
        if not any(source.weight > 0 for source in self.sources.values()):
            found.append("sources: at least one source of documents needs a weight above 0")
        if self.max_seq_len < 8:
            found.append(f"max_seq_len must be at least 8; got {self.max_seq_len}")
        if self.row_tokens < 1:
            found.append(f"row_tokens must be at least 1; got {self.row_tokens}")
        elif self.max_seq_len > self.row_tokens:
            found.append(
                f"max_seq_len {self.max_seq_len} is larger than row_tokens {self.row_tokens}: "
                "raise row_tokens to a multiple of it"
            )
        least = {"lanes": 1, "canonical_nodes": 1, "waiting_pieces": 1, "block_documents": 1}
        for name, limit in (least | {"workers": 0, "prefetch_rows": 1}).items():
            if getattr(self, name) < limit:
                found.append(f"{name} must be at least {limit}; got {getattr(self, name)}")
        if min(self.lanes, self.canonical_nodes) > 0 and self.lanes % self.canonical_nodes:
            found.append(
                f"canonical_nodes {self.canonical_nodes} does not divide lanes {self.lanes}"
            )
        for key in self.allow_changed:
            if key not in MAY_CHANGE and not key.startswith("sources."):
                found.append(
                    f"allow_changed: '{key}' is none of {', '.join(MAY_CHANGE)}, sources.NAME"
                )
        try:
            row_ranges(self.skip_rows)
        except ValueError as error:
            found.append(f"skip_rows: {error}")
        _raise(found)


@dataclass(frozen=True, kw_only=True)
class BatchWarmupConfig:
    """The global batch grows in equal steps of rows, each size for the same number of batches."""

    initial_rows: int
    """Rows of the first batches."""
    increment_rows: int
    """By how many rows the batch grows each time."""
    over: Duration
    """Tokens after which the batch has its full size."""

    def __post_init__(self) -> None:
        found = []
        for name in ("initial_rows", "increment_rows"):
            if getattr(self, name) < 1:
                found.append(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.over.unit != "tok":
            found.append(f"over is counted in tokens ('tok'); got '{self.over}'")
        _raise(found)


@dataclass(frozen=True, kw_only=True)
class BatchConfig:
    """Rows per optimizer step, over all ranks and accumulation steps."""

    rows: int
    """Rows of a global batch: times `train_data.row_tokens`, its token slots."""
    microbatch_rows: int = 1
    """Rows per forward and backward pass on one device. Changes speed and memory, not results."""
    warmup: BatchWarmupConfig | None = None

    def __post_init__(self) -> None:
        found = []
        for name in ("rows", "microbatch_rows"):
            if getattr(self, name) < 1:
                found.append(f"{name} must be at least 1; got {getattr(self, name)}")
        if self.warmup is not None and self.warmup.increment_rows > 0:
            span = self.rows - self.warmup.initial_rows
            if span < 0 or span % self.warmup.increment_rows:
                found.append(
                    f"rows {self.rows} is not reached from warmup.initial_rows "
                    f"{self.warmup.initial_rows} in steps of {self.warmup.increment_rows}"
                )
        _raise(found)


def _raise(found: list[str]) -> None:
    if found:
        raise ValueError("\n".join(found))
