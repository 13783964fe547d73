"""What the site's pages are put together from: Markdown files of the tree, docstrings, commands.

A page of `docs/pages` may hold three things that are replaced when the site is built:

- a line that is nothing but a link to a Markdown file outside `docs/pages`, perhaps to one of its
  headings: the text found there, its headings one level below the one before the line;
- `<!-- keys of MODULE:CLASS -->`: every key of a YAML section and of those in it, from the
  dataclass and the docstrings of its fields;
- `<!-- commands -->`: what each command says of itself.

A link to any other file of the repository becomes the file's name: the site holds no source.
MkDocs calls the functions that begin with `on_`; everything else runs without it.
"""

import ast
import dataclasses
import importlib
import inspect
import posixpath
import re
import types
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin

import yaml

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = REPOSITORY / "docs" / "pages"
_ALONE = re.compile(r"^\[[^\]]*\]\(([^)\s#]+\.md)(?:#([\w-]+))?\)$", re.MULTILINE)
_LINK = re.compile(r"(!?)\[([^\]]*)\]\(([^)\s]+)\)")
_KEYS = re.compile(r"^<!-- keys of ([\w.]+):(\w+) -->$", re.MULTILINE)
_COMMANDS = re.compile(r"^<!-- commands -->$", re.MULTILINE)
_VALUES = {"Duration": "duration", "ByteSize": "size"}
"""Dataclasses that a YAML writes as one value."""
_FENCED = re.compile(r"^(```.*?^```$)", re.MULTILINE | re.DOTALL)


# ---- pages


def assemble(name: str) -> str:
    """The whole Markdown of a page.

    Args:
        name: its file below `docs/pages`.

    Raises:
        ValueError: it asks for a file, heading, class or page that does not exist.
    """
    text = (PAGES / name).read_text()
    text = _ALONE.sub(lambda match: _brought(name, text, match), text)
    text = _KEYS.sub(lambda match: keys_of(_named(match[1], match[2])), text)
    text = _COMMANDS.sub(lambda match: commands(), text)
    return _outside_of_code(text, lambda prose: _linked(prose, name))


def pages_of_files() -> dict[str, str]:
    """Files of the tree that stand whole on a page, and the page."""
    found = {}
    for page in sorted(PAGES.rglob("*.md")):
        name = page.relative_to(PAGES).as_posix()
        for match in _ALONE.finditer(page.read_text()):
            path = _target(name, match[1])
            if match[2] is None and not path.is_relative_to(PAGES):
                found[path.relative_to(REPOSITORY).as_posix()] = name
    return found


def section(markdown: str, anchor: str | None) -> str:
    """What stands under a heading, without it; without an anchor, all but the title.

    Raises:
        ValueError: there is no such heading.
    """
    lines = markdown.splitlines()
    headings = list(_headings(lines))
    if anchor is None:
        begin = headings[0][0] + 1 if headings and headings[0][1] == 1 else 0
        return "\n".join(lines[begin:]).strip()
    for place, (line, level, title) in enumerate(headings):
        if slug(title) == anchor:
            later = (at for at, depth, _ in headings[place + 1 :] if depth <= level)
            return "\n".join(lines[line + 1 : next(later, len(lines))]).strip()
    raise ValueError(f"there is no heading '#{anchor}'; there are {[slug(h[2]) for h in headings]}")


def slug(title: str) -> str:
    """The anchor that MkDocs gives a heading."""
    plain = re.sub(r"[^\w\s-]", "", re.sub(r"[`*]", "", title)).strip().lower()
    return re.sub(r"[-\s]+", "-", plain)


def _headings(lines: list[str]) -> Iterator[tuple[int, int, str]]:
    is_code = False
    for number, line in enumerate(lines):
        if line.startswith("```"):
            is_code = not is_code
        match = re.match(r"(#+) (.+)", line)
        if match and not is_code:
            yield number, len(match[1]), match[2]


def _brought(name: str, page: str, match: re.Match[str]) -> str:
    path = _target(name, match[1])
    if path.is_relative_to(PAGES):
        return match[0]
    text = section(path.read_text(), match[2])
    before = [level for _, level, _ in _headings(page[: match.start()].splitlines())]
    levels = [level for _, level, _ in _headings(text.splitlines())]
    shift = (before[-1] if before else 0) + 1 - min(levels, default=1)
    folder = path.parent.relative_to(REPOSITORY).as_posix()

    def relative(prose: str) -> str:
        deeper = re.sub(
            r"^(#+) ", lambda m: "#" * (len(m[1]) + shift) + " ", prose, flags=re.MULTILINE
        )
        return _LINK.sub(lambda link: _moved(link, folder, name), deeper)

    return _outside_of_code(text, relative)


