"""Train a byte-level BPE tokenizer with ModernBERT's special tokens, or check any tokenizer.

Reads the train split of the given corpora (JSONL, Parquet, CSV, text files, `datasets` folders) and
writes a folder that `AutoTokenizer` loads. `--check FOLDER_OR_ID` only reports on a tokenizer:
special ids, size, tokens per word, and whether text survives a round trip.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # tokenize.py, beside this file, must not hide the standard library's
    sys.path = [entry for entry in sys.path if Path(entry).resolve() != Path(__file__).parent]

import argparse
import hashlib
import itertools
import json
import unicodedata
from collections.abc import Iterator

from tokenizers import (
    AddedToken,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)
from tqdm import tqdm

from tessera.data.preparation.text_files import (
    TEXT_COLUMN_HELP,
    Input,
    cut_into_parts,
    find_splits,
    parse_inputs,
    read_part,
)
from tessera.files import write_whole
from tessera.paths import LOCAL, SOURCE, named_path, option
from tessera.tokenizer import Tokenizer as LoadedTokenizer
from tessera.tokenizer import load_tokenizer

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
STAMP = "training.json"
CHECKED_DOCUMENTS = 300
PART_BYTES = 1 << 26


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
    add(
        "input",
        nargs="*",
        type=named_path,
        help="[NAME=]PATH of a corpus (default: the folders in data/demo/text)",
    )
    add(
        "--out",
        type=option(LOCAL),
        default="data/demo/tokenizer",
        help="folder to write (%(default)s)",
    )
    add("--vocab-size", type=int, default=8192, help="ids, special ones included (%(default)s)")
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
    if arguments.vocab_size < 256 + len(SPECIAL_TOKENS) or arguments.vocab_size % 64:
        raise ValueError(
            f"--vocab-size {arguments.vocab_size}: it must hold 256 bytes and "
            f"{len(SPECIAL_TOKENS)} special tokens, and be a multiple of 64 to be fast"
        )
    if not corpora:
        raise ValueError("no input: name corpora, or run data_prep/harvest.py first")
    out = Path(arguments.out)
    plan = training_plan(arguments, corpora)
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
    tokenizer = train_bpe(documents, arguments.vocab_size)
    save(tokenizer, out, arguments.model_max_length)
    write_whole(out / STAMP, json.dumps(plan, indent=2).encode())
    return check(str(out), corpora)


def training_plan(arguments: argparse.Namespace, corpora: list[Input]) -> dict[str, object]:
    """What decides the result: the options, and the files by size and time of change."""
    files = [file for corpus in corpora for file in train_files(corpus.path)]
    stats = [[file.name, file.stat().st_size, file.stat().st_mtime_ns] for file in files]
    return {
        "files": hashlib.sha256(json.dumps(stats).encode()).hexdigest(),
        "vocab_size": arguments.vocab_size,
        "max_mb": arguments.max_mb,
        "text_column": ",".join(arguments.text_column) or "text",
        "model_max_length": arguments.model_max_length,
    }


def is_current(out: Path, plan: dict[str, object]) -> bool:
    """Whether an earlier run with the same plan was finished."""
    return (out / STAMP).is_file() and json.loads((out / STAMP).read_text()) == plan


def train_files(corpus: Path) -> list[Path]:
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
        documents = map(read_part, parts, itertools.repeat(corpus.columns))
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


def train_bpe(documents: Iterator[str], vocab_size: int) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab_size` ids, special tokens first.

    Normalisation, pre-tokenisation and template are ModernBERT's (https://arxiv.org/abs/2412.13663).
    Where the text yields too few merges, `[unused..]` tokens fill the rest.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(  # type: ignore[assignment]
        add_prefix_space=False, use_regex=True
    )
    tokenizer.decoder = decoders.ByteLevel()  # type: ignore[assignment]
    special = [
        AddedToken(token, lstrip=token == "[MASK]", normalized=False, special=True)
        for token in SPECIAL_TOKENS.values()
    ]
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=2,
        special_tokens=special,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"[unused{i}]", normalized=False) for i in range(missing)])
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return tokenizer


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


def check(name: str, corpora: list[Input]) -> int:
    """Print what one wants to know of a tokenizer before training with it."""
    tokenizer = load_tokenizer(name)
    divisible = "a multiple of 64" if tokenizer.size % 64 == 0 else "NOT a multiple of 64"
    print(f"tokenizer    {name}, fingerprint {tokenizer.fingerprint}")
    print(f"vocabulary   {tokenizer.size} ids, {divisible}")
    roles = {role: getattr(tokenizer, f"{role}_id") for role in ("cls", "sep", "pad", "mask")}
    print("special ids  " + ", ".join(f"{role} {number}" for role, number in roles.items()))
    print(f"template     {' '.join(tokenizer.backend.encode('a', 'b').tokens)}")
    whole_words = "yes" if tokenizer.word_starts is not None else "no: words cannot be told"
    print(f"whole-word masking  {whole_words}")
    for corpus in corpora:
        print(f"{corpus.name:12} {describe_fit(tokenizer, corpus)}")
    return 0


def describe_fit(tokenizer: LoadedTokenizer, corpus: Input) -> str:
    """How well a tokenizer fits the validation documents of a corpus."""
    sample = list(itertools.islice(texts([corpus], "validation"), CHECKED_DOCUMENTS))
    encoded = tokenizer.encode_batch(sample)
    tokens = sum(map(len, encoded))
    pairs = zip(sample, encoded, strict=True)
    broken = sum(unicodedata.normalize("NFC", text) != tokenizer.decode(ids) for text, ids in pairs)
    words = sum(len(text.split()) for text in sample)
    size = sum(len(text.encode()) for text in sample)
    return (
        f"{tokens / max(words, 1):.2f} tokens per word, {size / max(tokens, 1):.2f} bytes per "
        f"token, round trip fails for {broken} of {len(sample)} documents"
    )


if __name__ == "__main__":
    sys.exit(main())
