"""Where words begin, read off the tokens of a vocabulary.

Scripts that put blanks between words show it by a marker in the token. Scripts without blanks do
not: there an ideograph counts as a word of its own, and what is neither is cut by masking into
words of a few tokens (`tessera.data.pipeline.masking`).
"""

import json

import numpy as np
import tokenizers
from tokenizers import pre_tokenizers

_IDEOGRAPHS = (
    *((0x2E80, 0x2FDF), (0x3005, 0x3007), (0x3021, 0x3029), (0x3400, 0x4DBF), (0x4E00, 0x9FFF)),
    *((0xF900, 0xFAFF), (0x20000, 0x3FFFF)),
)
"""Ranges of code points, ends included: the characters of Chinese, and those Japanese shares."""
_IDEOGRAPH_LEAD_BYTES = (*range(0xE4, 0xEA), 0xF0)
"""UTF-8's first bytes of U+4000 to U+9FFF, where all but a few characters are ideographs, and of
everything above U+FFFF, where a token of the lead byte alone begins an emoji or a rare one."""


def word_starts(backend: tokenizers.Tokenizer, size: int) -> np.ndarray | None:
    """(size,) bool: whether a token begins a word; None if the vocabulary does not show it.

    Byte-level and Metaspace tokens begin one with their space marker, or with a character that no
    word has inside (so that punctuation stands alone); WordPiece's if without its prefix; every
    one's if its first character is an ideograph.
    """
    parts = json.loads(backend.to_str())
    prefix = parts["model"].get("continuing_subword_prefix")
    tokens = [""] * size
    for token, number in backend.get_vocab(with_added_tokens=True).items():
        tokens[number] = token
    if parts["model"]["type"] == "WordPiece" and prefix:
        return np.array(
            [
                not token.startswith(prefix) or is_ideograph(token.removeprefix(prefix)[:1])
                for token in tokens
            ]
        )
    if not any(token[:1] in ("\u0120", "\u2581") for token in tokens):
        return None
    byte_of = _bytes_by_sign() if is_byte_level(parts) else None
    # U+0120 is a byte-level space, U+2581 Metaspace's. A byte-level continuation of a letter beyond
    # ASCII is shown as some other letter or sign above U+007F, so only ASCII signs can be told.
    return np.array(
        [
            token[:1] in ("\u0120", "\u010a", "\u0109", "\u2581")
            or (token[:1].isascii() and not token[:1].isalnum() and token[:1] != "_")
            or _begins_with_ideograph(token, byte_of)
            for token in tokens
        ]
    )


def _begins_with_ideograph(token: str, byte_of: dict[str, int] | None) -> bool:
    if byte_of is None or not token or any(sign not in byte_of for sign in token[:4]):
        return is_ideograph(token[:1])
    first = bytes(byte_of[sign] for sign in token[:4])
    character = first.decode("utf-8", errors="ignore")[:1]
    if character and first.startswith(character.encode()):
        return is_ideograph(character)
    return first[0] in _IDEOGRAPH_LEAD_BYTES


def is_ideograph(character: str) -> bool:
    """Whether a character is a word of its own."""
    return bool(character) and any(first <= ord(character) <= last for first, last in _IDEOGRAPHS)


def is_byte_level(parts: dict) -> bool:
    """Whether tokens are bytes, each shown as a sign of its own."""
    found = [parts.get("pre_tokenizer"), parts.get("decoder")]
    while found:
        step = found.pop()
        if isinstance(step, dict):
            if step.get("type") == "ByteLevel":
                return True
            found += step.get("pretokenizers", []) + step.get("decoders", [])
    return False


def _bytes_by_sign() -> dict[str, int]:
    """Which byte each sign of the byte-level alphabet stands for.

    Bytes that are printable in Latin-1 stand for themselves; the others, in order, for the signs
    from U+0100 on, as GPT-2 began it.
    """
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    plain = {sign: ord(sign) for sign in alphabet if ord(sign) < 256}
    others = [byte for byte in range(256) if byte not in plain.values()]
    shifted = sorted(sign for sign in alphabet if ord(sign) >= 256)
    return plain | dict(zip(shifted, others, strict=True))
