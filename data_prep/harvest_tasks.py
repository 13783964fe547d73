"""Make labelled tasks of the text that harvest.py found, to judge the demo's models by.

package  which package a documentation text is from; its name is struck out of it
names    what each name in a function is: defined, called, a parameter, an attribute
search   functions found by their docstrings, which are taken out of them, as for CodeSearchNet

Training and validation examples come from the documents that models train on, test examples from
those that are held out; what occurs in both is dropped. Same text, same tasks.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # tokenize.py, beside this file, must not hide the standard library's
    sys.path = [
        entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent
    ]

import argparse
import ast
import hashlib
import importlib
import io
import json
import re
import textwrap
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from tessera.files import write_whole
from tessera.paths import LOCAL, option

tokenize = importlib.import_module("tokenize")  # the standard library's, for type checkers too

SIZES = {"train": 512, "validation": 128, "test": 256}
PACKAGES = 4
SNIPPET, SNIPPETS = 400, 8
WORDS = 50  # they are at most 128 tokens
SHORTEST_DOCSTRING, LONGEST_CODE = 40, 1200

Row = dict[str, object]


@dataclass(frozen=True, kw_only=True)
class Function:
    """A function of a document."""

    id: str
    file: str
    name: str
    docstring: str
    """Its first paragraph, on one line."""
    code: str
    """Without the docstring."""


def main() -> int:
    """Make the tasks; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--text", type=option(LOCAL), default="data/demo/text")
    parser.add_argument("--out", type=option(LOCAL), default="data/demo/tasks")
    arguments = parser.parse_args()
    text, out = Path(arguments.text), Path(arguments.out)
    if not (text / "code" / "train.jsonl").is_file():
        print(f"--text {text}: holds no code/train.jsonl; run harvest.py", file=sys.stderr)
        return 2
    left_out: Counter[str] = Counter()
    seen = {
        split: list(functions(text / "code", split, left_out)) for split in ("train", "validation")
    }
    for name, made in (
        ("package", package(text / "science")),
        ("names", names(seen, left_out)),
    ):
        for split, rows in made.items():
            write(out / name / f"{split}.jsonl", rows)
        print(f"{name}: {', '.join(f'{len(rows)} {split}' for split, rows in made.items())}")
    search(seen, out / "search")
    for what, count in left_out.items():
        print(f"left out {count} {what}")
    return 0


def documents(folder: Path, split: str) -> Iterator[tuple[str, str]]:
    """(id, text) in an order that depends on the texts alone."""
    with (folder / f"{split}.jsonl").open(encoding="utf-8") as file:
        records = [json.loads(line) for line in file]
    records.sort(key=lambda record: hashlib.sha256(record["id"].encode()).digest())
    for record in records:
        yield record["id"], record["text"]


def parted(trained: Iterable[Row], held_out: Iterable[Row], key: str) -> dict[str, list[Row]]:
    """Rows for each split; none of `test` has the `key` of one in the others."""
    own = list(unique(trained, key, SIZES["train"] + SIZES["validation"]))
    known = {row[key] for row in own}
    test = unique((row for row in held_out if row[key] not in known), key, SIZES["test"])
    return {
        "train": own[: SIZES["train"]],
        "validation": own[SIZES["train"] :],
        "test": list(test),
    }


def unique(rows: Iterable[Row], key: str, most: int) -> Iterator[Row]:
    """The first rows with different values of a key."""
    known: set[object] = set()
    for row in rows:
        if row[key] not in known and len(known) < most:
            known.add(row[key])
            yield row


