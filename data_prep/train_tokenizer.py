"""Train a byte-level BPE tokenizer with ModernBERT's special tokens, or check any tokenizer.

Reads the train split of the given corpora (JSONL, Parquet, CSV, text files, `datasets` folders), in
any script, and writes a folder that `AutoTokenizer` loads. `--from FOLDER_OR_ID` trains one of
another's algorithm and special tokens. `--check FOLDER_OR_ID` only reports on a tokenizer: special
ids, size, template, tokens per word and per character, what text it loses, ids that are not used.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # tokenize.py, beside this file, must not hide the standard library's
    sys.path = [
        entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent
    ]

import argparse
import hashlib
import itertools
import json
from collections.abc import Iterator

from tokenizers import Tokenizer
from tqdm import tqdm

from tessera.data.preparation.inputs import (
    TEXT_COLUMN_HELP,
    Input,
    find_splits,
    parse_inputs,
)
from tessera.data.preparation.places import File
from tessera.data.preparation.text_files import cut_into_parts, read_part
from tessera.data.preparation.tokenizers.report import describe, describe_ids, fit
from tessera.data.preparation.tokenizers.training import (
    SPECIAL_TOKENS,
    LeftOut,
    Survey,
    train_bpe,
    train_like,
    without_endless_words,
)
from tessera.files import write_whole
from tessera.paths import LOCAL, SOURCE, option
from tessera.tokenizer import Tokenizer as LoadedTokenizer
from tessera.tokenizer import files_for_transformers, load_tokenizer, tokenizer_of

STAMP = "training.json"
CHECKED_DOCUMENTS = 300
PART_BYTES = 1 << 26
SURVEYED_CHARACTERS = 1 << 22
DEFAULT_VOCAB_SIZE = 8192


def main() -> int:
    """Train, unless that was done; then check. Returns the exit status."""
    arguments = parse_arguments()
    try:
        inputs = arguments.input or sorted(map(str, Path("data/demo/text").glob("*/")))
        corpora = parse_inputs(inputs, arguments.text_column)
        if arguments.check:
            return check(arguments.check, corpora)
        return train(arguments, corpora)
    except (ValueError, PermissionError) as error:
        print(error, file=sys.stderr)
        return 2


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("input", nargs="*", help="[NAME=]PATH of a corpus (default: the folders in data/demo/text)")
    add(
        "--out",
        type=option(LOCAL),
        default="data/demo/tokenizer",
        help="folder to write (%(default)s)",
    )
    add(
        "--from",
        dest="existing",
        type=option(SOURCE),
        metavar="TOKENIZER",
        help="train one of this folder's or Hugging Face id's algorithm and special tokens",
    )
    add("--vocab-size", type=int, help="ids, special ones included (8192; with --from, as many)")
    add(
        "--max-token-bytes",
        type=int,
        help="longest token, in bytes (as the text asks for: 24 where it has no blanks, else none)",
    )
    add(
        "--max-mb", type=float, default=1000, help="megabytes of text to learn from, at most (1000)"
    )
    add("--text-column", action="append", default=[], metavar="COLUMN", help=TEXT_COLUMN_HELP)
    add("--model-max-length", type=int, default=8192, help="kept in the folder (%(default)s)")
    add("--overwrite", action="store_true", help="replace a tokenizer trained on something else")
    add(
        "--check",
        type=option(SOURCE),
        metavar="TOKENIZER",
        help="only report on this folder or Hugging Face id",
    )
    return parser.parse_args()


def train(arguments: argparse.Namespace, corpora: list[Input]) -> int:
    """Train on the corpora and write the folder, unless an earlier run did."""
    existing = load_tokenizer(arguments.existing, quiet=True) if arguments.existing else None
    if arguments.vocab_size is None:
        fitting = -(-existing.size // 64) * 64 if existing else DEFAULT_VOCAB_SIZE
        arguments.vocab_size = fitting
    if arguments.vocab_size < 256 + len(SPECIAL_TOKENS) or arguments.vocab_size % 64:
        near = max(-(-arguments.vocab_size // 64) * 64, 320)
        raise ValueError(
            f"--vocab-size {arguments.vocab_size}: must hold 256 bytes and {len(SPECIAL_TOKENS)} "
            f"special tokens, and be a multiple of 64, as GPUs like it; such as {near}"
        )
    if arguments.max_token_bytes is not None and arguments.max_token_bytes < 4:
        raise ValueError(
            f"--max-token-bytes {arguments.max_token_bytes}: a character takes up to 4 bytes; "
            "give at least that"
        )
    if not corpora:
        raise ValueError("no input: name corpora, or run data_prep/harvest.py first")
    out = Path(arguments.out)
    plan = training_plan(arguments, corpora, existing)
    if (out / "tokenizer.json").exists() and not arguments.overwrite:
        done = json.loads((out / STAMP).read_text()) if (out / STAMP).is_file() else None
        if done != plan:
            raise ValueError(
                f"{out} holds a tokenizer trained on something else; choose another --out, or "
                "replace it with --overwrite (shards made with it are then of no use)"
            )
    if is_current(out, plan):
        print(f"{out} is up to date")
        return check(str(out), corpora)
    for corpus in corpora:
        corpus.check_first_records()
    if not any(texts(corpora, "train")):
        raise ValueError("no document of the input has text to learn from")
    documents = with_progress(texts(corpora, "train"), int(arguments.max_mb * 1e6))
    tokenizer = learn(arguments, documents, existing)
    if existing is None:
        save(tokenizer, out, arguments.model_max_length)
    else:
        save_like(existing, tokenizer, out, arguments.model_max_length)
    write_whole(out / STAMP, json.dumps(plan, indent=2).encode())
    return check(str(out), corpora)


def learn(
    arguments: argparse.Namespace, documents: Iterator[str], existing: LoadedTokenizer | None
) -> Tokenizer:
    """Look at the first of the text to see what script it is in, then learn from all of it."""
    survey, first = Survey(), []
    for text in documents:
        first.append(text)
        survey.add(text)
        if survey.characters >= SURVEYED_CHARACTERS:
            break
    longest = arguments.max_token_bytes or survey.max_token_bytes
    left_out = LeftOut()
    learned_from = without_endless_words(itertools.chain(first, documents), left_out)
    if existing is not None:
        tokenizer = train_like(
            existing, learned_from, arguments.vocab_size, max_token_bytes=longest
        )
    else:
        tokenizer = train_bpe(
            learned_from,
            arguments.vocab_size,
            keep_marks=survey.has_marks,
            max_token_bytes=longest,
        )
        if survey.has_marks:
            print("combining marks  stay with their letters")
    if longest is not None:
        print(f"tokens       of up to {longest} bytes")
    if left_out.words:
        print(f"left out     {left_out}")
    unused = sum(token.startswith("[unused") for token in tokenizer.get_vocab())
    if unused > arguments.vocab_size // 10:
        print(
            f"WARNING      the text gave only {arguments.vocab_size - unused} ids; {unused} are "
            "[unused..]: give more text, or a smaller --vocab-size",
            file=sys.stderr,
        )
    return tokenizer


def training_plan(
    arguments: argparse.Namespace, corpora: list[Input], existing: LoadedTokenizer | None
) -> dict[str, object]:
    """What decides the result: the options, and the files by size and time of change."""
    files = [file for corpus in corpora for file in train_files(corpus.path)]
    stats = [[Path(file.name).name, file.bytes, file.changed] for file in files]
    plan: dict[str, object] = {
        "files": hashlib.sha256(json.dumps(stats).encode()).hexdigest(),
        "vocab_size": arguments.vocab_size,
        "max_mb": arguments.max_mb,
        "text_column": ",".join(arguments.text_column) or "text",
        "model_max_length": arguments.model_max_length,
    }
    # Only where they are given, so that a tokenizer trained before there were such options is
    # recognised.
    if existing is not None:
        plan["from"] = existing.fingerprint
    if arguments.max_token_bytes is not None:
        plan["max_token_bytes"] = arguments.max_token_bytes
    return plan


def is_current(out: Path, plan: dict[str, object]) -> bool:
    """Whether an earlier run with the same plan was finished."""
    return (out / STAMP).is_file() and json.loads((out / STAMP).read_text()) == plan


def train_files(corpus: str) -> list[File]:
    """The files of a corpus that a tokenizer may learn from: not the validation split's."""
    splits = find_splits(corpus)
    return splits.get("train") or splits.get("") or []


