"""How well a tokenizer fits text: fertility, what it loses, which ids it never uses."""

import unicodedata
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from tessera.tokenizer import Tokenizer
from tessera.tokenizer.coverage import lost_characters


@dataclass(frozen=True)
class Fit:
    """What one sample of text came to."""

    documents: int
    words: int
    characters: int
    bytes: int
    tokens: int
    broken: int
    """Documents that decode to another text, Unicode's NFC apart."""
    refused: int
    """Documents that cannot be encoded at all."""
    lost: int
    """Characters in no token, or in the unknown one."""
    visible: int
    """Characters that could be lost: all but blanks."""
    used: np.ndarray
    """(ids,) bool: which ids occur."""

    def __str__(self) -> str:
        tokens = max(self.tokens, 1)
        text = (
            f"{self.tokens / max(self.words, 1):.2f} tokens per word, "
            f"{self.tokens / max(self.characters, 1):.2f} per character, "
            f"{self.bytes / tokens:.2f} bytes per token, round trip fails for {self.broken} of "
            f"{self.documents} documents"
        )
        if self.refused:
            text += f", {self.refused} of which cannot be encoded at all"
        if self.lost:
            share = self.lost / max(self.visible, 1)
            text += f", {self.lost} of {self.visible} characters lost ({share:.2%})"
        return text


def fit(tokenizer: Tokenizer, texts: Sequence[str]) -> Fit:
    """Encode a sample and count."""
    used = np.zeros(tokenizer.size, bool)
    tokens = broken = refused = 0
    readable = []
    for text in texts:
        try:
            ids = tokenizer.encode_batch([text])[0]
        except ValueError:  # says which characters; here they are counted
            refused += 1
            continue
        readable.append(text)
        used[ids] = True
        tokens += len(ids)
        broken += unicodedata.normalize("NFC", text) != tokenizer.decode(ids)
    lost, visible = lost_characters(tokenizer.backend, tokenizer.role_ids.get("unk"), texts)
    return Fit(
        documents=len(texts),
        words=sum(len(text.split()) for text in readable),
        characters=sum(map(len, readable)),
        bytes=sum(len(text.encode()) for text in readable),
        tokens=tokens,
        broken=broken + refused,
        refused=refused,
        lost=lost,
        visible=visible,
        used=used,
    )


def describe(tokenizer: Tokenizer) -> Iterator[str]:
    """What one wants to know of a tokenizer, whatever the text."""
    divisible = "a multiple of 64" if tokenizer.size % 64 == 0 else "NOT a multiple of 64"
    yield f"tokenizer    {tokenizer.name}, fingerprint {tokenizer.fingerprint}"
    yield f"vocabulary   {tokenizer.size} ids, {divisible}"
    roles = {role: getattr(tokenizer, f"{role}_id") for role in ("cls", "sep", "pad", "mask")}
    yield "special ids  " + ", ".join(f"{role} {number}" for role, number in roles.items())
    yield f"template     {_template(tokenizer)}"
    whole_words = "yes" if tokenizer.word_starts is not None else "no: words cannot be told"
    yield f"whole-word masking  {whole_words}"
    unknown = tokenizer.coverage.unknown
    if unknown:
        yield f"become unknown  characters of {', '.join(unknown)}"
    for doubt in tokenizer.doubts:
        yield f"WARNING      {doubt}"


def describe_ids(tokenizer: Tokenizer, fits: Sequence[Fit]) -> str:
    """How many ids no sample uses, and how many nothing can ever use."""
    fillers = sum(
        token.startswith("[unused") for token in tokenizer.backend.get_vocab(with_added_tokens=True)
    )
    used = np.any([found.used for found in fits], axis=0)
    ordinary = tokenizer.ordinary_ids
    idle = int((~used[ordinary]).sum())
    return (
        f"ids          {idle} of {len(ordinary)} ordinary ids do not occur in the sample; "
        f"{fillers} are [unused..]"
    )


def _template(tokenizer: Tokenizer) -> str:
    try:
        return " ".join(tokenizer.backend.encode("a", "b").tokens) or "nothing, for 'a' and 'b'"
    except Exception as error:  # tokenizers raises no narrower one
        return f"cannot be shown ({error})"