def _moved(link: re.Match[str], folder: str, page: str) -> str:
    """A link of a file in `folder`, as the page has to write it."""
    bang, text, target = link.groups()
    if re.match(r"[a-z]+:|#", target):
        return link[0]
    whole = posixpath.normpath(posixpath.join(folder, target))
    back = posixpath.relpath(whole, posixpath.dirname(f"docs/pages/{page}"))
    return f"{bang}[{text}]({back})"


def _linked(prose: str, name: str) -> str:
    """The text with links that hold on the site."""
    pages = pages_of_files()

    def link(match: re.Match[str]) -> str:
        bang, text, target = match.groups()
        file, _, anchor = target.partition("#")
        if re.match(r"[a-z]+:", target) or not file:
            return match[0]
        path = _target(name, file)
        if path.is_relative_to(PAGES):
            return match[0]
        inside = path.relative_to(REPOSITORY).as_posix()
        here = posixpath.dirname(name)
        if bang:
            return f"![{text}]({posixpath.relpath(f'pictures/{path.name}', here)})"
        if inside in pages:
            page = posixpath.relpath(pages[inside], here)
            return f"[{text}]({page}{'#' + anchor if anchor else ''})"
        return text if inside in text or "`" in text else f"{text} (`{inside}`)"

    return _LINK.sub(link, prose)


def _target(page: str, link: str) -> Path:
    path = Path(posixpath.normpath(PAGES / posixpath.dirname(page) / link))
    if not path.exists() or not path.is_relative_to(REPOSITORY):
        raise ValueError(f"docs/pages/{page}: links to {link}, which does not exist")
    return path


def _outside_of_code(text: str, change: Any) -> str:
    parts = _FENCED.split(text)
    return "".join(part if part.startswith("```") else change(part) for part in parts)


def _named(module: str, name: str) -> Any:
    return getattr(importlib.import_module(module), name)


# ---- keys of a YAML


def keys_of(schema: Any) -> str:
    """Tables of all keys of a YAML, a heading for each section.

    A section that occurs again, such as a source of the evaluation, is described once.
    """
    seen: dict[Any, str] = {}
    return "\n\n".join(_tables(schema, "", seen))


def all_keys(schema: Any) -> set[str]:
    """Every key by its dotted path; names that the user chooses are `*`."""
    found: set[str] = set()
    for name, kind, _, _ in _fields(schema):
        found.add(name)
        for inner, is_named in _sections(kind):
            prefix = f"{name}.*" if is_named else name
            found |= {prefix} | {f"{prefix}.{key}" for key in all_keys(inner)}
    return found


def _tables(schema: Any, prefix: str, seen: dict[Any, str]) -> Iterator[str]:
    title = prefix.rstrip(".") or "At the top"
    name = next((k for n, k, _, _ in _fields(schema) if n == "name"), None)
    if name is not None and get_origin(name) is Literal and len(get_args(name)) == 1:
        title = f"{title}, name: {get_args(name)[0]}"
    seen[schema] = title
    rows, later = [], []
    for key, kind, default, meaning in _fields(schema):
        if key == "name" and ", name: " in title:
            continue
        sections = list(_sections(kind))
        for inner, is_named in sections:
            if inner in seen:
                meaning += f" Keys as in [{seen[inner]}](#{slug(seen[inner])})."
            else:
                later.append((inner, f"{prefix}{key}.{'NAME.' if is_named else ''}"))
        rows.append(f"| `{key}` | {_kind(kind)} | {default} | {_cell(meaning)} |")
    table = "\n".join(["| key | value | default | meaning |", "|---|---|---|---|", *rows])
    about = inspect.getdoc(schema) or ""
    yield f"### {title}\n\n{about}\n\n{table}"
    for inner, path in later:
        if inner not in seen:
            yield from _tables(inner, path, seen)


def _fields(schema: Any) -> Iterator[tuple[str, Any, str, str]]:
    from tessera.config import to_plain

    hints = typing.get_type_hints(schema, include_extras=True)
    told = _field_docstrings(schema)
    for field in dataclasses.fields(schema):
        if not field.init:
            continue
        kind, value = hints[field.name], field.default
        if field.default_factory is not dataclasses.MISSING:
            value = field.default_factory()
        if value is dataclasses.MISSING:
            default = "required"
        elif dataclasses.is_dataclass(value) and type(value).__name__ not in _VALUES:
            default = f"`{value.name}`" if hasattr(value, "name") else "its own"
        else:
            default = _plain(to_plain(value))
        yield field.name, kind, default, told.get(field.name, "")


