"""The kinds of tasks that a suite may hold. Imports no torch.

`name` says the kind. A split is a file (JSON lines, Parquet, CSV or TSV), or a data set of the
Hugging Face hub as `hf://datasets/ORG/NAME/SUBSET/SPLIT`, read from the cache of this machine.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from tessera.data.config import DataConfig
from tessera.paths import SourcePath

NAME_TOKENS, PHRASE_TOKENS = 3, 8
"""Of a name to recall, and of the phrase on either side of it."""

Point = dict[str, float]
"""One point of a grid: hyperparameters by name."""

LOWER_IS_BETTER = {"loss", "pseudo_perplexity"}
"""Metrics of which less is better; of all others more is."""


@dataclass(frozen=True, kw_only=True)
class Training:
    """How a task is fine-tuned: every point of the grid with the first seed, the best with all."""

    lr: list[float] = field(default_factory=lambda: [3e-5, 5e-5, 8e-5])
    """Peak rates of the grid; the rate rises for `warmup` and falls linearly to zero."""
    weight_decay: list[float] = field(default_factory=lambda: [1e-5])
    """Decays of the grid."""
    epochs: list[int] = field(default_factory=lambda: [3])
    """Passes of the grid."""
    points: int | None = None
    """How many points of the grid are tried, drawn at random. None: all."""
    batch: int = 64
    warmup: float = 0.1
    """Share of the steps in which the rate rises."""
    evaluations: int | None = None
    """How often validation is asked during a run; the best answer is kept. None: once an epoch."""
    betas: tuple[float, float] = (0.9, 0.98)
    eps: float = 1e-6

    def __post_init__(self) -> None:
        problems = []
        for name in ("lr", "weight_decay", "epochs"):
            values = getattr(self, name)
            if not values:
                problems.append(f"{name}: is empty; the grid needs a value")
            elif any(value < 0 or (value == 0 and name != "weight_decay") for value in values):
                problems.append(f"{name}: must be positive; got {values}")
        for name in ("batch", "points", "evaluations"):
            value = getattr(self, name)
            if value is not None and value < 1:
                problems.append(f"{name}: must be at least 1; got {value}")
        if not 0 <= self.warmup < 1:
            problems.append(f"warmup: is a share, in [0, 1); got {self.warmup}")
        if problems:
            raise ValueError("\n".join(problems))


ClassificationMetric = Literal["accuracy", "f1", "macro_f1", "matthews"]
RegressionMetric = Literal["spearman", "pearson"]


@dataclass(frozen=True, kw_only=True)
class _FineTuned:
    """What all tasks say that a model is fine-tuned on."""

    train: str
    validation: str
    """Chooses the epoch and the point of the grid."""
    test: str | None = None
    """What is reported. None: the best score on `validation`, as GLUE's development sets."""
    max_tokens: int = 256
    training: Training = field(default_factory=Training)
    limit: int | None = None
    """At most this many rows of each split, the first ones."""
    metrics: list[Any]
    """The first is the one reported."""

    def __post_init__(self) -> None:
        _check(self.max_tokens, self.limit, self.metrics)


@dataclass(frozen=True, kw_only=True)
class _OfTexts(_FineTuned):
    """A task on a text, or on a pair of texts."""

    text: str = "text"
    """Column of the text; of several, `a+b`, joined by a space."""
    pair: str | None = None
    """The same of the second text, of a pair."""
    label: str = "label"
    """Column of what is to be found."""
    start: str | None = None
    """Another task of the suite, whose best model this one starts from."""


@dataclass(frozen=True, kw_only=True)
class Classification(_OfTexts):
    """A class for a text, or for a pair of texts; labels are text or whole numbers."""

    name: Literal["classification"]
    metrics: list[ClassificationMetric] = field(default_factory=lambda: ["accuracy"])
    """The first is the one reported. `f1` is of the class that sorts last, such as 1 of 0 and 1."""


