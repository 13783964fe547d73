"""`tessera data`: what a folder of shards holds, and making it fit for training."""

import argparse
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.cli.arguments import placed, written
from tessera.config import ConfigError
from tessera.paths import LOCAL, SHARDS, SOURCE, is_remote

if TYPE_CHECKING:
    from tessera.tokenizer import Tokenizer

HELP = "What a folder of shards holds, and whether it can be trained on."
_TEXT_ENDINGS = (".jsonl", ".ndjson", ".json", ".parquet", ".csv", ".tsv", ".txt", ".md", ".arrow")


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The two commands and their options."""
    commands = parser.add_subparsers(required=True, metavar="COMMAND", dest="data_command")
    help = "columns, lengths, decoded documents and a masked row; can it be trained on?"
    inspect = commands.add_parser("inspect", help=help, description=help)
    inspect.add_argument("path", help="a folder of shards, here or remote (s3://, hf://...)")
    inspect.add_argument("--tokenizer", metavar="T", help="folder or Hugging Face id")
    inspect.add_argument(
        "--adopt", action="store_true", help="write tessera.json, which names the tokenizer"
    )
    help = "MDS shards of others, of texts or of token ids in other columns, to ours"
    convert = commands.add_parser("convert", help=help, description=help)
    convert.add_argument("path", help="a folder of MDS shards")
    convert.add_argument("--out", required=True, metavar="FOLDER")
    convert.add_argument("--column", required=True, help="of texts or of token ids")
    convert.add_argument("--tokenizer", required=True, metavar="T", help="folder or id")
    convert.add_argument(
        "--dtype",
        default="int64",
        choices=["uint16", "int32", "uint32", "int64"],
        help="of token ids in a column of raw bytes (%(default)s)",
    )


def run(options: argparse.Namespace) -> None:
    """Inspect or convert.

    Raises:
        ConfigError: the path is not what it should be; says what to do.
    """
    converting = options.data_command == "convert"
    path = placed("PATH", options.path, LOCAL if converting else SHARDS)
    named = options.tokenizer and placed("--tokenizer", options.tokenizer, SOURCE)
    if converting:
        out = str(written("--out", options.out))
        folders = _folders(path)

        from tessera.data.conversion import convert

        for line in convert(folders, out, named, column=options.column, dtype=options.dtype):
            print(line, flush=True)
        return
    folders = _folders(path)
    tokenizer = None
    if named is not None:
        from tessera.tokenizer import load_tokenizer

        tokenizer = load_tokenizer(named)
    elif options.adopt:
        tokenizer = _ask_for_tokenizer(options.path)
    for number, folder in enumerate(folders):
        if number:
            print()
        for line in _lines(folder, tokenizer, adopting=options.adopt):
            print(line, flush=True)


def _folders(path: str) -> list[str]:
    """The folders of shards that a path means, found out before anything heavy is imported."""
    if is_remote(path):
        return [path]
    here = Path(path)
    if not here.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    from tessera.data.inspection import folders_of_shards

    found = folders_of_shards(here) if here.is_dir() else []
    if found:
        return [str(folder) for folder in found]
    if here.is_file() and here.name == "index.json":
        return [str(here.parent)]
    texts = [here] if here.is_file() else [p for p in here.rglob("*") if p.is_file()][:10_000]
    if any(set(_TEXT_ENDINGS) & set(file.suffixes) for file in texts):
        raise ConfigError(
            f"{path}: text, not shards; it cannot be trained on as it is. Make shards of it: "
            f"python data_prep/tokenize.py NAME={path} --tokenizer TOKENIZER --out FOLDER"
        )
    raise ConfigError(
        f"{path}: holds no index.json, here or two folders down, so no finished shards; name the "
        "folder of the shards, or finish preparing them"
    )


def _ask_for_tokenizer(path: str) -> "Tokenizer":
    from tessera.tokenizer import load_tokenizer

    if not sys.stdin.isatty():
        raise ConfigError(
            f"{path}: --adopt needs --tokenizer, the folder or Hugging Face id of the tokenizer "
            "that made the shards; nothing in them says which it was"
        )
    return load_tokenizer(input(f"Which tokenizer made {path}? (folder or Hugging Face id) "))


def _lines(path: str, tokenizer: "Tokenizer | None", *, adopting: bool) -> Iterator[str]:
    from tessera.data import adoption, inspection
    from tessera.data.sources.special_tokens import Framing

    yield path
    if not is_remote(path):
        index = inspection.read_index(Path(path))
        if converted := inspection.conversion(index, path):
            problem, command = converted
            layout = index.shards[0].layout
            named = zip(layout.names, layout.encodings, strict=True)
            yield "columns      " + ", ".join(f"{name} ({kind})" for name, kind in named)
            yield f"documents    {sum(shard.samples for shard in index.shards):,}"
            message = f"{path} cannot be trained on as it is: {problem}; convert it: {command}"
            raise ConfigError(message)
    with inspection.opened(path) as shards:
        yield from inspection.overview(shards)
        if tokenizer is None:
            made_with = shards.source.tokenizer_fingerprint
            tokenizer = inspection.tokenizer_beside(path, made_with)
            if tokenizer is not None:
                yield f"\ntokenizer    {tokenizer.name}, which made these shards"
        yield ""
        yield from inspection.samples(shards, tokenizer)
        if tokenizer is None:
            yield "\nto see text and a masked row, name the tokenizer: --tokenizer FOLDER_OR_ID"
        doubts = adoption.doubts(shards, tokenizer)
        if tokenizer is not None and not doubts:
            framing = Framing(path, shards.source.summary, tokenizer.cls_id, tokenizer.sep_id)
            yield ""
            yield from inspection.masked_row(shards, tokenizer, framing)
            if any(framing.of_shard(shards.looked_at[0], shards.source)):
                yield "\nspecial tokens  documents hold [CLS] and [SEP]; training takes them off"
        if adopting:
            assert tokenizer is not None
            yield f"\nadopted: {adoption.adopt(shards, tokenizer)}"
        if doubts:
            raise ConfigError(f"{path}: {'; '.join(doubts)}; name the tokenizer that made it")
        yield f"\ncan be trained on as it is:\n  {inspection.settings_for(shards)}"
