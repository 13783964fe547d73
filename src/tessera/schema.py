"""Plain values to frozen dataclasses and back, strictly: every mistake at once, by key.

Knows no section of any configuration, and imports no torch. A section is a frozen dataclass; its
`__post_init__` may raise ValueError with one problem a line, each best begun with a field's name.
"""

import dataclasses
import difflib
import re
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any, Literal, TypeVar, Union, get_args, get_origin

import yaml

Section = TypeVar("Section")
VARIABLE = re.compile(r"(?<!\\)\$\{([A-Za-z_][A-Za-z0-9_]*)\}")
"""An environment variable in a text: `${NAME}`."""
_FAILED = object()


class ConfigError(Exception):
    """A mistake of the user's: its text is all there is to say; the exit status is 2."""

    problems: tuple[str, ...] = ()
    """Each by itself, where the text lists several."""


def refusal(subject: str, problems: Sequence[str]) -> ConfigError:
    """The error that lists problems under what has them."""
    count = "1 problem" if len(problems) == 1 else f"{len(problems)} problems"
    error = ConfigError("\n  ".join([f"{subject}: {count}", *problems]))
    error.problems = tuple(problems)
    return error


def decode(cls: type[Section], plain: Any, origin: str) -> Section:
    """Turn plain dicts, lists and scalars into `cls`; `origin` names them in errors.

    Raises:
        ConfigError: naming every key that is wrong.
    """
    problems: dict[str, list[str]] = {}
    value = _decode(cls, plain, "", _Report(cls, problems))
    if problems:
        lines = [f"{key}: {text}" if key else text for key in problems for text in problems[key]]
        raise refusal(origin, lines)
    return typing.cast(Section, value)


