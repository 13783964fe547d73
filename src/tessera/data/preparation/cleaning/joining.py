"""Documents that share a value, such as those of a repository, joined to one, wherever they were.

Every part is sorted by shelf: which one, a hash of the value decides. A task then reads one shelf
of all parts.
"""

import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import xxhash

from tessera.data.preparation.cleaning.work_folder import WorkFolder, read_lines
from tessera.data.preparation.config import JoinConfig
from tessera.files import write_whole

_KIND = "shelved"


def shelve(folder: WorkFolder, number: int, texts: Path, by: str, shelves: int) -> None:
    """Sort the documents of a part by shelf, with the offset of each shelf beside them."""
    lines: list[list[bytes]] = [[] for _ in range(shelves)]
    for document in read_lines(texts):
        value = str(document[by]).encode()
        line = json.dumps(document, ensure_ascii=False).encode() + b"\n"
        lines[xxhash.xxh64_intdigest(value) % shelves].append(line)
    ends = list(itertools.accumulate(sum(map(len, shelf)) for shelf in lines))
    content = b"".join(itertools.chain.from_iterable(lines))
    write_whole(folder.file(_KIND, number, ".jsonl"), content)
    write_whole(folder.file(_KIND, number, ".offsets"), json.dumps([0, *ends]).encode())
    texts.unlink()


def join_documents(
    folder: WorkFolder, parts: Sequence[int], shelf: int, config: JoinConfig
) -> Iterator[tuple[dict[str, Any], int, bool]]:
    """The joined documents of a shelf, in the order of their values.

    A document without a value stays as it is.

    Yields:
        The document, how many it holds, and whether their order is mixed (`is_mixed`).
    """
    groups: dict[str, list[dict[str, Any]]] = {}
    for number in parts:
        ends = json.loads(folder.file(_KIND, number, ".offsets").read_bytes())
        with folder.file(_KIND, number, ".jsonl").open("rb") as file:
            file.seek(ends[shelf])
            for line in file.read(ends[shelf + 1] - ends[shelf]).splitlines():
                document = json.loads(line)
                value = document[config.by]
                if value in (None, ""):
                    yield document, 1, False
                else:
                    groups.setdefault(str(value), []).append(document)
    for value, members in sorted(groups.items()):
        if config.order is not None:
            members.sort(key=lambda member: _rank(member[str(config.order)]))
        mixed = is_mixed(members, config.order)
        for document, count in _joined(value, members, config):
            yield document, count, mixed


def _rank(value: Any) -> tuple[int, float, str]:
    """Numbers by their size, then text, then what has neither."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return 0, float(value), ""
    return (2, 0.0, "") if value is None else (1, 0.0, str(value))


def is_mixed(members: Sequence[dict[str, Any]], order: str | None) -> bool:
    """Whether some are put in order by numbers, and others not."""
    return order is not None and len({_rank(member[order])[0] for member in members}) > 1


def _joined(
    value: str, members: Sequence[dict[str, Any]], config: JoinConfig
) -> Iterator[tuple[dict[str, Any], int]]:
    texts: list[str] = []
    characters, made = 0, 0
    for member in members:
        longer = characters + len(config.separator) + len(member["text"])
        if texts and longer > config.max_characters:
            yield _document(value, made, texts, config), len(texts)
            texts, characters, made = [], 0, made + 1
        texts.append(member["text"])
        characters += len(config.separator) * (len(texts) > 1) + len(member["text"])
    yield _document(value, made, texts, config), len(texts)


def _document(value: str, made: int, texts: Sequence[str], config: JoinConfig) -> dict[str, Any]:
    name = value if made == 0 else f"{value}#{made}"
    return {"id": name, "text": config.separator.join(texts)}
