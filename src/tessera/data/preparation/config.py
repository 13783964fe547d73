"""What `data_prep/tokenize.py` is asked to do, by YAML or command line. Imports no torch."""

from dataclasses import dataclass, field

from tessera.data.preparation.executors.executor import ExecutorConfig
from tessera.data.preparation.formats.tables import Quoting
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
        for name in self.sources:
            if not name or "/" in name or name in ("text", "tokenizer", "logs"):
                problems.append(
                    f"sources: '{name}' cannot name a source: it is taken, or no folder's name"
                )
        if problems:
            raise ValueError("\n".join(problems))