@dataclass(frozen=True, kw_only=True)
class Regression(_OfTexts):
    """A number for a text, or for a pair of texts, such as how similar they are."""

    name: Literal["regression"]
    metrics: list[RegressionMetric] = field(default_factory=lambda: ["spearman"])


@dataclass(frozen=True, kw_only=True)
class TokenClassification(_FineTuned):
    """A class for each word of a text; words beyond `max_tokens` are counted as wrong."""

    name: Literal["token_classification"]
    words: str = "words"
    """Column of the words: a list of texts."""
    labels: str = "labels"
    """Column of their classes: a list as long."""
    outside: str = "O"
    """The class of a word that is nothing; `f1` is over the others."""
    metrics: list[Literal["f1", "accuracy"]] = field(default_factory=lambda: ["f1", "accuracy"])
    """Over words, not spans: `f1` is micro-averaged over all classes but `outside`."""


@dataclass(frozen=True, kw_only=True)
class _Search:
    """Documents found for queries: one's own, or mteb's sets."""

    queries: str | None = None
    """Rows with `id` and `text`; `_id` is taken too."""
    documents: str | None = None
    """Rows with `id` (or `_id`), `text` and perhaps `title`."""
    relevance: str | None = None
    """Rows with `query`, `document` (or `query-id`, `corpus-id`) and a `score` of whole numbers (1
    if there is none)."""
    mteb: list[str] = field(default_factory=list)
    """Instead of these, retrieval tasks of mteb, whose mean is reported: `NAME`, `NAME/SUBSET`,
    `NAME:SPLIT` or both, such as `MultiLongDocRetrieval/en:test`."""
    validation: dict[str, str] | None = None
    """Other `queries`, `documents` and `relevance`, which choose the point of the grid."""
    validation_mteb: list[str] = field(default_factory=list)
    """The same of mteb. Without anything else to be asked, validation is what is reported."""
    train: str | None = None
    """Rows with `query` (or `anchor`), `positive` and perhaps `negative` or `negative_1` ... None:
    nothing is trained."""
    train_queries: str | None = None
    """Rows with `id` (or `query_id`) and `text`: then `train` has ids, in the columns of
    `relevance`, or a teacher's scores of them."""
    train_documents: str | None = None
    """Rows with `id` (or `document_id`) and `text`."""
    train_rows: int | None = None
    """At most this many rows of `train`, drawn at random, the same for all models and points."""
    start: str | None = None
    """Another task of this kind in the suite, whose best model this one starts from."""
    max_tokens: int = 256
    training: Training = field(default_factory=Training)
    minibatch: int = 32
    """Texts in memory at a time; the whole batch are one another's negatives."""

    def __post_init__(self) -> None:
        _check(self.max_tokens, self.train_rows, ["ndcg_at_10"], "train_rows")
        own = [self.queries, self.documents, self.relevance]
        problems = []
        if any(own) and not all(own):
            for name, where in zip(("queries", "documents", "relevance"), own, strict=True):
                if where is None:
                    problems.append(f"{name}: missing, and required beside the others")
        if any(own) and self.mteb:
            problems.append("mteb: and queries, documents, relevance are two tasks; make two")
        if self.validation is not None and set(self.validation) != set(SEARCHED):
            problems.append(f"validation: names {', '.join(sorted(SEARCHED))}, all three")
        if self.validation is not None and self.validation_mteb:
            problems.append("validation_mteb: and validation are two; keep one")
        validated = self.validation is not None or bool(self.validation_mteb)
        if not any(own) and not self.mteb and not validated:
            problems.append("queries: missing; name queries, documents and relevance, or mteb")
        looked_up = [self.train_queries, self.train_documents]
        if any(looked_up) and not (all(looked_up) and self.train):
            problems.append("train: needs both train_queries and train_documents, or neither")
        if self.train is not None and not validated and len(grid(self.training, 0)) > 1:
            problems.append("validation: missing, and required to choose among points of a grid")
        if problems:
            raise ValueError("\n".join(problems))


