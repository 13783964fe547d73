"""Numbers with a unit, as YAMLs write them and as people read them. Imports no torch.

`3e9tok`, `4000ba`, `100gb`; 12.3k, 4.72M; 3 min 5 s.
"""

import math
import re
from dataclasses import dataclass
from decimal import Decimal
from typing import ClassVar, Literal, get_args

Unit = Literal["tok", "ba", "sp"]
COUNTED: dict[Unit, str] = {"tok": "tokens", "ba": "steps", "sp": "documents"}
"""What each unit counts: the name of its count wherever progress is kept."""
NOTHING = "\u2013"
"""In place of a number that is not known."""

_NUMBER = r"([0-9][0-9_]*(?:\.[0-9_]+)?(?:[eE][+]?[0-9]+)?)"
_BYTE_UNITS = {"b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "tb": 10**12}


def _whole(number: str, text: str) -> int:
    value = Decimal(number.replace("_", ""))
    if value != value.to_integral_value():
        raise ValueError(f"'{text}' is not a whole number")
    return int(value)


@dataclass(frozen=True)
class Duration:
    """A length of training: real tokens (`tok`), optimizer steps (`ba`) or documents (`sp`)."""

    EXAMPLE: ClassVar[str] = "3_000_000tok"

    value: int
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Read '3e9tok'; raises ValueError naming the units if it cannot."""
        match = re.fullmatch(f"(-?){_NUMBER}" + r"\s*([a-z]+)", str(text).strip())
        if match is not None and match[1] and match[3] in get_args(Unit):
            raise ValueError(f"must not be negative; got '{text}'")
        if match is None or match[3] not in get_args(Unit):
            raise ValueError(
                f"expected a number with a unit, tok (tokens), ba (batches) or sp (documents), "
                f"such as '{cls.EXAMPLE}'; got '{text}'"
            )
        return cls(_whole(match[2], str(text)), match[3])  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.value}{self.unit}"

    @property
    def counted(self) -> str:
        """What the unit counts: 'tokens', 'steps' or 'documents'."""
        return COUNTED[self.unit]


@dataclass(frozen=True)
class ByteSize:
    """An amount of storage in bytes."""

    value: int

    @classmethod
    def parse(cls, text: object) -> "ByteSize":
        """Read '100gb'; raises ValueError naming the units if it cannot."""
        match = re.fullmatch(_NUMBER + r"\s*([a-zA-Z]+)", str(text).strip())
        if match is None or match[2].lower() not in _BYTE_UNITS:
            raise ValueError(f"expected a size such as '100gb' (b, kb, mb, gb, tb); got '{text}'")
        return cls(int(Decimal(match[1].replace("_", "")) * _BYTE_UNITS[match[2].lower()]))

    def __str__(self) -> str:
        return f"{self.value}b"


def short_number(value: float, *, decimals: int | None = None) -> str:
    """A number with a unit of thousands: 950, 12.3k, 4.72M, 1.72T.

    Args:
        value: what to write.
        decimals: so many after the point where there is a unit; three digits in all if None.
    """
    form = ".3g" if decimals is None else f".{decimals}f"
    least = 0.9995 if decimals is None else 1 - 0.0005 * 10**-decimals  # what rounds up to 1
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= least * size:
            return f"{value / size:{form}}{unit}" if abs(value) < 999.5e12 else f"{value:.3g}"
    return f"{value:.3g}" if decimals is None else f"{value:.0f}"


def so_many(number: float, noun: str) -> str:
    """A number of things: 1 row, 3,000 rows, 2 batches."""
    text = f"{number:,.0f}"
    return f"{text} {noun}{'' if text == '1' else 'es' if noun.endswith('ch') else 's'}"


def count(text: str) -> float:
    """A number as `short_number` writes it, 150M or 1.7T, or as Python does, 150e6.

    Raises:
        ValueError: it is neither.
    """
    size = {"k": 1e3, "m": 1e6, "b": 1e9, "t": 1e12}.get(text.strip()[-1:].lower(), 1.0)
    number = text.strip()[:-1] if size > 1 else text
    try:
        return float(number.replace("_", "")) * size
    except ValueError:
        raise ValueError(f"'{text}' is no number such as 150M or 150e6") from None


def short_time(seconds: float) -> str:
    """The two largest units that say something: 4.2 s, 3 min 5 s, 2 h 10 min, 4 d 3 h."""
    if not math.isfinite(seconds):
        return NOTHING
    if seconds < 60:
        return f"{seconds:.3g} s"
    if seconds < 3600:
        return "{} min {} s".format(*divmod(int(seconds), 60))
    if seconds < 48 * 3600:
        return "{} h {} min".format(*divmod(int(seconds / 60), 60))
    return "{} d {} h".format(*divmod(int(seconds / 3600), 24))
