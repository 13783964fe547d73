"""MDS shards of others, of texts or of token ids in another column or type, to shards of ours."""

import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.preparation.mds_writer import write_shards
from tessera.data.sources.decompress import decompress_file
from tessera.data.sources.mds_shard import ID_COLUMN, INDEX, parse_index
from tessera.tokenizer import Tokenizer, load_tokenizer

_TEXTS_AT_ONCE = 256


def convert(
    folders: Sequence[str], out: str, tokenizer_name: str, *, column: str, dtype: str
) -> Iterator[str]:
    """Write one folder of shards for each of the given; yields a line for each.

    Args:
        folders: folders of MDS shards on this machine.
        out: the folder to write; sub-folders of it, by name, if there are several.
        tokenizer_name: made the token ids, or makes them of texts.
        column: holds texts (str), or token ids (an array or bytes).
        dtype: of token ids in bytes.

    Raises:
        ValueError: there is no such column, it holds something else, or `out` is not empty.
    """
    tokenizer = load_tokenizer(tokenizer_name)
    for folder in folders:
        target = Path(out) if len(folders) == 1 else Path(out) / Path(folder).name
        if target.exists() and any(target.iterdir()):
            raise ValueError(f"{target} is not empty; choose another --out")
        summary = write_shards(
            target,
            _documents(Path(folder), tokenizer, column, dtype),
            vocab_size=tokenizer.size,
            tokenizer_fingerprint=tokenizer.fingerprint,
            prepared_from={"converted": folder, "column": column},
        )
        yield f"{target}: {summary['documents']:,} documents, {summary['tokens']:,} tokens"


_ENOUGH_TOKENS = 200
_TOO_MUCH_PADDING = 0.3
"""Half of the ids are 0 where 8-byte ids are read as 4-byte ones."""


def _documents(
    folder: Path, tokenizer: Tokenizer, column: str, dtype: str
) -> Iterator[tuple[str, np.ndarray]]:
    index = parse_index((folder / INDEX).read_bytes(), str(folder / INDEX))
    for layout in {shard.layout for shard in index.shards}:
        if column not in layout.names:
            raise ValueError(
                f"{folder}: no column '{column}', only {', '.join(layout.names)}; name another "
                "with --column"
            )
        if "pkl" in layout.encodings:
            raise ValueError(
                f"{folder}: holds pickled objects, which run code when they are read; it is not "
                "converted"
            )
        kind = layout.encoding(column).partition(":")[0]
        if kind not in ("str", "bytes", "ndarray"):
            raise ValueError(
                f"{folder}: column '{column}' is {kind}, neither texts nor token ids; name another "
                "with --column"
            )
    names: list[str] = []
    texts: list[str] = []
    seen = padding = 0
    for number, sample in enumerate(_samples(folder)):
        name, value = str(sample.get(ID_COLUMN, number)), sample[column]
        if isinstance(value, str):
            names.append(name)
            texts.append(value)
            if len(texts) == _TEXTS_AT_ONCE:
                yield from zip(names, tokenizer.encode_batch(texts), strict=True)
                names, texts = [], []
        else:
            tokens = _token_ids(value, dtype, folder, name)
            seen, padding = (
                seen + len(tokens),
                padding + int(np.isin(tokens, [0, tokenizer.pad_id]).sum()),
            )
            if seen > _ENOUGH_TOKENS and padding > seen * _TOO_MUCH_PADDING:
                raise ValueError(
                    f"{folder}: {padding} of the first {seen} token ids are 0 or [PAD] "
                    f"({tokenizer.pad_id}): they are of another --dtype than {dtype}, or padded"
                )
            yield name, _bare(tokens, tokenizer)
    yield from zip(names, tokenizer.encode_batch(texts), strict=True)


def _token_ids(value: Any, dtype: str, folder: Path, name: str) -> np.ndarray:
    try:
        tokens = np.frombuffer(value, dtype) if isinstance(value, bytes) else np.asarray(value)
    except ValueError as error:
        raise ValueError(f"{folder}, '{name}': {error}; give its --dtype") from error
    if tokens.dtype.kind not in "iu" or tokens.ndim != 1:
        raise ValueError(f"{folder}, '{name}': a {tokens.ndim}-dimensional array of {tokens.dtype}")
    if len(tokens) and int(tokens.min()) < 0:
        raise ValueError(f"{folder}, '{name}': token id {tokens.min()}; give its --dtype")
    return tokens


def _bare(tokens: np.ndarray, tokenizer: Tokenizer) -> np.ndarray:
    """Without [CLS] and [SEP], which rows add."""
    if len(tokens) and tokens[0] == tokenizer.cls_id:
        tokens = tokens[1:]
    if len(tokens) and tokens[-1] == tokenizer.sep_id:
        tokens = tokens[:-1]
    return tokens


def _samples(folder: Path) -> Iterator[dict[str, Any]]:
    """Every sample, all columns; compressed shards are decompressed into a place of their own."""
    from streaming.base.format import reader_from_json

    parse_index((folder / INDEX).read_bytes(), str(folder / INDEX))  # refuses names that climb out
    for entry in json.loads((folder / INDEX).read_text())["shards"]:
        with tempfile.TemporaryDirectory() as scratch:
            place = folder
            raw, packed = entry["raw_data"], entry["zip_data"]
            if packed and not (folder / raw["basename"]).is_file():
                place = Path(scratch)
                (place / raw["basename"]).parent.mkdir(parents=True, exist_ok=True)
                decompress_file(
                    folder / packed["basename"],
                    place / raw["basename"],
                    entry["compression"],
                    raw_bytes=raw["bytes"],
                )
            reader = reader_from_json(str(place), None, {**entry, "zip_data": None})
            yield from (reader.get_item(number) for number in range(entry["samples"]))
