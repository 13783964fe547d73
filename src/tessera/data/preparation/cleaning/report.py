"""What cleaning did to how many documents: added up over the parts, and told."""

from collections import Counter
from collections.abc import Sequence
from typing import Any

from tessera.data.preparation.cleaning import stages
from tessera.data.preparation.cleaning.work_folder import WorkFolder
from tessera.data.preparation.notes import Notes
from tessera.quantities import short_number

_COPIES = ("copy", "near copy")


def summarize(
    folder: WorkFolder,
    splits: Sequence[tuple[str, str, tuple[int, ...]]],
    evaluation_texts: dict[str, Any],
) -> dict[str, Any]:
    """What `cleaning.json` says: for each source and split what came in, went, and why.

    Raises:
        RuntimeError: documents that came in are neither kept nor counted as removed.
    """
    found = []
    joined = _joined(folder)
    for source, split, numbers in splits:
        counts: Counter[str] = Counter()
        removed: Counter[str] = Counter()
        cut: Counter[str] = Counter()
        notes = Notes()
        for number in numbers:
            before = folder.record(stages.FILTERED, number)
            after = folder.record(stages.WRITTEN, number)
            removed.update(before["removed"])
            removed.update({why: after[why] for why in _COPIES if why in after})
            cut.update(before["cut"])
            notes.update(Notes(before["noted"]))
            counts["documents"] += before.get("documents", 0)
            counts["characters"] += before.get("characters", 0)
            counts["kept"] += after.get("kept", 0)
            counts["kept_characters"] += after.get("kept_characters", 0)
        if counts["documents"] != counts["kept"] + removed.total():
            raise RuntimeError(f"{source}/{split}: {counts} and {removed} do not add up")
        why = dict(removed.most_common())
        more = {"cut": dict(cut), "noted": notes.found, "joined": joined.get((source, split))}
        about = {"source": source, "split": split, **counts, "removed": why}
        found.append({**about, **{key: value for key, value in more.items() if value}})
    return {"splits": found, "against": evaluation_texts}


def _joined(folder: WorkFolder) -> dict[tuple[str, str], Counter[str]]:
    """How many documents became how many, by source and split."""
    found: dict[tuple[str, str], Counter[str]] = {}
    for number in sorted(folder.finished(stages.JOINED)):
        record = folder.record(stages.JOINED, number)
        counts = found.setdefault((record.pop("source"), record.pop("split")), Counter())
        counts.update(record)
    return found


def describe(summary: dict[str, Any]) -> list[str]:
    """The same in words, a line for each thing that happened."""
    lines = []
    for name, facts in summary["against"].items():
        lines.append(f"against {name}: {facts['texts']} texts, {facts['runs']} runs of words")
        if facts["too_short"]:
            lines.append(f"  {facts['too_short']} of them are shorter than that and not looked for")
        if facts["without_blanks"]:
            lines.append(
                f"  {facts['without_blanks']} of them are in scripts without blanks, where a "
                "character counts as a word: raise against_words if names alone are found"
            )
    for split in summary["splits"]:
        name = "/".join(filter(None, [split["source"], split["split"]]))
        size = short_number(split["characters"])
        share = split["kept"] / max(1, split["documents"])
        lines.append(
            f"{name}: {split['documents']} documents of {size} characters, "
            f"{split['kept']} kept ({share:.1%}, {short_number(split['kept_characters'])})"
        )
        if not split["kept"]:
            lines.append("  nothing is kept: leave it out of what is tokenised")
        lines += [f"  {count} removed, {why}" for why, count in split["removed"].items()]
        lines += [f"  {count} {what}" for what, count in split.get("cut", {}).items()]
        lines += [f"  {line}" for line in Notes(split.get("noted", {})).lines()]
        if joined := split.get("joined"):
            lines.append(f"  {joined['documents']} joined to {joined['into']}")
            if mixed := joined.get("mixed"):
                lines.append(
                    f"  of {mixed} of these the order mixes numbers, text and nothing: numbers "
                    "come first, then text"
                )
    return lines