def to_plain(value: Any) -> Any:
    """The same configuration as dicts, lists and scalars that `decode` reads back."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        parse = getattr(type(value), "parse", None)
        if parse is not None and type(value).__str__ is not object.__str__:
            text = str(value)
            if parse(text) == value:
                return text
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return value


def with_defaults(kind: Any, plain: Any) -> Any:
    """The same plain configuration, with the defaults of all that it does not name.

    Nothing is checked: what `kind` does not know is kept as it is.
    """
    origin, inner = get_origin(kind), get_args(kind)
    if origin in (Union, types.UnionType) and isinstance(plain, Mapping):
        members = [member for member in inner if dataclasses.is_dataclass(member)]
        named = [
            m
            for m in members
            if "name" not in (f := _fields(m)) or plain.get("name") in get_args(f["name"])
        ]
        return with_defaults(named[0], plain) if named else plain
    if origin is dict and isinstance(plain, Mapping):
        return {key: with_defaults(inner[1], item) for key, item in plain.items()}
    if not dataclasses.is_dataclass(kind) or not isinstance(plain, Mapping):
        return plain
    filled = {}
    for name, member in _fields(kind).items():
        field = kind.__dataclass_fields__[name]
        if name in plain:
            filled[name] = with_defaults(member, plain[name])
        elif field.default is not dataclasses.MISSING:
            filled[name] = to_plain(field.default)
        elif field.default_factory is not dataclasses.MISSING:
            filled[name] = to_plain(field.default_factory())
    return {**plain, **filled}


def to_yaml(value: Any) -> str:
    """The resolved configuration as a YAML document."""
    return yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True)


class _Report:
    """Collects problems by dotted key, and knows the whole schema for suggestions.

    A schema may have `KNOWN_AS`: what other programs call its keys, and what they are here.
    """

    def __init__(self, schema: Any, problems: dict[str, list[str]]) -> None:
        self.schema = schema
        self.problems = problems

    def add(self, key: str, text: str) -> Any:
        self.problems.setdefault(key, []).append(text)
        return _FAILED

    def suggest(
        self, name: str, fields: Sequence[str], likelier: Sequence[str] = (), prefix: str = ""
    ) -> str:
        here = getattr(self.schema, "KNOWN_AS", {}).get(name)
        if here is not None and here != prefix + name:
            return f"here it is {here}"
        if "." in name:
            section, _, inner = name.partition(".")
            return f"in a YAML it is a key of a section, {section}: {{{inner}: ...}}"
        close = difflib.get_close_matches(name, likelier, n=1)
        close = close or difflib.get_close_matches(name, fields, n=1)
        if close:
            return f"did you mean '{close[0]}'?"
        keys = [key for key in _keys(self.schema, "") if key != prefix + name]
        elsewhere = [key for key in keys if key.rpartition(".")[2] == name != "name"]
        if elsewhere:
            least = min(key.count(".") for key in elsewhere)
            nearest = dict.fromkeys(key for key in elsewhere if key.count(".") == least)
            return f"did you mean {' or '.join(map(repr, nearest))}?"
        return f"the keys here are {', '.join(fields)}"


def _keys(kind: Any, prefix: str) -> Iterator[str]:
    if dataclasses.is_dataclass(kind):
        for name, inner in _fields(kind).items():
            yield prefix + name
            yield from _keys(inner, f"{prefix}{name}.")
    elif get_origin(kind) in (Union, types.UnionType):
        for member in get_args(kind):
            yield from _keys(member, prefix)


def _fields(cls: Any) -> dict[str, Any]:
    hints = typing.get_type_hints(cls, include_extras=True)
    return {field.name: hints[field.name] for field in dataclasses.fields(cls) if field.init}


def _decode(kind: Any, value: Any, key: str, report: _Report) -> Any:
    origin = get_origin(kind)
    if origin in (Union, types.UnionType):
        return _decode_union(kind, value, key, report)
    if origin is Literal:
        return _decode_literal(kind, value, key, report)
    if origin is Annotated:  # text that means something: a path
        return _parse(get_args(kind)[1], value, key, report)
    if dataclasses.is_dataclass(kind):
        if hasattr(kind, "parse") and not isinstance(value, Mapping):
            return _parse(kind, value, key, report)
        return _decode_section(kind, value, key, report)
    if origin in (list, tuple, dict):
        return _decode_collection(kind, value, key, report)
    return _decode_scalar(kind, value, key, report)


def _parse(kind: Any, value: Any, key: str, report: _Report) -> Any:
    try:
        return kind.parse(value)
    except ValueError as error:
        return report.add(key, str(error))


def _decode_section(cls: Any, value: Any, key: str, report: _Report) -> Any:
    if value is None:
        value = {}
    if not isinstance(value, Mapping):
        keys = ", ".join(_fields(cls))
        return report.add(key, f"expected a section of keys ({keys}), got {value!r}")
    hints = _fields(cls)
    prefix = f"{key}." if key else ""
    for name in value:
        if name not in hints:
            sections = [known for known, kind in hints.items() if next(_keys(kind, ""), None)]
            likelier = sections if isinstance(value[name], Mapping) else []
            hint = report.suggest(str(name), list(hints), likelier, prefix)
            report.add(f"{prefix}{name}", f"unknown '{name}'; {hint}")
    decoded = {}
    for field in dataclasses.fields(cls):
        if not field.init:
            continue
        if field.name in value:
            inner = f"{prefix}{field.name}"
            decoded[field.name] = _decode(hints[field.name], value[field.name], inner, report)
        elif field.default is not dataclasses.MISSING:
            decoded[field.name] = field.default
        elif field.default_factory is not dataclasses.MISSING:
            decoded[field.name] = field.default_factory()
        else:
            decoded[field.name] = report.add(f"{prefix}{field.name}", "missing, and required")
    wrong = [name for name, item in decoded.items() if item is _FAILED]
    section = _construct(cls, decoded, key, report, wrong)
    return _FAILED if wrong else section


def _construct(
    cls: Any, decoded: dict[str, Any], key: str, report: _Report, wrong: Sequence[str]
) -> Any:
    # Built without __init__ so that a section whose values are wrong still lets the section
    # around it check the rest: all mistakes are to be seen in one go.
    section = object.__new__(cls)
    for name, item in decoded.items():
        value = _stand_in(cls, name) if name in wrong else item
        if value is not _FAILED:
            object.__setattr__(section, name, value)
    check = getattr(section, "__post_init__", None)
    if check is None:
        return section
    already = len(report.problems)
    try:
        check()
    except ValueError as error:
        for line in str(error).splitlines():
            if any(re.search(rf"\b{name}\b", line) for name in wrong):
                continue
            first, _, rest = line.partition(" ")
            inner = first.rstrip(":").split(".")[0] in decoded
            said = inner and (first.endswith(":") or rest.startswith(("must ", "is ", "are ")))
            text = rest if said else line
            report.add(".".join(filter(None, [key, first.rstrip(":") if inner else ""])), text)
    except Exception:
        # A check that trips over values already reported has nothing to add.
        if not already:
            raise
    return section


def _stand_in(cls: Any, name: str) -> Any:
    """What a section's check may see in the place of a value that is reported already."""
    field = cls.__dataclass_fields__[name]
    if field.default is not dataclasses.MISSING:
        return field.default
    if field.default_factory is not dataclasses.MISSING:
        return field.default_factory()
    kind: Any = _fields(cls)[name]
    if kind in (int, float):
        return 1
    if kind is str or get_origin(kind) is Annotated:
        return ""
    if hasattr(kind, "EXAMPLE"):
        return kind.parse(kind.EXAMPLE)
    return _unjudged(kind) if dataclasses.is_dataclass(kind) else _FAILED


def _unjudged(kind: Any) -> Any:
    """A section of stand-ins, whose own check is not asked."""
    section = object.__new__(kind)
    for name in _fields(kind):
        if (value := _stand_in(kind, name)) is not _FAILED:
            object.__setattr__(section, name, value)
    return section


