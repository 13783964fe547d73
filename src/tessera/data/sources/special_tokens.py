"""Documents that already begin with [CLS] and end with [SEP], as in public token shards.

Rows lay both around every segment themselves, so they are taken off where shards hold them.
Preparation here stores none and says so (`special_tokens` in tessera.json); shards of others that
say nothing are looked at, each when its first document is read.
"""

import logging
from typing import Any

import numpy as np

log = logging.getLogger(__name__)

KEY = "special_tokens"
NONE, INCLUDED = "none", "included"
_LOOKED_AT = 32
_ENOUGH = 8
_said: set[str] = set()
"""Sources of which this process has said that their special tokens are taken off."""


def declared(summary: dict[str, Any], where: object) -> str | None:
    """What a manifest says about special tokens; None if there is no manifest.

    Raises:
        ValueError: it says something else than `included` or `none`.
    """
    if not summary:
        return None
    said = summary.get(KEY, NONE)  # manifests older than the key are all of our preparation
    if said not in (NONE, INCLUDED):
        raise ValueError(
            f"{where}: {KEY} is {said!r}; it can be '{INCLUDED}' (documents begin with [CLS] and "
            f"end with [SEP]) or '{NONE}'"
        )
    return said


def framing_of(name: str, summary: dict[str, Any], frame: tuple[int, int]) -> "Framing | None":
    """What takes special tokens off a source's documents; None if its manifest says it has none.

    Args:
        name: of the source.
        summary: its manifest, {} if it has none.
        frame: the ids of [CLS] and [SEP].

    Raises:
        ValueError: the manifest says nonsense.
    """
    framing = Framing(name, summary, *frame)
    return None if framing.declared == NONE else framing


class Framing:
    """Takes [CLS] and [SEP] off the documents of a source that stores them."""

    def __init__(self, name: str, summary: dict[str, Any], cls_id: int, sep_id: int) -> None:
        """Nothing is read yet.

        Args:
            name: of the source, for messages.
            summary: its manifest, `tessera.json`; {} if it has none.
            cls_id: what documents may begin with.
            sep_id: what they may end with.

        Raises:
            ValueError: the manifest says nonsense.
        """
        self._name, self._cls_id, self._sep_id = name, cls_id, sep_id
        self.declared = declared(summary, f"source '{name}': tessera.json")
        self._of_shard: dict[int, tuple[bool, bool]] = {}

    def of_shard(self, shard: int, documents: Any) -> tuple[bool, bool]:
        """Whether the documents of a shard begin with [CLS], and whether they end with [SEP].

        A function of the shard's content alone: every process, and a resumed run, decides alike.
        """
        if self.declared is not None:
            return (self.declared == INCLUDED,) * 2
        if shard not in self._of_shard:
            self._of_shard[shard] = found = self._look(shard, documents)
            if any(found):
                self._say(
                    logging.INFO,
                    f"its documents hold {' and '.join(_named(found))} already: taken off, since "
                    "rows add their own",
                )
        return self._of_shard[shard]

    def bare(self, tokens: np.ndarray, shard: int, documents: Any) -> np.ndarray:
        """The tokens of a document without the [CLS] and [SEP] it was stored with."""
        begins, ends = self.of_shard(shard, documents)
        if begins and len(tokens) and tokens[0] == self._cls_id:
            tokens = tokens[1:]
        if ends and len(tokens) and tokens[-1] == self._sep_id:
            tokens = tokens[:-1]
        return tokens

    def _look(self, shard: int, documents: Any) -> tuple[bool, bool]:
        count = int(documents.samples[shard])
        looked_at = np.unique(np.linspace(0, count - 1, min(count, _LOOKED_AT)).astype(int))
        tokens = [documents.document(shard, int(sample)) for sample in looked_at]
        tokens = [document for document in tokens if len(document)]
        if not tokens:
            return False, False
        first, last = ({int(document[place]) for document in tokens} for place in (0, -1))
        found = first == {self._cls_id}, last == {self._sep_id}
        some = self._cls_id in first, self._sep_id in last
        if some != found:
            self._say(
                logging.WARNING,
                f"some of its documents hold {' and '.join(_named(some))} and others do not: those "
                "that do get a second one; `tessera data convert` takes it off",
            )
        if not any(found) and len(tokens) >= _ENOUGH and len(first) == len(last) == 1:
            self._say(
                logging.WARNING,
                f"its documents all begin with token id {first.pop()} and end with {last.pop()}, "
                f"which are not this tokenizer's [CLS] {self._cls_id} and [SEP] {self._sep_id}: "
                "they may be another tokenizer's; `tessera data inspect` shows them",
            )
        return found

    def _say(self, level: int, text: str) -> None:
        if self._name not in _said:
            _said.add(self._name)
            log.log(level, "source '%s': %s", self._name, text)


def _named(found: tuple[bool, bool]) -> list[str]:
    return [name for name, there in zip(("[CLS]", "[SEP]"), found, strict=True) if there]
