"""What was noticed on the way, counted with its first place, so that nothing happens in silence."""

from collections.abc import Mapping
from typing import Any

DAMAGED = "hold U+FFFD, the mark of text that was damaged before it came here"
NULS = "hold NUL characters"
HALF_PAIRS = "held halves of surrogate pairs, now '?'"
QUOTED_CELLS = "are cells in quotes of a table read as unquoted (--quoting strict drops the quotes)"
LONG_RECORDS = "are table records of more than 20 lines: look whether a quote is missing"
NO_PAGES = "are records of web archives that are no pages"
TEXTLESS_PAGES = "are web pages in which no text was found"
VANISHED = "are characters that the tokenizer drops, leaving no trace"
UNKNOWN = "are unknown tokens, in place of text that the tokenizer does not know"
CUT_WORDS = "are words of over a million characters, which were cut to bound memory"


class Notes:
    """Counts by what was noticed, each with the place where it was first.

    Attributes:
        found: what was noticed -> (how often, the first place).
    """

    def __init__(self, found: Mapping[str, Any] = {}) -> None:
        self.found: dict[str, tuple[int, str]] = {
            what: (count, place) for what, (count, place) in found.items()
        }

    def add(self, what: str, place: str, count: int = 1) -> None:
        """Count something seen at a place."""
        before, first = self.found.get(what, (0, place))
        self.found[what] = (before + count, first)

    def update(self, other: "Notes") -> None:
        """Count what another one counted, as seen after what this one did."""
        for what, (count, place) in other.found.items():
            self.add(what, place, count)

    def lines(self) -> list[str]:
        """One sentence for each kind."""
        return [
            f"{count} {what}; the first is {place}" for what, (count, place) in self.found.items()
        ]