def _decode_union(kind: Any, value: Any, key: str, report: _Report) -> Any:
    members = [member for member in get_args(kind) if member is not type(None)]
    if value is None and type(None) in get_args(kind):
        return None
    if len(members) == 1:
        return _decode(members[0], value, key, report)
    named = {
        get_args(_fields(member)["name"])[0]: member
        for member in members
        if dataclasses.is_dataclass(member) and "name" in _fields(member)
    }
    if named and isinstance(value, Mapping):
        name = value.get("name")
        if name in named:
            return _decode(named[name], value, key, report)
        close = [] if name is None else difflib.get_close_matches(str(name), list(named), n=1)
        hint = f"did you mean '{close[0]}'?" if close else f"one of {', '.join(named)}"
        fault = "missing" if name is None else f"unknown '{name}'"
        report.add(f"{key}.name", f"{fault}; {hint}")
        # The keys beside it are judged too: as those of the one that was meant, or of any.
        if close:
            _decode(named[close[0]], {**value, "name": close[0]}, key, report)
            return _FAILED
        known: dict[str, Any] = {}
        for member in members:
            known = {**_fields(member), **known}
        for one, item in value.items():
            if one not in known:
                hint = report.suggest(str(one), list(known), prefix=f"{key}.")
                report.add(f"{key}.{one}", f"unknown '{one}'; {hint}")
            elif one != "name":
                _decode(known[one], item, f"{key}.{one}", report)
        return _FAILED
    if named and len(named) == len(members):
        close = difflib.get_close_matches(str(value), list(named), n=1) or list(named)
        given = f"expected a section with a name, such as {{name: {close[0]}}}; got {value!r}"
        return report.add(key, given)
    for member in members:
        attempt = _Report(report.schema, {})
        decoded = _decode(member, value, key, attempt)
        if not attempt.problems:
            return decoded
    kinds = " or ".join(_name(member) for member in members)
    return report.add(key, f"expected {kinds}, got {value!r}")


def _decode_literal(kind: Any, value: Any, key: str, report: _Report) -> Any:
    choices = get_args(kind)
    if any(value == choice and type(value) is type(choice) for choice in choices):
        return value
    close = difflib.get_close_matches(str(value), [str(choice) for choice in choices], n=1)
    hint = f"did you mean '{close[0]}'?" if close else f"one of {', '.join(map(str, choices))}"
    return report.add(key, f"unknown '{value}'; {hint}")


def _decode_collection(kind: Any, value: Any, key: str, report: _Report) -> Any:
    origin = get_origin(kind)
    inner = get_args(kind)
    if origin is dict:
        if not isinstance(value, Mapping):
            return report.add(key, f"expected names with values, got {value!r}")
        members = get_args(inner[1]) or inner[1:]
        removed = all(map(dataclasses.is_dataclass, members))  # null takes away one of `extends`
        items = {
            str(name): _decode(inner[1], item, f"{key}.{name}", report)
            for name, item in value.items()
            if item is not None or not removed
        }
        return _FAILED if any(item is _FAILED for item in items.values()) else items
    if not isinstance(value, list | tuple):
        return report.add(key, f"expected a list, got {value!r}")
    if origin is tuple and Ellipsis not in inner:
        if len(value) != len(inner):
            return report.add(key, f"expected {len(inner)} values, got {value!r}")
        kinds = list(inner)
    else:
        kinds = [inner[0]] * len(value)
    listed = [
        _decode(member, item, f"{key}[{index}]", report)
        for index, (member, item) in enumerate(zip(kinds, value, strict=True))
    ]
    return _FAILED if any(item is _FAILED for item in listed) else origin(listed)


def _decode_scalar(kind: Any, value: Any, key: str, report: _Report) -> Any:
    if kind is Any or (isinstance(kind, type) and type(value) is kind):
        if isinstance(value, float) and value - value != 0:
            return report.add(key, f"expected a finite number, got {value!r}")
        if isinstance(value, str) and (match := VARIABLE.search(value)):
            name = match[1]
            return report.add(
                key,
                f"{value!r}: no key is named '{name}'; a variable of the environment is written "
                f"${{oc.env:{name}}} here",
            )
        return value
    if kind is int and isinstance(value, float) and value.is_integer():
        return int(value)
    if kind is float and type(value) is int:
        return float(value)
    return report.add(key, f"expected {_name(kind)}, got {value!r}")


def _name(kind: Any) -> str:
    words = {int: "a whole number", float: "a number", bool: "true or false", str: "text"}
    if kind in words:
        return words[kind]
    if get_origin(kind) is Annotated:
        return "a path"
    if get_origin(kind) is Literal:
        return " or ".join(f"'{choice}'" for choice in get_args(kind))
    if get_origin(kind) in (list, tuple):
        return "a list"
    return getattr(kind, "__name__", str(kind))
