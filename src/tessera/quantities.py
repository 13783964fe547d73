"""Numbers with a unit, as YAMLs write them: `3e9tok`, `4000ba`, `100gb`. Imports no torch."""

import re
from dataclasses import dataclass
from decimal import Decimal
from typing import Literal, get_args

Unit = Literal["tok", "ba", "sp"]

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

    value: int
    unit: Unit

    @classmethod
    def parse(cls, text: object) -> "Duration":
        """Read '3e9tok'; raises ValueError naming the units if it cannot."""
        match = re.fullmatch(_NUMBER + r"\s*([a-z]+)", str(text).strip())
        if match is None or match[2] not in get_args(Unit):
            raise ValueError(
                f"expected a number with a unit, tok (tokens), ba (batches) or sp (documents), "
                f"such as '3_000_000tok'; got '{text}'"
            )
        return cls(_whole(match[1], str(text)), match[2])  # type: ignore[arg-type]

    def __str__(self) -> str:
        return f"{self.value}{self.unit}"


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
