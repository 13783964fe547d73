"""Random edits of bytes and of plain values, each told in a few words."""

import json
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import yaml

HUGE = [10**30, 2**63, 2**31, -(2**63), 1e308, -1e308, float("inf"), float("-inf"), float("nan")]
WEIRD = [
    *(None, True, False, 0, -1, 1, -0.5, 0.5, "", " ", "\0", "null", "nan", "1e999", "-1tok"),
    *("~", "~nobody/x", "$NOT_SET", "${NOT_SET}", "${run_folder}", "../../x", "/", "/dev/null"),
    *("s3://", "s3://bucket", "hf:///", "ftp://x/y", "\u96ea\U0001f600", "\u202e", "\ud800"),
    "a" * 5000,
    *([], {}, [[]], {"": None}, [1, "a", None], {"name": "x"}, {1: 2}, ["a"] * 50),
]  # fmt: skip


# ---- bytes


def edit_bytes(dice: random.Random, content: bytes) -> tuple[bytes, str]:
    """Flip, cut, zero, insert, repeat or swap some bytes."""
    if not content:
        return bytes(dice.randbytes(dice.randint(1, 40))), "filled"
    at = dice.randrange(len(content))
    some = dice.choice([1, 2, 8, 64, 512])
    before, after = content[:at], content[at + some :]
    kind = dice.choice(["flip", "flip", "flip", "cut", "cut", "zero", "insert", "drop", "twice"])
    if kind == "flip":
        bit = 1 << dice.randrange(8)
        return before + bytes([content[at] ^ bit]) + content[at + 1 :], f"bit {bit} at {at} flipped"
    if kind == "cut":
        return before, f"cut to {at} of {len(content)} bytes"
    if kind == "zero":
        return before + bytes(len(content[at : at + some])) + after, f"{some} bytes at {at} zeroed"
    if kind == "insert":
        return before + dice.randbytes(some) + content[at:], f"{some} bytes put in at {at}"
    if kind == "drop":
        return before + after, f"{some} bytes at {at} dropped"
    return before + content[at : at + some] * 2 + after, f"{some} bytes at {at} repeated"


def edit_file_bytes(dice: random.Random, path: Path) -> str:
    """Edit the bytes of a file, until they differ."""
    content = path.read_bytes()
    for _ in range(dice.choice([1, 1, 1, 2, 5])):
        edited, what = edit_bytes(dice, content)
        for _ in range(9):
            if edited != content:
                break
            edited, what = edit_bytes(dice, content)
        content = edited
    path.write_bytes(content)
    return f"{path.name}: {what}"


# ---- plain values


def places(value: Any, above: tuple = ()) -> Iterator[tuple]:
    """The path of every value inside a value."""
    inner = (
        value.items()
        if isinstance(value, dict)
        else enumerate(value)
        if isinstance(value, list)
        else ()
    )
    for key, own in inner:
        yield (*above, key)
        yield from places(own, (*above, key))


def edit_plain(dice: random.Random, value: Any) -> tuple[Any, str, tuple]:
    """Drop, rename, retype, repeat or replace one value of a tree.

    Returns:
        The tree, changed in place; what was done; the path of a key that was made up, or ().
    """
    found = list(places(value))
    if not found:
        return dice.choice(WEIRD), "all replaced", ()
    path = dice.choice(found)
    holder = value
    for key in path[:-1]:
        holder = holder[key]
    key, name = path[-1], ".".join(map(str, path))
    kind = dice.choice(["drop", "rename", "swap", "huge", "negative", "weird", "weird", "text"])
    if kind == "drop":
        del holder[key]
        return value, f"{name} dropped", ()
    if kind == "rename" and isinstance(holder, dict):
        new = f"{key}{dice.choice(['s', '_', ' ', chr(0x301), 'x'])}"
        holder[new] = holder.pop(key)
        return value, f"{name} renamed to {new!r}", (*path[:-1], new)
    if kind == "swap":
        other = dice.choice(found)
        there = value
        for step in other:
            there = there[step]
        holder[key] = json.loads(json.dumps(there, default=str))
        return value, f"{name} set to what {'.'.join(map(str, other))} has", ()
    holder[key] = _other(dice, kind, holder[key])
    return value, f"{name} set to {str(holder[key])[:60]!r}", ()


def _other(dice: random.Random, kind: str, old: Any) -> Any:
    if kind == "huge":
        return dice.choice(HUGE)
    if kind == "negative" and isinstance(old, int | float):
        return -old
    if kind == "text":
        return str(old) + dice.choice(["", "x", " ", "\n", "\u00e9"])
    return dice.choice(WEIRD)


def edit_tree_file(
    dice: random.Random, path: Path, *, read: Callable, write: Callable
) -> tuple[str, tuple]:
    """Edit the values of a JSON or YAML file; or now and then its bytes."""
    if dice.random() < 0.15:
        return edit_file_bytes(dice, path), ()
    tree, what, made_up = edit_plain(dice, read(path.read_text(encoding="utf-8")))
    path.write_text(write(tree), encoding="utf-8", errors="replace")
    return f"{path.name}: {what}", made_up


def edit_yaml(dice: random.Random, path: Path) -> tuple[str, tuple]:
    """Edit a YAML file; returns what was done, and the path of a key that was made up, or ()."""
    return edit_tree_file(
        dice, path, read=yaml.safe_load, write=lambda v: yaml.safe_dump(v, allow_unicode=True)
    )


def edit_json(dice: random.Random, path: Path) -> str:
    """Edit a JSON file."""
    return edit_tree_file(dice, path, read=json.loads, write=json.dumps)[0]
