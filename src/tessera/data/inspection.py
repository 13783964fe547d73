"""What a folder of token shards holds, as a person wants to see it.

Reads the index, the headers of some shards (which tell lengths) and a few documents. Imports no
torch for shards that lie here uncompressed, and leaves nothing in the folder.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from tessera.data.config import DataConfig, SourceConfig
from tessera.data.pipeline.masking import mask
from tessera.data.pipeline.packing import Waiting
from tessera.data.pipeline.pieces import Cut, Piece
from tessera.data.pipeline.rows import lay_out, row_format
from tessera.data.randomness import Draws
from tessera.data.sources.mds import MdsDocuments
from tessera.data.sources.mds_shard import INDEX, SUMMARY, Index, parse_index
from tessera.data.sources.special_tokens import Framing, declared
from tessera.tokenizer import Tokenizer, load_tokenizer

_SHARDS_LOOKED_AT = 16
_REMOTE_SHARDS_LOOKED_AT = 1
_SAMPLES = 3
_BAR = 40
_ROW_TOKENS = 256
_MASKING_RATE = 0.3


@dataclass(frozen=True)
class Shards:
    """A folder of shards, opened, and what some of its shards' headers say."""

    path: str
    source: MdsDocuments
    index: Index
    looked_at: tuple[int, ...]
    """Numbers of the shards whose headers were read."""
    lengths: np.ndarray
    """(documents of those shards,) tokens of each, as stored."""

    @property
    def all_read(self) -> bool:
        """Whether the lengths are those of every document."""
        return len(self.looked_at) == len(self.index.shards)

    def first_documents(self, count: int) -> Iterator[tuple[int, str, np.ndarray]]:
        """(shard, id, tokens as stored) of documents spread over the shards looked at."""
        each = -(-count // len(self.looked_at))
        for shard in self.looked_at:
            total = int(self.source.samples[shard])
            for sample in np.unique(np.linspace(0, total - 1, min(each, total)).astype(int)):
                document = self.source.document(shard, int(sample))
                yield shard, self.source.document_id(shard, int(sample)), document


def folders_of_shards(path: Path) -> list[Path]:
    """The folder itself or, if it is none, those below it that hold an index, two levels deep."""
    if (path / INDEX).is_file():
        return [path]
    found = [index.parent for depth in ("*", "*/*") for index in path.glob(f"{depth}/{INDEX}")]
    return sorted(folder for folder in found if not folder.name.startswith("."))


def read_index(path: Path) -> Index:
    """The index of a folder of shards.

    Raises:
        ValueError: it is damaged, or names what no index should.
    """
    return parse_index((path / INDEX).read_bytes(), f"{path / INDEX}")


@contextmanager
def opened(path: str) -> Iterator[Shards]:
    """Open a local or remote folder of shards without leaving anything in it.

    Raises:
        ValueError: it has no index, or no column of token ids.
    """
    remote = "://" in path
    with tempfile.TemporaryDirectory() as scratch:
        packed = not remote and any(
            shard.compressed and not (Path(path) / shard.raw.basename).is_file()
            for shard in read_index(Path(path)).shards
        )
        if remote or packed:  # what is fetched or decompressed goes to a place of its own
            source = MdsDocuments("inspected", scratch, remote=path, attempts=1)
        else:
            source = MdsDocuments("inspected", path)
        index = read_index(Path(scratch) if remote or packed else Path(path))
        full = [n for n, shard in enumerate(index.shards) if shard.samples]
        most = _REMOTE_SHARDS_LOOKED_AT if remote else _SHARDS_LOOKED_AT
        spread = np.unique(np.linspace(0, len(full) - 1, min(most, len(full))).astype(int))
        numbers = tuple(full[n] for n in spread) if len(full) > most else tuple(full)
        try:
            lengths = np.concatenate([source.lengths(number) for number in numbers])
            yield Shards(path, source, index, numbers, lengths)
        finally:
            source.close()


def tokenizer_beside(path: str, fingerprint: str | None) -> Tokenizer | None:
    """The tokenizer that made the shards, if it lies in a folder `tokenizer` nearby."""
    if fingerprint is None or "://" in path:
        return None
    for parent in list(Path(path).resolve().parents)[:3]:
        folder = parent / "tokenizer"
        if (folder / "tokenizer.json").is_file():
            try:
                found = load_tokenizer(folder, quiet=True)
            except ValueError:  # of no use, and not what was asked about
                continue
            if found.fingerprint == fingerprint:
                return found
    return None


# ---- what is shown


def overview(shards: Shards) -> Iterator[str]:
    """Columns, sizes, what the manifest says, and how long documents are."""
    index, source = shards.index, shards.source
    for layout in dict.fromkeys(shard.layout for shard in index.shards):
        columns = zip(layout.names, layout.encodings, strict=True)
        yield "columns      " + ", ".join(f"{name} ({kind})" for name, kind in columns)
    size = int(source.shard_bytes.sum())
    packed = sum(shard.compressed.bytes for shard in index.shards if shard.compressed)
    yield (
        f"shards       {len(index.shards):,}, {size / 1e6:,.1f} MB"
        + (f" ({packed / 1e6:,.1f} MB compressed)" if packed else "")
        + ("" if any(shard.raw.hashes for shard in index.shards) else ", without hashes")
    )
    summary = source.summary
    yield f"documents    {int(source.samples.sum()):,}"
    part = "" if shards.all_read else f", from {len(shards.looked_at)} shards"
    mean = float(shards.lengths.mean())
    total = int(shards.lengths.sum()) if shards.all_read else int(mean * source.samples.sum())
    yield f"tokens       {'' if shards.all_read else 'about '}{total:,}{part}"
    ranks = np.percentile(shards.lengths, (0, 10, 50, 90, 99, 100), method="inverted_cdf")
    shown = zip(("least", "p10", "median", "p90", "p99", "most"), ranks, strict=True)
    yield "lengths      " + ", ".join(f"{n} {int(v):,}" for n, v in shown) + f", mean {mean:,.0f}"
    made_with = summary.get("tokenizer")
    yield (
        f"manifest     {SUMMARY}: tokenizer {made_with or 'unknown'}, special tokens "
        f"{declared(summary, SUMMARY)}"
        if summary
        else f"manifest     none: no {SUMMARY} beside the index"
    )
    yield ""
    yield from histogram(shards.lengths)


def histogram(lengths: np.ndarray) -> Iterator[str]:
    """Bars of documents by length, in powers of two, with the share of the tokens they hold."""
    yield f"{'tokens in a document':>23}  {'documents':<{_BAR}}          of the tokens"
    bins = np.floor(np.log2(np.maximum(lengths, 1))).astype(int)
    tokens = max(int(lengths.sum()), 1)
    shares = {b: float((bins == b).mean()) for b in range(bins.min(), bins.max() + 1)}
    widest = max(shares.values())
    for number, share in shares.items():
        first, last = 2**number, 2 ** (number + 1) - 1
        bar = "#" * max(round(_BAR * share / widest), 1 if share else 0)
        held = float(lengths[bins == number].sum()) / tokens
        yield f"{first:>10,} - {last:>10,}  {bar:<{_BAR}} {share:>7.1%}  {held:>7.1%}"


def samples(shards: Shards, tokenizer: Tokenizer | None) -> Iterator[str]:
    """A few documents: decoded, or as token ids if nobody knows what they mean."""
    for _, name, tokens in shards.first_documents(_SAMPLES):
        yield f"document {name or 'without id'}, {len(tokens):,} tokens"
        if tokenizer is None:
            yield f"  {' '.join(map(str, tokens[:24].tolist()))}{' ...' * (len(tokens) > 24)}"
        else:
            text = tokenizer.decode(tokens[:120])
            yield f"  {text[:400]!r}{' ...' * (len(tokens) > 120)}"


def masked_row(shards: Shards, tokenizer: Tokenizer, framing: Framing) -> Iterator[str]:
    """A row as training lays and masks it: `<saw|hidden>` where a token is to be predicted."""
    config = DataConfig(
        sources={"inspected": SourceConfig(local=shards.path)},
        max_seq_len=_ROW_TOKENS // 2,
        row_tokens=_ROW_TOKENS,
    )
    form = row_format(config, tokenizer, tokenizer.size)
    cut, waiting = Cut(config.max_seq_len, split=True), Waiting()
    for number, (shard, _, tokens) in enumerate(shards.first_documents(24)):
        bare = framing.bare(tokens, shard, shards.source).astype(form.pad_id.dtype)
        for piece in range(cut.pieces(len(bare))):
            waiting.add(Piece((0, number, piece), cut.content(bare, piece)))
    if not len(waiting):
        return
    pieces = waiting.take_row(config.row_tokens)
    ids, ends, used = lay_out(pieces, form)
    seen, positions, labels = mask(ids, form.vocabulary, _MASKING_RATE, Draws("inspected", 0))
    hidden = dict(zip(positions.tolist(), labels.tolist(), strict=True))
    yield (
        f"one row of {config.row_tokens} slots: {len(pieces)} segments, {used} tokens, "
        f"{config.row_tokens - used} of padding, {len(positions)} to predict, shown as <seen|true>"
    )
    start = 0
    for end in ends[: len(pieces)].tolist():
        parts = [
            f"<{_text(tokenizer, int(seen[n]))}|{_text(tokenizer, hidden[n])}>"
            if n in hidden
            else _text(tokenizer, int(seen[n]))
            for n in range(start, end)
        ]
        yield "  " + "".join(parts).replace("\n", "\\n")
        start = end


def conversion(index: Index, path: str) -> tuple[str, str] | None:
    """Why shards cannot be trained on as they are, and what makes shards of them that can."""
    for layout in dict.fromkeys(shard.layout for shard in index.shards):
        if layout.problem is None:
            continue
        names = dict(zip(layout.names, layout.encodings, strict=True))
        texts = [name for name, kind in names.items() if kind == "str" and name != "id"]
        tokens = [n for n, kind in names.items() if kind.partition(":")[0] in ("bytes", "ndarray")]
        wanted = ("input_ids", "tokens")
        best = next((name for name in (*wanted, *tokens) if name in tokens), None)
        column = best or next((name for name in ("text", *texts) if name in texts), "COLUMN")
        return layout.problem, (
            f"tessera data convert {path} --column {column} --tokenizer TOKENIZER --out FOLDER"
        )
    return None


def settings_for(shards: Shards) -> str:
    """The YAML that reads the shards."""
    path, split = shards.path.rstrip("/"), "''"
    where = f"local: CACHE_FOLDER, remote: {path}" if "://" in path else f"local: {path}"
    if os.path.basename(path) in ("train", "validation"):
        where, split = where.removesuffix(f"/{os.path.basename(path)}"), os.path.basename(path)
    beside = Path(path).parent / "validation" / INDEX
    validation = "validation" if split == "train" and beside.is_file() else "null"
    return f"NAME: {{{where}, split: {split}, validation_split: {validation}}}"


def _text(tokenizer: Tokenizer, number: int) -> str:
    text = tokenizer.decode([number])
    return text or str(tokenizer.backend.id_to_token(number))
