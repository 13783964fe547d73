"""What a phase reads of each source: tokens wanted and available, epochs, long documents."""

from collections.abc import Sequence

from tessera.data.supply import CLASSES, Reading, epochs_by_length
from tessera.files import JsonObject
from tessera.planning.drawing import table
from tessera.quantities import NOTHING, short_number


def mixture_lines(readings: Sequence[Reading]) -> list[str]:
    """A table with a line a source, one for all, and what the numbers rest on."""
    head = ["source", "share", "wanted", "available", "epochs"]
    rows = [[*head, *(f"in >{length // 1024}k" for length in CLASSES)]]
    for reading in readings:
        rows.append(
            [
                reading.name,
                f"{reading.share:.1%}",
                _number(reading.wanted),
                _number(reading.supply.tokens),
                epochs_text(reading.epochs),
                *(_share(reading.over(length)) for length in CLASSES),
            ]
        )
    if len(readings) > 1:
        total = sum(r.wanted for r in readings if r.wanted is not None) or None
        shares = [_share(_over_all(readings, length)) for length in CLASSES]
        rows.append(["all", "", _number(total), "", "", *shares])
    lines = table(rows)
    if classes := epochs_by_length(readings):
        lines.append(
            "epochs by length of document: "
            + ", ".join(f"{_class_name(longer)} {epochs_text(n)}" for longer, n in classes)
        )
    lines += [
        f"{r.name}: {'not known: ' * (r.supply.tokens is None)}"
        f"{'counted from ' * (r.supply.tokens is not None)}{r.supply.known_from}"
        for r in readings
        if not r.supply.is_exact
    ]
    return lines


def mixture_json(readings: Sequence[Reading]) -> JsonObject:
    """The same for programs; null where something is not known."""
    return {
        "sources": {
            reading.name: {
                "share": reading.share,
                "tokens_wanted": reading.wanted,
                "tokens_available": reading.supply.tokens,
                "epochs": reading.epochs,
                "share_in_documents_over": {str(n): reading.over(n) for n in CLASSES},
                "counted_from": reading.supply.known_from,
            }
            for reading in readings
        },
        "epochs_by_document_length": {str(n): epochs for n, epochs in epochs_by_length(readings)},
    }


def epochs_text(epochs: float | None) -> str:
    """Epochs for people: 0.74, 12.3, 546k."""
    return NOTHING if epochs is None else f"{epochs:.2f}" if epochs < 10 else short_number(epochs)


def _over_all(readings: Sequence[Reading], length: int) -> float | None:
    """Share of the phase's tokens that are in documents longer than this."""
    parts = [(reading.share, reading.over(length)) for reading in readings]
    known = [share * part for share, part in parts if part is not None]
    return sum(known) if len(known) == len(parts) else None


def _class_name(longer: int) -> str:
    names = [*CLASSES, None]
    upper = names[names.index(longer) + 1] if longer else names[0]
    below = f"{upper // 1024}k" if upper else ""
    above = f"{longer // 1024}k" if longer else ""
    return f"up to {below}" if not above else f"{above} to {below}" if below else f"over {above}"


def _number(value: float | None) -> str:
    return NOTHING if value is None else short_number(value)


def _share(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.0%}" if value in (0, 1) else f"{value:.1%}"