def texts(corpora: list[Input], split: str) -> Iterator[str]:
    """Texts of a split, in turn from every corpus; of corpora without splits, all texts."""
    streams = []
    for corpus in corpora:
        splits = find_splits(corpus.path)
        files = splits.get(split) or splits.get("") or []
        parts = cut_into_parts(files, corpus.root, PART_BYTES)
        documents = map(read_part, parts, itertools.repeat(corpus.reading))
        streams.append(itertools.chain.from_iterable(documents))
    for row in itertools.zip_longest(*streams):
        yield from (text for _, text in filter(None, row))


def with_progress(documents: Iterator[str], limit_bytes: int) -> Iterator[str]:
    """The documents up to a limit, under a progress bar."""
    with tqdm(unit="B", unit_scale=True, desc="reading", mininterval=1) as bar:
        for text in documents:
            bar.update(len(text.encode()))
            yield text
            if bar.n >= limit_bytes:
                return


def save(tokenizer: Tokenizer, out: Path, model_max_length: int) -> None:
    """Write the files that transformers 4 and 5 load; tokenizer.json last."""
    special: dict[str, object] = {
        role: {
            "content": token,
            "lstrip": token == "[MASK]",
            "normalized": False,
            "rstrip": False,
            "single_word": False,
        }
        for role, token in SPECIAL_TOKENS.items()
    }
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": model_max_length,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **SPECIAL_TOKENS,
    }
    out.mkdir(parents=True, exist_ok=True)
    write_whole(out / "special_tokens_map.json", json.dumps(special, indent=2).encode())
    write_whole(out / "tokenizer_config.json", json.dumps(config, indent=2).encode())
    write_whole(out / "tokenizer.json", tokenizer.to_str(pretty=True).encode())


