"""Training a tokenizer on text in any script: a new one, or one of another's kind.

Where letters carry marks of their own (the vowel signs of Devanagari, Thai tone marks, Arabic
harakat), these stay with them; where they do not, words are split just as ModernBERT splits them.
"""

import json
import re
import sys
import threading
import time
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from tokenizers import (
    AddedToken,
    Regex,
    Tokenizer,
    decoders,
    models,
    normalizers,
    pre_tokenizers,
    processors,
    trainers,
)

from tessera.tokenizer import Tokenizer as LoadedTokenizer
from tessera.tokenizer import special_tokens

SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
}
MAX_TOKEN_BYTES = {1 / 3: 24, 1 / 100: 64}
"""By the share of letters in scripts without blanks, above which it holds: where no blank ends a
word, a sentence that is often repeated would become a token. 24 bytes are eight ideographs."""
LONGEST_WORD = 1000
"""Characters. What is longer (an encoded file, a ruler of dashes) is no word; learning from it
takes time that grows with the square of its length, and teaches nothing."""
LONGEST_RUN_WITHOUT_BLANKS = 100

_MARKED_WORDS = (
    r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}[\p{L}\p{M}\x{200C}\x{200D}]*| ?\p{N}+"
    r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
)
"""GPT-2's split of text into words, except that marks and joiners after a letter stay with it."""
_VARIANT_SIGNS = (range(0xFE00, 0xFE10), range(0x20D0, 0x2100), range(0xE0100, 0xE01F0))
"""Marks that follow emoji and signs rather than letters."""
_WITHOUT_BLANKS = (
    *((0x0E00, 0x0EFF), (0x0F00, 0x0FFF), (0x1000, 0x109F), (0x1780, 0x17FF), (0x3040, 0x30FF)),
    *((0x3400, 0x4DBF), (0x4E00, 0x9FFF), (0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
"""Thai and Lao, Tibetan, Burmese, Khmer, kana, ideographs."""
_AFFIXES = ("continuing_subword_prefix", "end_of_word_suffix")
_HEARTBEAT_SECONDS = 10.0


@dataclass
class Survey:
    """What a sample of the text is like, which decides how to learn from it."""

    characters: int = 0
    letters: int = 0
    marks: int = 0
    """Combining marks in letters' scripts."""
    without_blanks: int = 0
    """Letters of scripts that put no blanks between words."""

    @property
    def has_marks(self) -> bool:
        """Whether words would fall apart at their marks."""
        return self.marks > self.letters / 1000

    @property
    def max_token_bytes(self) -> int | None:
        """How long a token should be at most; None where blanks see to it."""
        share = self.without_blanks / max(self.letters, 1)
        return next((most for least, most in MAX_TOKEN_BYTES.items() if share > least), None)

    def add(self, text: str) -> None:
        """Count the characters of a text."""
        for character, count in Counter(unicodedata.normalize("NFC", text)).items():
            self.characters += count
            category = unicodedata.category(character)[0]
            if category == "L":
                self.letters += count
                if _lacks_blanks(character):
                    self.without_blanks += count
            elif category == "M" and not any(ord(character) in signs for signs in _VARIANT_SIGNS):
                self.marks += count


@dataclass
class LeftOut:
    """Runs of characters that were kept from the trainer."""

    words: int = 0
    characters: int = 0
    examples: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.words} words of more than {LONGEST_WORD} characters, {self.characters:,} "
            f"characters in all, such as {', '.join(map(repr, self.examples))}"
        )


def without_endless_words(texts: Iterable[str], left_out: LeftOut) -> Iterator[str]:
    """The texts without words of more than `LONGEST_WORD` characters, which are counted.

    A run of letters in a script without blanks is no such word, but cut into shorter ones.
    """
    for text in texts:
        start = 0
        for run in _endless(text):
            word = run.group()
            yield text[start : run.start()]
            start = run.end()
            size = LONGEST_RUN_WITHOUT_BLANKS
            if sum(map(_lacks_blanks, word[:size])) > size // 2:
                yield from (word[i : i + size] for i in range(0, len(word), size))
                continue
            left_out.words += 1
            left_out.characters += len(word)
            if len(left_out.examples) < 3:
                left_out.examples.append(f"{word[:16]}...")
        yield text[start:] if start else text


def train_bpe(
    texts: Iterable[str],
    vocab_size: int,
    *,
    keep_marks: bool = False,
    max_token_bytes: int | None = None,
) -> Tokenizer:
    """A byte-level BPE tokenizer of exactly `vocab_size` ids, special tokens first.

    Normalisation, pre-tokenisation and template are ModernBERT's (https://arxiv.org/abs/2412.13663).
    Where the text yields too few merges, `[unused..]` tokens fill the rest.

    Args:
        texts: what to learn from.
        vocab_size: ids in all.
        keep_marks: keep combining marks with their letters.
        max_token_bytes: no token is longer, if given.
    """
    tokenizer = Tokenizer(models.BPE())
    tokenizer.normalizer = normalizers.NFC()  # type: ignore[assignment]
    tokenizer.pre_tokenizer = _split(keep_marks)  # type: ignore[assignment]
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
        max_token_length=_trainers_limit(max_token_bytes),
        show_progress=sys.stderr.isatty(),
    )
    _learn(tokenizer, texts, trainer)
    _fill_up(tokenizer, vocab_size)
    cls, sep = SPECIAL_TOKENS["cls_token"], SPECIAL_TOKENS["sep_token"]
    tokenizer.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{cls} $A {sep}",
        pair=f"{cls} $A {sep} $B {sep}",
        special_tokens=[(token, tokenizer.token_to_id(token)) for token in (cls, sep)],
    )
    return tokenizer