def _field_docstrings(schema: Any) -> dict[str, str]:
    """The text under each field; for one that has none and is a section, what the section says."""
    found: dict[str, str] = {}
    for kind in reversed(schema.__mro__):
        if not dataclasses.is_dataclass(kind):
            continue
        (tree,) = ast.parse(inspect.cleandoc("\n" + inspect.getsource(kind))).body
        assert isinstance(tree, ast.ClassDef)
        for one, two in zip(tree.body, tree.body[1:], strict=False):
            is_text = isinstance(two, ast.Expr) and isinstance(two.value, ast.Constant)
            if isinstance(one, ast.AnnAssign) and isinstance(one.target, ast.Name) and is_text:
                found[one.target.id] = inspect.cleandoc(two.value.value)
    for name, kind in typing.get_type_hints(schema).items():
        sections = [inner for inner, _ in _sections(kind)]
        if name not in found and len(sections) == 1:
            found[name] = (inspect.getdoc(sections[0]) or "").split("\n")[0]
        elif name not in found and sections:
            found[name] = "A section whose `name` chooses which of those below it is."
    return found


def _sections(kind: Any) -> Iterator[tuple[Any, bool]]:
    """Sections that a value may be, each with whether it stands under a name of the user's."""
    if get_origin(kind) is Annotated:
        return
    if dataclasses.is_dataclass(kind):
        if kind.__name__ not in _VALUES:
            yield kind, False
    elif get_origin(kind) is dict:
        for inner, _ in _sections(get_args(kind)[1]):
            yield inner, True
    elif get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _sections(member)


def _kind(kind: Any) -> str:
    origin, inner = get_origin(kind), get_args(kind)
    words = {int: "whole number", float: "number", bool: "true, false", str: "text"}
    words |= {type(None): "null", Any: "anything"}
    if kind in words:
        return words[kind]
    if origin is Annotated:
        return "path"
    if origin is Literal:
        return ", ".join(f"`{choice}`" for choice in inner)
    if origin in (Union, types.UnionType):
        return ", ".join(dict.fromkeys(_kind(member) for member in inner))
    if origin is dict:
        return f"names: {_kind(inner[1])}"
    if origin in (list, tuple):
        return "list of " + _kind(inner[0])
    if dataclasses.is_dataclass(kind):
        return _VALUES.get(kind.__name__, "section")
    return getattr(kind, "__name__", str(kind))


def _plain(value: Any) -> str:
    text = yaml.safe_dump(value, default_flow_style=True, allow_unicode=True, width=1000)
    return "`" + text.removesuffix("...\n").strip() + "`"


def _cell(text: str) -> str:
    text = re.sub(r"\bNone\b", "null", re.sub(r"\s+", " ", text))
    return text.strip().replace("|", "\\|")


# ---- commands


def commands() -> str:
    """What each command of `tessera` answers to `--help`."""
    from tessera.cli.main import parser

    (subcommands,) = (a for a in parser()._actions if a.dest == "==SUPPRESS==")
    assert isinstance(subcommands.choices, dict)
    parts = []
    for name, sub in subcommands.choices.items():
        parts.append(f"## tessera {name}\n\n```text\n{_help(sub)}```")
        for action in sub._actions:
            if isinstance(action.choices, dict):
                parts += [
                    f"### tessera {name} {inner}\n\n```text\n{_help(parser)}```"
                    for inner, parser in action.choices.items()
                ]
    return "\n\n".join(parts)


def _help(parser: Any) -> str:
    text = parser.format_help()
    return re.sub(r"^usage: (?:\S*main\.py|\S*mkdocs)", "usage: tessera", text)


# ---- what MkDocs calls


def on_files(files: Any, config: Any) -> Any:
    """Pictures of the tree that pages show."""
    from mkdocs.structure.files import File

    for page in sorted(PAGES.rglob("*.md")):
        name = page.relative_to(PAGES).as_posix()
        for match in _ALONE.finditer(page.read_text()):
            path = _target(name, match[1])
            if path.is_relative_to(PAGES):
                continue
            for bang, _, target in _LINK.findall(section(path.read_text(), match[2])):
                picture = path.parent / target
                is_there = picture.resolve().is_relative_to(PAGES)
                if bang and picture.is_file() and not is_there:
                    files.append(
                        File.generated(
                            config, f"pictures/{picture.name}", abs_src_path=str(picture)
                        )
                    )
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Any) -> str:
    """The page as `assemble` puts it together."""
    return assemble(page.file.src_uri)