def write(path: Path, rows: Iterable[Row]) -> None:
    """JSON lines, whole or not at all."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
    write_whole(path, lines.encode())


# ---- package


def package(folder: Path) -> dict[str, list[Row]]:
    """Texts of the packages that have most, as many of each as can be."""
    counts = Counter(name.split("/")[0] for name, _ in documents(folder, "validation"))
    chosen = [name for name, _ in counts.most_common(PACKAGES)]
    return parted(
        balanced(snippets(folder, "train", chosen, 1)),
        balanced(snippets(folder, "validation", chosen, SNIPPETS)),
        "text",
    )


def snippets(folder: Path, split: str, chosen: list[str], most: int) -> Iterator[Row]:
    """Up to `most` pieces of each document, without the names of the packages."""
    for name, text in documents(folder, split):
        label = name.split("/")[0]
        if label in chosen:
            text = text.partition("\n\n")[2]
            text = re.sub("|".join([*chosen, "np", "pd", "nx", "plt"]), "it", text)
            pieces = min(most, max(1, len(text) // SNIPPET))
            for piece in range(pieces):
                start = max(0, (len(text) * (2 * piece + 1) // pieces - SNIPPET) // 2)
                yield {"text": text[start : start + SNIPPET], "label": label}


def balanced(rows: Iterable[Row]) -> Iterator[Row]:
    """One of each label in turn, until a label has no more."""
    waiting: dict[object, list[Row]] = {}
    for row in rows:
        waiting.setdefault(row["label"], []).append(row)
    for turn in zip(*(waiting[label] for label in sorted(waiting, key=str)), strict=False):
        yield from turn


# ---- functions


def functions(folder: Path, split: str, left_out: Counter[str]) -> Iterator[Function]:
    """The functions of the documents that have a docstring and are not too long."""
    for document, text in documents(folder, split):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # about the invalid escapes of other people
                tree = ast.parse(text)
        except (SyntaxError, ValueError):
            left_out["documents that were cut inside a definition"] += 1
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.FunctionDef) and (docstring := ast.get_docstring(node)):
                first = " ".join(docstring.split("\n\n")[0].split())
                code = without_docstring(text, node)
                if len(first) >= SHORTEST_DOCSTRING and 40 <= len(code) <= LONGEST_CODE:
                    yield Function(
                        id=f"{document}:{node.lineno}",
                        file=document.split("#")[0],
                        name=node.name,
                        docstring=first,
                        code=code,
                    )


def without_docstring(text: str, node: ast.FunctionDef) -> str:
    """A function's source, dedented, without the statement that is its docstring."""
    lines = text.splitlines()
    statement = node.body[0]
    assert statement.end_lineno is not None and node.end_lineno is not None
    kept = lines[node.lineno - 1 : statement.lineno - 1]
    kept += lines[statement.end_lineno : node.end_lineno]
    return textwrap.dedent("\n".join(kept)).strip()


def names(seen: dict[str, list[Function]], left_out: Counter[str]) -> dict[str, list[Row]]:
    """The words of functions, as Python's tokenizer cuts them, with what each name is."""

    def rows(found: list[Function]) -> Iterator[Row]:
        for function in found:
            words: list[str] = []
            labels: list[str] = []
            try:
                roles = roles_of(function.code)
                for token in tokenize.generate_tokens(io.StringIO(function.code).readline):
                    if token.string.strip() and token.type != tokenize.COMMENT:
                        words.append(" ".join(token.string.split()))
                        line, column = token.start  # in characters; the tree counts bytes
                        place = line, len(token.line[:column].encode())
                        labels.append(roles.get(place, "O"))
            except (tokenize.TokenError, SyntaxError):
                left_out["functions whose names cannot be told, as they stand alone"] += 1
                continue
            yield {"words": words[:WORDS], "labels": labels[:WORDS], "code": function.code}

    return parted(rows(seen["train"]), rows(seen["validation"]), "code")


def roles_of(code: str) -> dict[tuple[int, int], str]:
    """What the name at each (line, column in bytes of UTF-8) is.

    Raises:
        SyntaxError: it is no whole function.
    """
    roles: dict[tuple[int, int], str] = {}
    for node in ast.walk(
        ast.parse(code)
    ):  # breadth first: a call is seen before the name that it calls
        if isinstance(node, ast.FunctionDef):
            roles[node.lineno, node.col_offset + len("def ")] = "defined"
        elif isinstance(node, ast.arg):
            roles[node.lineno, node.col_offset] = "parameter"
        elif isinstance(node, ast.Call) and isinstance(node.func, ast.Name | ast.Attribute):
            roles[end_of(node.func)] = "called"
        elif isinstance(node, ast.Attribute):
            roles.setdefault(end_of(node), "attribute")
    return roles


def end_of(node: ast.Name | ast.Attribute) -> tuple[int, int]:
    """Where the last name of an expression begins."""
    assert node.end_lineno is not None and node.end_col_offset is not None
    last = node.id if isinstance(node, ast.Name) else node.attr
    return node.end_lineno, node.end_col_offset - len(last)


def search(seen: dict[str, list[Function]], out: Path) -> None:
    """Pairs to train on, and held-out docstrings that look for their functions."""

    def rows(found: list[Function]) -> Iterator[Row]:
        for function in found:
            yield {**vars(function)}

    made = parted(rows(seen["train"]), rows(seen["validation"]), "docstring")
    write(
        out / "train.jsonl",
        ({"query": row["docstring"], "positive": row["code"]} for row in made["train"]),
    )
    for split in ("validation", "test"):
        folder = out / split
        write(
            folder / "queries.jsonl", ({"id": r["id"], "text": r["docstring"]} for r in made[split])
        )
        write(folder / "documents.jsonl", ({"id": r["id"], "text": r["code"]} for r in made[split]))
        pairs = ({"query": row["id"], "document": row["id"], "score": 1} for row in made[split])
        write(folder / "relevance.jsonl", pairs)
    test = made["test"]
    named = sum(str(row["name"]) in str(row["docstring"]) for row in test)
    files = {row["file"] for row in made["train"]}
    shared = sum(row["file"] in files for row in test)
    print(
        f"search: {len(made['train'])} train, {len(test)} test; {named} test queries name their "
        f"function, {shared} are from files of the training pairs"
    )


if __name__ == "__main__":
    sys.exit(main())