SEARCHED = ("queries", "documents", "relevance")
"""What a set of one's own consists of."""


@dataclass(frozen=True, kw_only=True)
class Retrieval(_Search):
    """Documents found for queries by the cosine of their vectors, the mean of their tokens."""

    name: Literal["retrieval"]


@dataclass(frozen=True, kw_only=True)
class LateInteraction(_Search):
    """Documents found by a vector a token: the best match of each of the query's, summed (MaxSim).

    Trained on a teacher's scores (KL divergence) where `train` has `query`, `documents` and
    `scores`, or `query_id`, `document_ids` and `scores` beside the texts; else by contrast.
    """

    name: Literal["late_interaction"]
    candidates: int = 32
    """Documents of a query that a teacher's scores are learned of, the first ones."""
    train_tokens: int | None = None
    """Of a document while training. None: `max_tokens`."""
    query_tokens: int = 32
    """Of a query: a shorter one is filled with mask tokens, which count; a longer one is cut."""
    dimensions: int = 128
    """Of a token's vector, by a projection that is trained. Untrained: the model's own."""

    def __post_init__(self) -> None:
        super().__post_init__()
        problems = [
            f"{name}: must be at least {least}; got {value}"
            for name, least in (
                ("candidates", 2),
                ("train_tokens", 8),
                ("query_tokens", 8),
                ("dimensions", 1),
            )  # fmt: skip
            if (value := getattr(self, name)) is not None and value < least
        ]
        if problems:
            raise ValueError("\n".join(problems))


@dataclass(frozen=True, kw_only=True)
class _OnDocuments:
    """What all tasks say that ask a language model about documents."""

    data: DataConfig | None = None
    """The sources, and how their documents are cut. None: that of the phase `--config` names."""
    tokenizer: SourcePath | None = None
    """None: that of the phase `--config` names; with `texts`, the model's own."""
    texts: str | None = None
    """Texts of one's own instead of `data`: a file, or `hf://datasets/ORG/NAME/SUBSET/SPLIT`."""
    text: str = "text"
    """Column of the text in `texts`."""
    max_seq_len: int | None = None
    """Tokens of a document at most. None: what `data` says; with `texts`, the model's longest."""
    seed: int = 17
    """Chooses documents and masks."""

    def _problems(self) -> list[str]:
        found = []
        if self.texts is not None and self.data is not None:
            found.append("texts: and data both say what is asked about; keep one")
        if self.max_seq_len is not None and self.max_seq_len < 8:
            found.append(f"max_seq_len: must be at least 8; got {self.max_seq_len}")
        return found


@dataclass(frozen=True, kw_only=True)
class MaskedLm(_OnDocuments):
    """Masked-LM loss on documents: by source, position, context, rate and frequency."""

    name: Literal["masked_lm"]
    rates: list[float] = field(default_factory=lambda: [0.15, 0.3])
    """Shares of the tokens masked; everything but the table of rates is at the first."""
    max_tokens: int = 1_000_000
    """Of each source."""
    short: int = 512
    """Tokens of context that the whole context is compared with."""
    pseudo_perplexity_tokens: int = 2048
    """Tokens masked one at a time; 0 for none."""

    def __post_init__(self) -> None:
        found = self._problems()
        if not self.rates or not all(0 < rate < 1 for rate in self.rates):
            found.append(f"rates: are shares, in (0, 1); got {self.rates}")
        if self.short < 8:
            found.append(f"short: must be at least 8; got {self.short}")
        if found:
            raise ValueError("\n".join(found))