def train_like(
    existing: LoadedTokenizer, texts: Iterable[str], vocab_size: int, *, max_token_bytes: int | None
) -> Tokenizer:
    """A tokenizer of another's algorithm, normalisation and special tokens, with a new vocabulary.

    Raises:
        ValueError: its algorithm cannot be trained.
    """
    parts = json.loads(existing.backend.to_str())
    kind = parts["model"]["type"]
    added = [_added(token) for token in sorted(parts["added_tokens"], key=lambda t: t["id"])]
    special = [token for token in added if token.special]
    ordinary = [t for t in added if not t.special and not t.content.startswith("[unused")]
    roles = set(special_tokens(existing.files).values())
    special += [AddedToken(r, special=True) for r in sorted(roles - {t.content for t in special})]
    tokenizer = Tokenizer.from_str(json.dumps(_emptied(parts)))
    trainer = _trainer(parts, kind, vocab_size - len(ordinary), special, max_token_bytes)
    _learn(tokenizer, texts, trainer)
    tokenizer.add_tokens(ordinary)
    _fill_up(tokenizer, vocab_size)
    return tokenizer


def _split(keep_marks: bool) -> pre_tokenizers.PreTokenizer:
    if not keep_marks:
        return pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True)
    return pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_MARKED_WORDS), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )


def _emptied(parts: dict[str, Any]) -> dict[str, Any]:
    """A tokenizer's JSON without vocabulary, added tokens and template."""
    model = {**parts["model"]}
    if model["type"] == "Unigram":
        unknown = model.get("unk_id")
        model["vocab"] = [] if unknown is None else [[model["vocab"][unknown][0], 0.0]]
        model["unk_id"] = None if unknown is None else 0
    else:
        model["vocab"] = {}
        if model["type"] == "BPE":
            model["merges"] = []
    return {**parts, "model": model, "added_tokens": [], "post_processor": None}