def save_like(
    existing: LoadedTokenizer, tokenizer: Tokenizer, out: Path, model_max_length: int
) -> None:
    """Write the files of a tokenizer of another's kind, with its names for the special tokens."""
    made = {**existing.files, "tokenizer.json": tokenizer.to_str(pretty=True)}
    # What other settings say of ids (`added_tokens_decoder`) is of the old vocabulary.
    settings = json.loads(made.get("tokenizer_config.json", "{}"))
    settings.pop("added_tokens_decoder", None)
    made["tokenizer_config.json"] = json.dumps(settings)
    framed = tokenizer_of(made, str(out)).framed_files()
    out.mkdir(parents=True, exist_ok=True)
    for name, text in reversed(files_for_transformers(framed, model_max_length).items()):
        write_whole(out / name, text.encode())


def check(name: str, corpora: list[Input]) -> int:
    """Print what one wants to know of a tokenizer before training with it.

    Returns:
        2 if some of the text cannot be encoded with it, else 0.
    """
    tokenizer = load_tokenizer(name, quiet=True)
    for line in describe(tokenizer):
        print(line)
    fits = []
    for corpus in corpora:
        sample = list(itertools.islice(texts([corpus], "validation"), CHECKED_DOCUMENTS))
        fits.append(fit(tokenizer, sample))
        print(f"{corpus.name:12} {fits[-1]}")
    if fits:
        print(describe_ids(tokenizer, fits))
    return 2 if any(found.refused for found in fits) else 0


if __name__ == "__main__":
    sys.exit(main())
