"""What the scripts of `data_prep` are asked to do, by YAML or command line. Imports no torch."""

from dataclasses import dataclass, field
from typing import Any, Literal

from tessera.data.preparation.executors.executor import ExecutorConfig
from tessera.data.preparation.formats.tables import Quoting
from tessera.paths import LocalPath
from tessera.quantities import ByteSize

_SMALLEST, _LARGEST = 1000, 2**31


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One source of text."""

    path: str
    """File, folder or glob: local, s3://, gs://, hf://datasets/ORG/NAME/..."""
    text_column: str = "text"
    """Column that holds the text; `data.text` is `text` inside `data`."""
    id_column: str | None = None
    """Column that holds ids. None: `id`, or else the place in the file."""
    encoding: str = "utf-8"
    quoting: Quoting | None = None
    """Of tables: strict, none or trust. None: strict for CSV, none for TSV."""
    licence: str = ""
    """Kept beside the shards, for the card of what is trained on them."""
    tokens: str = ""
    """How large its publisher says it is."""

    def __post_init__(self) -> None:
        try:
            "".encode(self.encoding)
        except LookupError:
            raise ValueError(
                f"encoding: there is no encoding '{self.encoding}'; such as latin-1"
            ) from None


@dataclass(frozen=True, kw_only=True)
class TokenizeConfig:
    """Text to shards."""

    sources: dict[str, SourceConfig] = field(default_factory=dict)
    """By name: each becomes the folder `out/NAME`."""
    out: str = "data/demo"
    """Folder for NAME/{train,validation}: local, or in an object store."""
    tokenizer: str | None = None
    """Folder or Hugging Face id. None: `tokenizer` in `out`."""
    validation_share: float = 0.01
    """Share of the documents for validation, where names tell no splits."""
    ignore_split_names: bool = False
    """Take all files together, whatever they are called."""
    shard_size: ByteSize = ByteSize(64 * 10**6)
    part_size: ByteSize = ByteSize(64 * 10**6)
    """Input that a worker takes at a time: what is lost when it is killed."""
    compression: str | None = None
    """Such as zstd or zstd:7; needs decompressing when read."""
    overwrite: bool = False
    """Replace shards made from other input or options."""
    executor: ExecutorConfig = ExecutorConfig()

    def __post_init__(self) -> None:
        problems = []
        if not 0 < self.validation_share < 1:
            problems.append(f"validation_share: is in (0, 1); got {self.validation_share}")
        for name in ("shard_size", "part_size"):
            size = getattr(self, name).value
            if not _SMALLEST <= size < _LARGEST:
                problems.append(f"{name}: must be from 1kb to 2gb; got {size}b")
        problems += _names_taken(self.sources, ("text", "tokenizer", "logs"))
        if problems:
            raise ValueError("\n".join(problems))


def _names_taken(sources: dict[str, Any], taken: tuple[str, ...]) -> list[str]:
    return [
        f"sources: '{name}' cannot name a source: it is taken, or no folder's name"
        for name in sources
        if not name or "/" in name or name in taken or name[0] in "._" or name.endswith(".json")
    ]


# ---- cleaning

_MOST = 200
"""Of words in a row, and of what MinHash counts."""


@dataclass(frozen=True, kw_only=True)
class JoinConfig:
    """Documents that belong together, such as the files of a repository, become one."""

    by: str
    """Column that they share."""
    order: str | None = None
    """Column that they are put in order by, such as their path. None: their order in the input."""
    separator: str = "\n\n"
    """Between two documents."""
    max_characters: int = 10_000_000
    """Where a joined document would be longer, another one begins."""


@dataclass(frozen=True, kw_only=True)
class CleanSourceConfig(SourceConfig):
    """One source of text, and what is asked of it."""

    filters: dict[str, dict[str, Any]] = field(default_factory=dict)
    """Rules that each document has to pass, in this order, with their options."""
    columns: tuple[str, ...] = ()
    """Columns to keep beside id and text."""
    join: JoinConfig | None = None


@dataclass(frozen=True, kw_only=True)
class EvaluationTextConfig:
    """Texts that must not be trained on."""

    path: str
    columns: tuple[str, ...] = ("text",)
    """Columns that hold text; each is looked for by itself."""
    encoding: str = "utf-8"


@dataclass(frozen=True, kw_only=True)
class DuplicatesConfig:
    """What a copy is; the numbers are FineWeb's (Penedo et al. 2024)."""

    method: Literal["minhash", "exact", "none"] = "minhash"
    """Near copies and exact ones, exact ones alone, or none."""
    words: int = 5
    """Length of a shingle."""
    buckets: int = 14
    hashes: int = 8
    """Of a bucket: texts of Jaccard similarity (1 / buckets)^(1 / hashes), 0.72, are found half of
    the time or more often."""

    def __post_init__(self) -> None:
        problems = [
            f"{name}: must be from 1 to {_MOST}; got {getattr(self, name)}"
            for name in ("words", "buckets", "hashes")
            if not 1 <= getattr(self, name) <= _MOST
        ]
        if problems:
            raise ValueError("\n".join(problems))

    @property
    def bands(self) -> int:
        """How many keys a document has."""
        return {"none": 0, "exact": 1, "minhash": 1 + self.buckets}[self.method]


@dataclass(frozen=True, kw_only=True)
class CleanConfig:
    """Raw text to cleaner text."""

    sources: dict[str, CleanSourceConfig] = field(default_factory=dict)
    """By name: each becomes the folder `out/NAME`. Of copies, the first named source keeps one."""
    out: str = "data/clean"
    """Folder for NAME/[train,validation] and removed/NAME: local, or in an object store."""
    against: dict[str, EvaluationTextConfig] = field(default_factory=dict)
    """Evaluation texts by name: documents that share words with them are removed."""
    against_words: int = 13
    """How many words in a row are too many."""
    duplicates: DuplicatesConfig = DuplicatesConfig()
    ignore_split_names: bool = False
    """Take all files together, whatever they are called."""
    part_size: ByteSize = ByteSize(64 * 10**6)
    """Input that a worker takes at a time: what is lost when it is killed."""
    work: LocalPath | None = None
    """Folder for what passes between the stages, on a disk that all machines share; about a third
    of the size of the text. None: `work` in a local `out`, else `runs/preparation`."""
    overwrite: bool = False
    """Replace what was made from other input or options."""
    executor: ExecutorConfig = ExecutorConfig()

    def __post_init__(self) -> None:
        problems = _names_taken(self.sources, ("removed", "work", "logs"))
        if not _SMALLEST <= self.part_size.value < _LARGEST:
            problems.append(f"part_size: must be from 1kb to 2gb; got {self.part_size}")
        if not 1 <= self.against_words <= _MOST:
            problems.append(f"against_words: must be from 1 to {_MOST}; got {self.against_words}")
        problems += [
            f"against: '{name}' cannot name evaluation text: no file's name"
            for name in self.against
            if not name or "/" in name
        ]
        if problems:
            raise ValueError("\n".join(problems))