def _trainer(
    parts: dict[str, Any],
    kind: str,
    vocab_size: int,
    special: list[AddedToken],
    max_token_bytes: int | None,
) -> Any:
    model = parts["model"]
    common: dict[str, Any] = {
        "vocab_size": vocab_size,
        "special_tokens": special,
        "show_progress": sys.stderr.isatty(),
    }
    if kind == "BPE":
        in_bytes = '"ByteLevel"' in json.dumps([parts["pre_tokenizer"], parts["decoder"]])
        return trainers.BpeTrainer(
            **common,
            min_frequency=2,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet() if in_bytes else [],
            max_token_length=_trainers_limit(max_token_bytes),
            **{key: model[key] for key in _AFFIXES if model.get(key)},
        )
    if kind == "WordPiece":
        prefix = model.get("continuing_subword_prefix") or "##"
        return trainers.WordPieceTrainer(**common, continuing_subword_prefix=prefix)
    if kind == "Unigram":
        unknown = model.get("unk_id")
        token = None if unknown is None else model["vocab"][unknown][0]
        return trainers.UnigramTrainer(**common, unk_token=token)
    if kind == "WordLevel":
        return trainers.WordLevelTrainer(**common)
    raise ValueError(f"a tokenizer of the kind {kind} cannot be trained; take another with --from")


def _trainers_limit(max_token_bytes: int | None) -> int | None:
    """The same as the trainer counts it: a length that no token reaches."""
    return None if max_token_bytes is None else max_token_bytes + 1


def _added(token: dict[str, Any]) -> AddedToken:
    return AddedToken(**{key: value for key, value in token.items() if key != "id"})


def _fill_up(tokenizer: Tokenizer, vocab_size: int) -> None:
    missing = vocab_size - tokenizer.get_vocab_size()
    tokenizer.add_tokens([AddedToken(f"[unused{i}]", normalized=False) for i in range(missing)])


def _learn(tokenizer: Tokenizer, texts: Iterable[str], trainer: Any) -> None:
    """Train, saying every few seconds what takes the time once reading is done."""
    reading = threading.Event()

    def noticing() -> Iterator[str]:
        yield from texts
        reading.set()

    with _heartbeat(reading):
        tokenizer.train_from_iterator(noticing(), trainer)


@contextmanager
def _heartbeat(reading_done: threading.Event) -> Iterator[None]:
    """Lines of progress where there is no terminal, on which the trainer draws bars itself."""
    finished = threading.Event()

    def beat() -> None:
        reading_done.wait()
        begin = time.monotonic()
        print("learning merges", file=sys.stderr, flush=True)
        while not finished.wait(_HEARTBEAT_SECONDS):
            seconds = time.monotonic() - begin
            print(f"learning merges: {seconds:.0f} s", file=sys.stderr, flush=True)

    if not sys.stderr.isatty():
        threading.Thread(target=beat, daemon=True).start()
    try:
        yield
    finally:
        finished.set()
        reading_done.set()


def _endless(text: str) -> Iterator[re.Match[str]]:
    """Runs of one kind of character that are too long to be a word."""
    # Looking for long stretches without a blank, or of blanks, is quick, and almost always in vain.
    if max(map(len, text.split()), default=0) > LONGEST_WORD or _BLANKS.search(text):
        for run in _runs().finditer(text):
            if run.end() - run.start() > LONGEST_WORD:
                yield run


_BLANKS = re.compile(rf"\s{{{LONGEST_WORD + 1}}}")


@cache
def _runs() -> re.Pattern[str]:
    """Letters with their marks; digits; blanks; anything else: as far as each goes."""
    letters, digits = _characters("LM"), _characters("N")
    return re.compile(rf"[{letters}]+|[{digits}]+|\s+|[^{letters}{digits}\s]+")


def _characters(categories: str) -> str:
    """The characters of some of Unicode's categories, as ranges of a character class."""
    ranges: list[list[int]] = []
    for number in range(sys.maxunicode + 1):
        if unicodedata.category(chr(number))[0] in categories:
            if ranges and ranges[-1][1] == number - 1:
                ranges[-1][1] = number
            else:
                ranges.append([number, number])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


def _lacks_blanks(character: str) -> bool:
    return any(first <= ord(character) <= last for first, last in _WITHOUT_BLANKS)
