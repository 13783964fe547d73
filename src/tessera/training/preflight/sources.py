"""What can be known about a phase's sources before it runs: faults, and what is hardly meant."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

from tessera.data.config import SourceConfig
from tessera.data.sources.mds_shard import INDEX, parse_index
from tessera.data.sources.source import Documents, open_source
from tessera.data.supply import Reading
from tessera.evaluation.tasks.inputs.tables import look_at
from tessera.object_store import open_store
from tessera.paths import is_remote, scheme_of
from tessera.quantities import short_number
from tessera.tokenizer import Tokenizer
from tessera.training.config import LinearProbeConfig, RunConfig

MOST_EPOCHS = 4
"""Readings of a source that are about as good as new text (https://arxiv.org/abs/2305.16264)."""
MOST_OF_ONE_DOCUMENT = 0.5
"""Of a validation split's tokens, that one document may hold unsaid."""


def repeated_too_often(reading: Reading) -> str | None:
    """A doubt if a phase reads a source again and again; none if that is not known."""
    epochs, tokens, wanted = reading.epochs, reading.supply.tokens, reading.wanted
    if tokens == 0:
        return (
            f"train_data.sources.{reading.name}: no document has a length between its "
            "min_document_tokens and max_document_tokens"
        )
    if epochs is None or epochs <= MOST_EPOCHS or wanted is None:
        return None
    return (
        f"train_data.sources.{reading.name}: its {short_number(tokens or 0)} tokens would be read "
        f"{short_number(epochs)} times to make {short_number(wanted)}. Up to {MOST_EPOCHS} "
        "readings teach about as much as new text, more teach less and less "
        "(https://arxiv.org/abs/2305.16264): add text, lower its weight, or shorten duration"
    )


def source_problems(
    key: str,
    name: str,
    source: SourceConfig,
    splits: list[str | None],
    tokenizer: Tokenizer | None,
    opened: dict[tuple[str, str], Documents] | None = None,
    *,
    whole: bool,
) -> list[str]:
    """What keeps a source from being read.

    Args:
        key: of the source in the YAML.
        name: of the source.
        source: where it is.
        splits: its splits that are read.
        tokenizer: what training reads it with, if known.
        opened: each split is put here by name and split, for whoever looks into it next.
        whole: whether no shard may be passed over.
    """
    named = [split for split in splits if split is not None]
    if source.remote is not None:
        return _remote_problems(key, name, source, named)
    found = []
    for split in named:
        try:
            documents = open_source(name, source, split, None)
        except ValueError as error:
            found.append(f"{key}: {error}")
            if not Path(source.local).exists():
                break  # the other split is missing with the whole folder
            continue
        if opened is not None:
            opened[name, split] = documents
        made_by = documents.tokenizer_fingerprint
        folder = Path(source.local) / split
        if tokenizer is not None and made_by not in (None, tokenizer.fingerprint):
            found.append(
                f"{key}: the shards in {folder} were made with another tokenizer than "
                f"{tokenizer.name}; name the tokenizer they were made with, or prepare them again"
            )
            break  # the other split's would say it again
        if whole and (lacking := documents.lacking()):
            found.append(f"{key}: {lacking}; copy them again, or name the remote they are at")
    return found


def _remote_problems(key: str, name: str, source: SourceConfig, splits: list[str]) -> list[str]:
    """What keeps a remote's index from being read, asked where that takes a moment.

    Of other object stores, which Streaming reads through libraries of their own, and of a remote
    whose index is in the cache already, nothing is asked: training goes on with what is there.
    """
    assert source.remote is not None
    for split in splits:
        if (Path(source.local) / split / INDEX).is_file():
            continue
        place = f"{source.remote}/{split}".rstrip("/")
        try:
            if not is_remote(source.remote):
                open_source(name, replace(source, local=source.remote, remote=None), split, None)
            elif scheme_of(source.remote) == "s3":
                content = open_store(place).read(INDEX)
                if content is None:
                    raise ValueError(f"{place} holds no {INDEX}; correct `remote` or `split`")
                parse_index(content.content, f"{place}/{INDEX}")
        except ValueError as error:
            return [f"{key}: {error}"]
    return []


def probe_problems(config: RunConfig) -> list[str]:
    """What keeps the labelled texts of a linear probe from being read."""
    probes = config.evaluation.probes
    asked = None if probes is None else probes.linear_probe
    return [] if asked is None else linear_probe_problems(asked)


def linear_probe_problems(asked: LinearProbeConfig) -> list[str]:
    """What keeps these files of labelled texts from being read."""
    key = "evaluation.probes.linear_probe"
    found = []
    if find_spec("sklearn") is None:
        found.append(f"{key}: needs scikit-learn: pip install 'tessera[eval]'")
    for name, where in (("train", asked.train), ("test", asked.test)):
        try:
            look_at(where, [asked.text, asked.label])
        except ValueError as error:
            found.append(f"{key}.{name}: {error}")
    return found


def one_document_is_all(name: str, documents: Documents) -> str | None:
    """A doubt if a validation split is little more than one document."""
    if len(documents.samples) > 64:
        return None
    here = [documents.lengths_here(shard) for shard in range(len(documents.samples))]
    lengths = [int(n) for shard in here if shard is not None for n in shard]
    total, longest = sum(lengths), max(lengths, default=0)
    if not total or longest <= MOST_OF_ONE_DOCUMENT * total:
        return None
    return (
        f"evaluation: one of the {len(lengths)} validation documents of '{name}' holds "
        f"{longest / total:.0%} of their tokens, so its loss is little more than that document's; "
        "hold out more documents (data_prep/tokenize.py --validation-share)"
    )
