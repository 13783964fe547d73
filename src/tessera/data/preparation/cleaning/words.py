"""What counts as a word and as a sentence when text is judged, in any script."""

import re

_ALONE = (
    "\u0e00-\u0e7f\u0e80-\u0eff\u1000-\u109f\u1780-\u17ff"  # Thai, Lao, Burmese, Khmer
    "\u2e80-\u2fdf\u3005-\u3007\u3021-\u3029\u3040-\u30ff\u31f0-\u31ff"  # ideographs, kana
    "\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
)
"""Characters of scripts without blanks between words: each is a word."""
_MARKS = "\u0300-\u036f\u0483-\u0489\u0591-\u05c7\u0610-\u061a\u064b-\u065f\u0670\u0900-\u0903"
_MARKS += "\u093a-\u094f\u0951-\u0957\u0962\u0963\u0981-\u0983\u09bc-\u09cd\u0a01-\u0a4d"
_MARKS += "\u0b01-\u0b4d\u0b82-\u0bcd\u0c00-\u0c4d\u0c81-\u0ccd\u0d00-\u0d4d\u200c\u200d"
"""Marks that belong to the letter before, which `re` does not count as parts of words."""

_ALONE_MARKS = (
    "\u0e31\u0e34-\u0e3a\u0e47-\u0e4e\u0eb1\u0eb4-\u0ebc\u0ec8-\u0ecd\u102b-\u103e\u17b6-\u17d3"
)
_LETTERS = rf"(?:[^\W{_ALONE}]|[{_MARKS}])+"
WORD = re.compile(rf"[{_ALONE}][{_ALONE_MARKS}]*|{_LETTERS}(?:['\u2019.@:/]+{_LETTERS})*|[^\w\s]")
"""A word (with what stands between its parts: don't, 3.14, a/path), an ideograph, or a sign."""
SENTENCE_END = re.compile(r"[.!?\u2026\u0964\u061f]+[\"')\]]*\s+|[\u3002\uff01\uff1f]+\s*")
"""The end of a sentence, with the blanks after it."""
_ALONE_WORD = re.compile(f"[{_ALONE}]")


def stands_alone(word: str) -> bool:
    """Whether it is one character of a script without blanks, rather than a word."""
    return _ALONE_WORD.match(word) is not None