@dataclass(frozen=True, kw_only=True)
class Recall(_OnDocuments):
    """Names of random tokens, masked, that stand once before in the text; or, to compare, do not.

    A name stands inside a phrase of another document, which is laid over the end of a text, and,
    so many tokens before, over the text once more with the name in it.
    """

    name: Literal["recall"]
    distances: list[int] = field(default_factory=lambda: [30, 100, 300, 1000, 2000, 4000, 8000])
    """Tokens between a name and where it stood before; those that fit into `max_seq_len`."""
    names: int = 64
    """Of each distance: the same names, texts and places."""
    name_tokens: int = NAME_TOKENS
    phrase_tokens: int = PHRASE_TOKENS
    """Of the phrase on either side of the name."""

    def __post_init__(self) -> None:
        found = self._problems() + recall_problems(self.distances, self.names)
        for key in ("name_tokens", "phrase_tokens"):
            if getattr(self, key) < 1:
                found.append(f"{key}: must be at least 1; got {getattr(self, key)}")
        if found:
            raise ValueError("\n".join(found))


def recall_problems(distances: Sequence[int], names: int) -> list[str]:
    """What is wrong with the distances and the number of names of a recall task."""
    found = []
    if not distances or len(set(distances)) < len(distances) or min(distances) < 1:
        found.append(f"distances: are different numbers of tokens; got {list(distances)}")
    if names < 1:
        found.append(f"names: must be at least 1; got {names}")
    return found


def fitting_distances(
    distances: Sequence[int], *, max_seq_len: int, name_tokens: int, phrase_tokens: int
) -> tuple[int, ...]:
    """The distances that a text of `max_seq_len` tokens has room for, ascending.

    Raises:
        ValueError: there is none.
    """
    nearest = 2 * phrase_tokens + name_tokens
    furthest = max_seq_len - 2 - nearest
    found = tuple(sorted(d for d in distances if nearest <= d <= furthest))
    if not found:
        raise ValueError(
            f"distances: none of {', '.join(map(str, distances))} lies between {nearest}, the "
            f"length of the phrase, and {furthest}, the most that {max_seq_len} tokens of text "
            "allow"
        )
    return found


@dataclass(frozen=True, kw_only=True)
class LinearProbe:
    """A class for a text, by logistic regression on frozen features; the model is not trained."""

    name: Literal["linear_probe"]
    train: str
    validation: str
    """Chooses the layer and the penalty."""
    test: str | None = None
    """What is reported. None: the score on `validation`."""
    text: str = "text"
    pair: str | None = None
    label: str = "label"
    max_tokens: int = 256
    limit: int | None = None
    """At most this many rows of each split, the first ones."""
    layers: Literal["all", "last"] = "all"
    inverse_penalties: list[float] = field(default_factory=lambda: [0.01, 0.1, 1.0])
    """What scikit-learn calls `C`: the smaller, the simpler the classifier."""
    metrics: list[ClassificationMetric] = field(default_factory=lambda: ["accuracy"])
    """The first is the one reported."""

    def __post_init__(self) -> None:
        _check(self.max_tokens, self.limit, self.metrics)
        if not self.inverse_penalties or min(self.inverse_penalties) <= 0:
            raise ValueError(f"inverse_penalties: must be positive; got {self.inverse_penalties}")


@dataclass(frozen=True, kw_only=True)
class Similarity:
    """How similar two texts are, as people rated it and by the cosine of frozen features."""

    name: Literal["similarity"]
    test: str
    validation: str | None = None
    """Chooses the layer. None: the last."""
    text: str = "text"
    pair: str = "pair"
    score: str = "score"
    """Column of the rating: a number, more for more similar."""
    max_tokens: int = 256
    limit: int | None = None
    layers: Literal["all", "last"] = "all"

    def __post_init__(self) -> None:
        _check(self.max_tokens, self.limit, ["spearman"])


