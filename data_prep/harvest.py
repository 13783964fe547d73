"""Harvest real text of three kinds that every Python installation already has.

web      what people write about their software: package descriptions, READMEs, language reference,
         documentation of web services and of packages that are neither of the kinds below
code     the standard library's sources, then those of installed packages
science  documentation inside the numerical packages: torch, numpy, pandas, sympy, networkx, ...

The result is the same for the same environment: train.jsonl and validation.jsonl for each kind,
without exact duplicates, split by a hash of each document. Nothing is imported or downloaded.
"""

import sys
from pathlib import Path

if __name__ == "__main__":  # tokenize.py, beside this file, must not hide the standard library's
    sys.path = [
        entry for entry in sys.path if Path(entry).resolve() != Path(__file__).resolve().parent
    ]

import argparse
import ast
import gzip
import hashlib
import importlib.metadata
import inspect
import itertools
import json
import re
import sysconfig
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator

from tessera.data.preparation.progress_bar import progress_bar
from tessera.files import write_whole
from tessera.paths import LOCAL, option

SITE = Path(sysconfig.get_paths()["purelib"])
STANDARD_LIBRARY = Path(sysconfig.get_paths()["stdlib"])
SCIENCE_PACKAGES = (
    *("torch", "numpy", "pandas", "sympy", "networkx", "mpmath", "matplotlib", "torchmetrics"),
    *("pyarrow", "torchvision", "scipy", "sklearn"),
)
CODE_PACKAGES = (
    *("transformers", "composer", "streaming", "pip", "pygments", "rich", "omegaconf", "typer"),
    *("prompt_toolkit", "jinja2", "werkzeug", "urllib3", "requests", "fsspec", "click"),
)
SKIPPED_FOLDERS = {"tests", "test", "testing", "idle_test", "site-packages", "lib2to3", "_vendor"}
SHORTEST_CHARACTERS = 200
LONGEST_CHARACTERS = 24_000
REPEATS_OF_A_LINE = 8
VALIDATION_SHARE = 0.025

Document = tuple[str, str]
"""(id, text)."""


def main() -> int:
    """Harvest what is missing; returns the exit status."""
    arguments = parse_arguments()
    if arguments.mb <= 0:
        return refuse(f"--mb must be positive; got {arguments.mb}")
    for kind, documents in KINDS.items():
        folder = Path(arguments.out) / kind
        stamp = environment_stamp(kind, arguments.mb)
        if is_done(folder, stamp):
            print(f"{kind}: {folder} is up to date")
            continue
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            return refuse(f"--out {arguments.out}: {error}")
        counts = write_kind(kind, folder, documents(), int(arguments.mb * 1e6))
        record = json.dumps({"environment": stamp, **counts}, indent=2)
        write_whole(folder / "stamp.json", record.encode())
        print(describe(kind, counts))
    return 0


def parse_arguments() -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add(
        "--out",
        type=option(LOCAL),
        default="data/demo/text",
        help="folder for <kind>/{train,validation}.jsonl",
    )
    add("--mb", type=float, default=12.0, help="megabytes of text of each kind, at most (12)")
    return parser.parse_args()


def refuse(message: str) -> int:
    """Say what is wrong with the call; returns the exit status."""
    print(message, file=sys.stderr)
    return 2


# ---- the three kinds


def web() -> Iterator[Document]:
    """Prose about software, most readable first."""
    yield from package_descriptions()
    yield from text_files()
    yield from language_reference()
    other = {*SCIENCE_PACKAGES, *CODE_PACKAGES, "oci"}  # oci: 200 MB, and all of it alike
    yield from docstrings(
        path for path in SITE.iterdir() if path.is_dir() and path.name not in other
    )
    yield from service_documentation()


def code() -> Iterator[Document]:
    """Python sources, cut at top-level definitions where a file is long."""
    packages = [SITE / package for package in CODE_PACKAGES]
    for path in itertools.chain(python_files([STANDARD_LIBRARY]), python_files(packages)):
        if path.name == "topics.py":  # language_reference() has it
            continue
        for number, piece in enumerate(cut(read(path), r"\n(?=@|def |class |async def |[A-Z_])")):
            yield f"{short_name(path)}#{number}", piece


