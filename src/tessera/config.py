"""YAML files, what they extend, and overrides, to a frozen dataclass that `schema` checks.

Knows no section of any configuration, and imports no torch.
"""

import difflib
import os
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf
from omegaconf.errors import KeyValidationError, OmegaConfBaseException

from tessera.paths import LOCAL
from tessera.schema import (
    VARIABLE,
    ConfigError,
    Section,
    decode,
    refusal,
    to_plain,
    to_yaml,
    with_defaults,
)

__all__ = [
    "ConfigError",
    "decode",
    "decode_file",
    "defined_in",
    "load",
    "load_plain",
    "mistake",
    "refusal",
    "to_plain",
    "to_yaml",
    "with_defaults",
]


def mistake(error: BaseException) -> str | None:
    """The one message for a failure that is the user's to mend; None for a failure of ours.

    A ConfigError, or an error about a file, is the user's; so is a ValueError that a `raise` of
    this project threw, which speaks to users so. One out of a library is a defect here, also if the
    library is written in C, of which a traceback shows only the line of ours that called it.
    """
    if isinstance(error, ConfigError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.filename}: {error.strerror}"
    if isinstance(error, ValueError):
        frames = traceback.extract_tb(error.__traceback__)
        ours = frames and Path(frames[-1].filename).is_relative_to(Path(__file__).parent)
        if ours and (frames[-1].line or "raise").startswith("raise"):
            return str(error)
    return None


def load(cls: type[Section], path: str | Path, overrides: Sequence[str] = ()) -> Section:
    """Read a YAML file, with `extends` and dotted overrides, as the dataclass `cls`.

    A class may have `complete`, which fills in what the file leaves to something that it names.

    Raises:
        ConfigError: naming the file and every key that is wrong, with what was likely meant.
    """
    plain = load_plain(path, overrides)
    complete = getattr(cls, "complete", None)
    return decode_file(cls, plain if complete is None else complete(plain), path, overrides)


def decode_file(
    cls: type[Section], plain: Any, path: str | Path, overrides: Sequence[str] = ()
) -> Section:
    """What `decode` makes of a file's values, which `load_plain` read of the same file.

    Raises:
        ConfigError: naming every key that is wrong, and every null that takes nothing away.
    """
    idle = idle_removals(cls, path, overrides)
    origin = str(_local(str(path)))
    try:
        section = decode(cls, plain, origin)
    except ConfigError as error:
        if not error.problems:
            raise
        raise refusal(origin, [*error.problems, *idle]) from None
    if idle:
        raise refusal(origin, idle)
    return section


def idle_removals(cls: type, path: str | Path, overrides: Sequence[str]) -> list[str]:
    """What is wrong with each `NAME: null` that takes away what nothing brought.

    Args:
        cls: may have `NAMED`, the dotted sections whose keys are names that anybody chooses.
        path: the YAML, already read without a mistake.
        overrides: from a command line.
    """
    path = _local(str(path))
    own = OmegaConf.to_container(OmegaConf.load(path))
    brought_files = list(_brought(own, path, ""))
    found = []
    for section in getattr(cls, "NAMED", ()):
        named = [(path, _section(own, section))]
        for file, under, plain in brought_files:
            if f"{section}.".startswith(under):
                rest = f"{section}.".removeprefix(under).removesuffix(".")
                named.append((file, _section(plain, rest) if rest else plain))
        there = {str(n) for _, names in named for n, value in names.items() if value is not None}
        there |= {each.removeprefix(f"{section}.").partition(".")[0] for each in overrides}
        found += [
            f"{section}.{name}: null in {os.path.normpath(file)} takes nothing away; remove it"
            for file, names in named[1:]
            for name, value in names.items()
            if value is None and str(name) not in there
        ]
        names = _section(own, section)
        here = [str(name) for name, value in names.items() if value is None]
        typed = [
            key.removeprefix(f"{section}.")
            for key, _, value in (override.partition("=") for override in overrides)
            if key.startswith(f"{section}.") and value.strip() in {"null", "~", ""}
        ]
        typed = [name for name in typed if "." not in name]
        if not here and not typed:
            continue
        brought = _section(_extend(_without(own, section, here), path, (path.resolve(),)), section)
        kept = [str(name) for name, value in brought.items() if value is not None]
        said = f"there are {', '.join(kept)}" if kept else "there are none"
        found += [
            f"{section}.{name}: is not there to be taken away; {said}"
            for name in dict.fromkeys([*here, *typed])
            if name not in kept
        ]
    return found


def _brought(plain: Any, path: Path, under: str) -> Iterator[tuple[Path, str, Any]]:
    """Each file that `extends` brings at any level: its path, the section it is for, its content.

    The section is dotted and ends with a dot; it is empty for the whole file.
    """
    if not isinstance(plain, dict):
        return
    for base in _bases(plain):
        file = path.parent / _local(base)
        content = OmegaConf.to_container(OmegaConf.load(file))
        yield file, under, content
        yield from _brought(content, file, under)
    for key, value in plain.items():
        yield from _brought(value, path, f"{under}{key}.")


def _section(plain: Any, dotted: str) -> dict:
    for part in dotted.split("."):
        plain = plain.get(part) if isinstance(plain, dict) else None
    return plain if isinstance(plain, dict) else {}


def _without(plain: Any, dotted: str, names: Sequence[str]) -> Any:
    """The same without some keys of a dotted section."""
    part, _, rest = dotted.partition(".")
    if not isinstance(plain, dict) or part not in plain:
        return plain
    if rest:
        return {**plain, part: _without(plain[part], rest, names)}
    if not isinstance(plain[part], dict):
        return plain
    kept = {key: value for key, value in plain[part].items() if str(key) not in names}
    return {**plain, part: kept}