@dataclass(frozen=True, kw_only=True)
class Efficiency:
    """Tokens a second on synthetic documents of four shapes (efficiency/ of ModernBERT's code)."""

    name: Literal["efficiency"]
    documents: int = 4096
    """Of each of the short shapes; of the long ones `long_documents`."""
    long_documents: int | None = None
    """None: as many as `documents`."""
    short: int = 512
    """Tokens of a document at fixed length; at variable length they are normal around its half."""
    long: int = 8192
    runs: int = 10
    batch_tokens: int | None = None
    """Tokens a batch may hold, padding included. None: the most that fits a GPU; 16384 on a CPU."""
    seed: int = 17

    def __post_init__(self) -> None:
        problems = [
            f"{name}: must be at least {least}; got {value}"
            for name, least in (("documents", 1), ("runs", 1), ("short", 32), ("long", 32))
            if (value := getattr(self, name)) < least
        ]
        if problems:
            raise ValueError("\n".join(problems))


Finetuned = Classification | Regression | TokenClassification
Search = Retrieval | LateInteraction
Task = Finetuned | Search | MaskedLm | Recall | LinearProbe | Similarity | Efficiency

ADDED: dict[str, dict[str, Any]] = {
    "retrieval": {
        "mteb": [],
        "validation_mteb": [],
        "train_queries": None,
        "train_documents": None,
        "train_rows": None,
        "start": None,
    }
}
"""Keys that a kind got later, with the value that changes nothing: older records stay valid."""


def main_metric(task: Task) -> str:
    """The metric that stands for a task in the table."""
    if isinstance(task, Finetuned | LinearProbe):
        return task.metrics[0]
    if isinstance(task, Search):
        return "ndcg_at_10"
    names = {
        "masked_lm": "loss",
        "recall": "accuracy",
        "similarity": "spearman",
        "efficiency": "tokens_per_second",
    }
    return names[task.name]


def points_of(task: Task, seed: int) -> list[Point]:
    """The grid of a task; one point without coordinates if nothing is trained."""
    if isinstance(task, Finetuned) or (isinstance(task, Search) and task.train):
        return grid(task.training, seed)
    return [{}]


def grid(training: Training, seed: int) -> list[Point]:
    """The points of a grid, or `points` of them, drawn with a seed."""
    import random

    whole = [
        {"lr": lr, "weight_decay": decay, "epochs": epochs}
        for lr in training.lr
        for decay in training.weight_decay
        for epochs in training.epochs
    ]
    if training.points is None or training.points >= len(whole):
        return whole
    return random.Random(seed).sample(whole, training.points)


def is_seeded(task: Task) -> bool:
    """Whether another seed gives another score."""
    return points_of(task, 0) != [{}]


def texts_of(task: Classification | Regression) -> list[str]:
    """The columns that a task on texts reads: of the texts, and of what is to be found."""
    joined = [task.text, *([task.pair] if task.pair else [])]
    return [*(column for text in joined for column in text.split("+")), task.label]


def splits_of(task: Task) -> dict[str, str]:
    """The files and data sets that a task reads, by the key that names each."""
    named: dict[str, Any]
    if isinstance(task, Finetuned | LinearProbe):
        named = {"train": task.train, "validation": task.validation, "test": task.test}
    elif isinstance(task, Similarity):
        named = {"validation": task.validation, "test": task.test}
    elif isinstance(task, Search):
        keys = (*SEARCHED, "train", "train_queries", "train_documents")
        named = {key: getattr(task, key, None) for key in keys}
        named |= {f"validation.{key}": path for key, path in (task.validation or {}).items()}
    elif isinstance(task, MaskedLm | Recall):
        named = {"texts": task.texts}
    else:
        named = {}
    return {key: path for key, path in named.items() if path is not None}


def _check(max_tokens: int, limit: int | None, metrics: Sequence[str], name: str = "limit") -> None:
    problems = []
    if max_tokens < 8:
        problems.append(f"max_tokens: must be at least 8; got {max_tokens}")
    if limit is not None and limit < 1:
        problems.append(f"{name}: must be at least 1; got {limit}")
    if not metrics:
        problems.append("metrics: is empty; name the one to report")
    if problems:
        raise ValueError("\n".join(problems))