def science() -> Iterator[Document]:
    """Docstrings of the numerical packages."""
    return docstrings(SITE / package for package in SCIENCE_PACKAGES)


KINDS: dict[str, Callable[[], Iterator[Document]]] = {"web": web, "code": code, "science": science}


def package_descriptions() -> Iterator[Document]:
    """The long descriptions in the metadata of installed packages."""
    found = importlib.metadata.distributions(path=[str(SITE)])
    for package in sorted(found, key=lambda item: (item.name or "").lower()):
        if package.name and package.name != "tessera":
            body = package.read_text("METADATA") or ""
            yield f"{package.name}/description", body.partition("\n\n")[2]


def text_files() -> Iterator[Document]:
    """Markdown and reStructuredText files inside packages."""
    for suffix in ("md", "rst"):
        for path in sorted(SITE.rglob(f"*.{suffix}")):
            if not re.search("licen[sc]e|notice|third.party", str(path), re.IGNORECASE):
                yield short_name(path), read(path)


def language_reference() -> Iterator[Document]:
    """The chapters of Python's reference that `help()` shows."""
    path = STANDARD_LIBRARY / "pydoc_data" / "topics.py"
    if path.is_file():
        for node in ast.walk(ast.parse(read(path))):
            if isinstance(node, ast.Dict):
                for key, value in zip(node.keys, node.values, strict=True):
                    if isinstance(key, ast.Constant) and isinstance(value, ast.Constant):
                        yield f"pydoc/{key.value!s}", str(value.value)


def service_documentation() -> Iterator[Document]:
    """What botocore says about web services, in HTML: one document per service."""
    for path in in_hash_order(SITE.glob("botocore/data/*/*/service-2.json.gz")):
        service = json.loads(gzip.decompress(path.read_bytes()))
        parts = [service.get("documentation", "")]
        for name, operation in service["operations"].items():
            parts.append(f"{name}: {operation.get('documentation', '')}")
        text = re.sub(r"<[^>]+>", "", re.sub(r"</(?:p|li|h\d|note)>", "\n", "\n\n".join(parts)))
        for number, piece in enumerate(cut(text, r"\n\n")):
            yield f"botocore/{path.parts[-3]}#{number}", piece


def docstrings(packages: Iterable[Path]) -> Iterator[Document]:
    """Long docstrings each by itself, the short ones of a file together."""
    for path in in_hash_order(python_files(packages)):
        short: list[str] = []
        for name, text in docstrings_of(path):
            titled = f"{name}\n\n{text}"
            if len(text) >= 400:
                yield f"{short_name(path)}:{name}", titled
            elif len(text) >= 60:
                short.append(titled)
        yield f"{short_name(path)}:rest", "\n\n".join(short)