def load_plain(path: str | Path, overrides: Sequence[str] = ()) -> Any:
    """The same as plain values, unchecked.

    `extends: other.yaml` (or a list) at any level of the file stands for the keys of that file,
    found beside the file that names it; keys beside `extends` win over those it brings.

    Raises:
        ConfigError: a file cannot be read as YAML, or an override is none.
    """
    path = _local(str(path))
    content = _read(path, ())
    keys = {*content, *(override.partition("=")[0].strip() for override in overrides)}
    tree = OmegaConf.create(_keep_variables(content, keys))
    try:
        for override in overrides:
            tree = _override(tree, _keep_variables(override, keys))
        return OmegaConf.to_container(tree, resolve=True)
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None


def _local(text: str) -> Path:
    """The path of a YAML, expanded."""
    try:
        return Path(LOCAL.parse(text))
    except ValueError as error:
        raise ConfigError(str(error)) from None


def _keep_variables(value: Any, keys: set[str]) -> Any:
    """The same, where `${NAME}` that is no key at the top stands for itself.

    OmegaConf takes it for the value of a key; in a path it is a variable of the environment.
    """
    if isinstance(value, dict):
        return {key: _keep_variables(item, keys) for key, item in value.items()}
    if isinstance(value, list):
        return [_keep_variables(item, keys) for item in value]
    if isinstance(value, str):
        return VARIABLE.sub(lambda m: m[0] if m[1] in keys else "\\" + m[0], value)
    return value


def defined_in(path: Path, key: str) -> Path | None:
    """The file that a dotted key stands in: `path`, or one that it extends; None if in none."""
    return _find(OmegaConf.to_container(OmegaConf.load(path)), path, key.split("."))


def _read(path: Path, chain: tuple[Path, ...]) -> dict:
    if path.resolve() in chain:
        names = " -> ".join(str(link) for link in [*chain, path.resolve()])
        raise ConfigError(f"{path}: extends itself ({names})")
    try:
        content = OmegaConf.to_container(OmegaConf.load(path))
    except FileNotFoundError:
        asked = f"{os.path.relpath(chain[-1])}: extends " if chain else ""
        raise ConfigError(f"{asked}{path}: no such file{_neighbour(path, chain)}") from None
    except IsADirectoryError:
        raise ConfigError(f"{path}: is a folder; name a YAML file in it") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error})") from None
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: not valid YAML: {' '.join(str(error).split())}") from None
    except KeyValidationError as error:
        where = f"a key of {error.full_key}" if error.full_key else "a key"
        said = f"{where} is no text or number; put it in quotes"
        raise ConfigError(f"{path}: {said} ({str(error).splitlines()[0]})") from None
    except OmegaConfBaseException as error:
        raise ConfigError(f"{path}: {str(error).splitlines()[0]}") from None
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: expected keys with values, found a {type(content).__name__}")
    return _extend(content, path, (*chain, path.resolve()))


def _extend(section: dict, path: Path, chain: tuple[Path, ...]) -> dict:
    own = {
        key: _extend(value, path, chain) if isinstance(value, dict) else value
        for key, value in section.items()
        if key != "extends"
    }
    merged: dict = {}
    for base in _bases(section):
        merged = _merge(merged, _read(path.parent / _local(base), chain))
    return _merge(merged, own)


def _bases(section: dict) -> list[str]:
    bases = section.get("extends") or []
    listed = bases if isinstance(bases, list) else [bases]
    for base in listed:
        if not isinstance(base, str):
            raise ConfigError(f"extends: {str(base)[:60]!r} is not the name of a YAML file")
    return listed


def _find(section: Any, path: Path, names: Sequence[str]) -> Path | None:
    if not names:
        return path
    if not isinstance(section, dict):
        return None
    found = _find(section[names[0]], path, names[1:]) if names[0] in section else None
    for base in reversed(_bases(section)):
        found = found or defined_in(path.parent / _local(base), ".".join(names))
    return found


def _merge(base: dict, own: dict) -> dict:
    """`own` over `base`; a section of another `name` is another kind of thing and replaces it."""
    merged = dict(base)
    for key, value in own.items():
        under = merged.get(key)
        if isinstance(value, dict) and isinstance(under, dict) and _same_kind(value, under):
            merged[key] = _merge(under, value)
        else:
            merged[key] = value
    return merged


def _same_kind(own: dict, base: dict) -> bool:
    return "name" not in own or own["name"] == base.get("name")


def _override(tree: Any, text: str) -> Any:
    key, equals, _ = text.partition("=")
    if key.startswith("--"):
        plain = text.removeprefix("--") if equals else f"{key.removeprefix('--')}=VALUE"
        raise ConfigError(f"{text}: keys of the YAML are written {plain}")
    if not equals or not key.strip():
        raise ConfigError(f"'{text}': an override is written key.sub_key=value")
    try:
        own = OmegaConf.from_dotlist([text])
        below, above = (OmegaConf.to_container(part) for part in (tree, own))
        assert isinstance(below, dict) and isinstance(above, dict)
        return OmegaConf.create(_merge(below, above))
    except yaml.YAMLError:
        raise ConfigError(f"'{text}': the value is not valid YAML; quote it") from None


def _neighbour(path: Path, chain: tuple[Path, ...]) -> str:
    if not path.parent.is_dir():
        return f" (nor a folder {path.parent})"
    entries = [entry for entry in path.parent.iterdir() if entry.suffix in {".yaml", ".yml"}]
    names = [entry.name for entry in entries if entry.resolve() not in chain]
    close = difflib.get_close_matches(path.name, names, n=1)
    return f"; did you mean '{path.parent / close[0]}'?" if close else ""
