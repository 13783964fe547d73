"""Which characters a tokenizer cannot encode: they end the work, vanish, or become [UNK].

A vocabulary of bytes encodes everything. One of characters or words does not, and says so in three
ways that are easily overlooked: some raise, some leave a character out without a trace, some put
their unknown token for it.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass

import tokenizers
import tokenizers.pre_tokenizers

from tessera.tokenizer.words import is_byte_level

_PROBED = {
    "ASCII": "aezAEZ059.,:;!?()[]{}<>=+-*/%&@#$_\"'",
    "Latin with accents": "\u00e4\u00e9\u00f1\u00f8\u00df\u0142\u0111\u1ebf",
    "Greek": "\u03b1\u03b2\u03c9\u03a3",
    "Cyrillic": "\u0430\u0436\u044f\u0429",
    "Armenian": "\u0561\u0562\u0554",
    "Hebrew": "\u05d0\u05d1\u05ea",
    "Arabic": "\u0627\u0628\u064a\u067e",
    "Devanagari": "\u0905\u0915\u0939",
    "Bengali": "\u0985\u0995\u09b9",
    "Tamil": "\u0b85\u0b95\u0bb9",
    "Thai": "\u0e01\u0e02\u0e2e",
    "Georgian": "\u10d0\u10d1\u10f0",
    "Ethiopic": "\u1200\u1260\u1350",
    "Hangul": "\uac00\ub098\ud558",
    "Kana": "\u3042\u304b\u30a2\u30ab",
    "Han": "\u7684\u4e00\u96c5\u9f8d",
    "signs": "\u20ac\u00a7\u2019\u201c\u2026\u2192\u2264",
    "emoji": "\U0001f600\U0001f680\u2764",
}
"""A few characters of each kind of text."""


@dataclass(frozen=True)
class Coverage:
    """What became of the characters that were probed, by kind of text."""

    refused: dict[str, str]
    """Characters at which the tokenizer raises."""
    dropped: dict[str, str]
    """Characters that become no token at all."""
    unknown: dict[str, str]
    """Characters that become the unknown token."""

    @property
    def problem(self) -> str | None:
        """What is lost, and how much of what was probed; None if nothing vanishes or raises."""
        probed = sum(map(len, _PROBED.values()))
        said = []
        for what, lost in (
            ("cannot encode", self.refused),
            ("drops, leaving no trace,", self.dropped),
        ):
            if lost:
                count = sum(map(len, lost.values()))
                said.append(f"{what} {count} of {probed} characters probed ({_named(lost)})")
        return " and ".join(said) or None


def probe(backend: tokenizers.Tokenizer, unk_id: int | None) -> Coverage:
    """Try a few characters of every kind of text."""
    refused: dict[str, str] = {}
    dropped: dict[str, str] = {}
    unknown: dict[str, str] = {}
    for kind, characters in _PROBED.items():
        for character in characters:
            try:
                ids = backend.encode(character, add_special_tokens=False).ids
            except Exception:  # tokenizers raises no narrower one
                refused[kind] = refused.get(kind, "") + character
                continue
            if not ids:
                dropped[kind] = dropped.get(kind, "") + character
            elif unk_id is not None and unk_id in ids:
                unknown[kind] = unknown.get(kind, "") + character
    return Coverage(refused, dropped, unknown)


def cure(backend: tokenizers.Tokenizer, unk_token: str | None) -> str:
    """What to do about characters that a tokenizer refuses or drops."""
    model = json.loads(backend.to_str())["model"]
    known = unk_token is not None and backend.token_to_id(unk_token) is not None
    named = f"'{unk_token}'" if known else "a token that it has"
    if model["type"] == "Unigram":
        number = backend.token_to_id(unk_token) if known and unk_token is not None else "its id"
        step = f'put {named} ("unk_id": {number}) into the "model" of its tokenizer.json'
    else:
        absent = model.get("unk_token")
        reason = f", not '{absent}', which it lacks," if absent else ""
        step = f'name {named} as "unk_token"{reason} in the "model" of its tokenizer.json'
    return f"{step}, or train one that encodes every byte with data_prep/train_tokenizer.py"


class Vanishing:
    """Finds characters that become no token at all, each looked up once.

    A vocabulary that holds every byte loses nothing, and costs nothing to ask.
    """

    def __init__(self, backend: tokenizers.Tokenizer) -> None:
        self._backend = backend
        self._seen: set[str] = set()
        self._lost: set[str] = set()
        self._whole = holds_every_byte(json.loads(backend.to_str()))

    def of(self, text: str) -> int:
        """How many characters of a text vanish. Blanks are not counted."""
        if self._whole:
            return 0
        found = set(text)
        for character in found - self._seen:
            self._seen.add(character)
            if not character.isspace() and self._vanishes(character):
                self._lost.add(character)
        return sum(text.count(character) for character in found & self._lost)

    def _vanishes(self, character: str) -> bool:
        try:
            return not self._backend.encode(character, add_special_tokens=False).ids
        except Exception:  # tokenizers raises no narrower one; encoding the text will say so
            return False


def holds_every_byte(parts: dict) -> bool:
    """Whether a tokenizer's file makes tokens of bytes and has all 256."""
    vocabulary = parts["model"].get("vocab")
    if parts["model"]["type"] != "BPE" or not isinstance(vocabulary, dict):
        return False
    alphabet = tokenizers.pre_tokenizers.ByteLevel.alphabet()
    return is_byte_level(parts) and all(sign in vocabulary for sign in alphabet)


def lost_characters(
    backend: tokenizers.Tokenizer, unk_id: int | None, texts: Sequence[str]
) -> tuple[int, int]:
    """How many characters of some texts are in no token or in an unknown one; and of how many.

    Blanks are not counted. Texts that cannot be encoded are lost as a whole.
    """
    lost = total = 0
    for text in texts:
        wanted = {i for i, character in enumerate(text) if not character.isspace()}
        total += len(wanted)
        try:
            encoding = backend.encode(text, add_special_tokens=False)
        except Exception:  # tokenizers raises no narrower one
            lost += len(wanted)
            continue
        for number, (first, last) in zip(encoding.ids, encoding.offsets, strict=True):
            if number != unk_id:
                wanted.difference_update(range(first, last))
        lost += len(wanted)
    return lost, total


def _named(lost: dict[str, str]) -> str:
    whole = [kind for kind, characters in lost.items() if characters == _PROBED[kind]]
    partly = [f"{kind} {characters}" for kind, characters in lost.items() if kind not in whole]
    return "; ".join(([f"all of {', '.join(whole)}"] if whole else []) + partly)