def docstrings_of(path: Path) -> Iterator[tuple[str, str]]:
    """(qualified name, docstring) of a file: of definitions, and those that calls attach."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the invalid escapes of other people's strings
            tree = ast.parse(read(path))
    except (SyntaxError, ValueError):  # templates and code of other Python versions
        return
    module = short_name(path).removesuffix(".py").removesuffix("/__init__").replace("/", ".")
    stack: list[tuple[str, ast.AST]] = [(module, tree)]
    while stack:
        name, node = stack.pop()
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            if text := ast.get_docstring(node):
                yield name, text
        elif isinstance(node, ast.Call) and "doc" in ast.unparse(node.func):
            for leaf in ast.walk(node):
                if isinstance(leaf, ast.Constant) and isinstance(leaf.value, str):
                    yield ast.unparse(node.func), inspect.cleandoc(leaf.value)
        for child in ast.iter_child_nodes(node):
            stack.append((f"{name}.{child.name}" if hasattr(child, "name") else name, child))


# ---- files


def python_files(folders: Iterable[Path]) -> Iterator[Path]:
    """The sources in these folders, without tests."""
    for folder in folders:
        for path in sorted(folder.rglob("*.py")):
            if not SKIPPED_FOLDERS.intersection(path.relative_to(folder.parent).parts[1:-1]):
                yield path


def in_hash_order(paths: Iterable[Path]) -> list[Path]:
    """An order without preference, the same everywhere, so that a cap takes a fair sample."""
    return sorted(paths, key=lambda path: hashlib.sha256(short_name(path).encode()).digest())


def read(path: Path) -> str:
    """The text of a file, whatever its bytes."""
    return path.read_text(encoding="utf-8", errors="replace")


def short_name(path: Path) -> str:
    """The path of a file inside its environment."""
    for root in (SITE, STANDARD_LIBRARY):
        if path.is_relative_to(root):
            return str(path.relative_to(root))
    return path.name


# ---- cleaning, cutting, writing


def cut(text: str, boundary: str) -> Iterator[str]:
    """Cut a text that is too long at the boundaries (a pattern) that leave it long enough."""
    start = 0
    for match in re.finditer(boundary, text):
        if match.start() - start > LONGEST_CHARACTERS // 2:
            yield text[start : match.start()]
            start = match.start()
    yield text[start:]


def clean(text: str, seen_lines: Counter[str], *, prose: bool) -> str:
    """Trim lines; leave out those, such as of licences, that many documents share."""
    kept = []
    for line in text.expandtabs(4).replace("\r", "").split("\n"):
        line = line.rstrip()
        bare = line.strip()
        if len(bare) >= 40 and (prose or bare.startswith("#")):
            seen_lines[bare] += 1
            if seen_lines[bare] > REPEATS_OF_A_LINE:
                continue
        kept.append(line)
    text = re.sub(r"\n{4,}", "\n\n\n", "\n".join(kept)).strip()
    return text[:LONGEST_CHARACTERS]


def write_kind(
    kind: str, folder: Path, documents: Iterable[Document], cap_characters: int
) -> dict[str, int]:
    """Write one kind's train.jsonl and validation.jsonl; returns what was counted."""
    seen: set[bytes] = set()
    seen_lines: Counter[str] = Counter()
    lines: dict[str, list[str]] = {"train": [], "validation": []}
    counts = Counter(duplicates=0, short=0, train=0, validation=0)
    with progress_bar(cap_characters, kind) as bar:
        for document_id, raw in documents:
            text = clean(raw, seen_lines, prose=kind != "code")
            digest = hashlib.sha256(re.sub(r"\s+", " ", text).encode()).digest()
            if len(text) < SHORTEST_CHARACTERS or digest in seen:
                counts["duplicates" if digest in seen else "short"] += 1
                continue
            seen.add(digest)
            share = int.from_bytes(digest[:4]) / 2**32
            split = "validation" if share < VALIDATION_SHARE else "train"
            lines[split].append(json.dumps({"id": document_id, "text": text}, ensure_ascii=False))
            counts[split] += 1
            counts["characters"] += len(text)
            bar.update(len(text))
            if counts["characters"] >= cap_characters:
                break
    for split, records in lines.items():
        content = "".join(record + "\n" for record in records)
        write_whole(folder / f"{split}.jsonl", content.encode())
    return dict(counts)


def describe(kind: str, counts: dict[str, int]) -> str:
    """One line of statistics."""
    documents = counts["train"] + counts["validation"]
    return (
        f"{kind:8} {documents} documents ({counts['validation']} for validation), "
        f"{counts.get('characters', 0) / 1e6:.1f} MB, "
        f"{counts.get('characters', 0) // max(documents, 1)} characters each; left out "
        f"{counts['duplicates']} duplicates, {counts['short']} too short"
    )


# ---- restarting


def environment_stamp(kind: str, megabytes: float) -> str:
    """Changes with the installed packages, the options, and this script."""
    found = importlib.metadata.distributions(path=[str(SITE)])
    packages = sorted(f"{item.name} {item.version}" for item in found if item.name != "tessera")
    facts = [kind, megabytes, sys.version, packages, Path(__file__).read_text(encoding="utf-8")]
    return hashlib.sha256(json.dumps(facts).encode()).hexdigest()


def is_done(folder: Path, stamp: str) -> bool:
    """Whether this kind was harvested from this environment before."""
    record = folder / "stamp.json"
    return record.is_file() and json.loads(record.read_text())["environment"] == stamp


if __name__ == "__main__":
    sys.exit(main())
