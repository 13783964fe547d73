"""What a path means, in a YAML or on a command line. Imports no torch.

`~` and `$VAR` (or `${VAR}`) are expanded, `scheme://` names a remote place, and everything else is
a path of this machine. Each key or option is one of the kinds at the end of this file, which say
where it may be: what is anywhere else is refused, so that no command makes a folder named `~`,
`s3:` or `$SCRATCH`.

What is expanded is kept: a run's config.yaml names the places that were really used, which still
says something on a machine whose variables are others. Nothing about a resume depends on the text
of a path: a place that moved is reported as a change, and the run goes on.
"""

import os
import re
import tempfile
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from stat import S_ISDIR
from typing import Annotated

CACHE_VARIABLE = "TESSERA_CACHE"
"""Names the folder for what can be fetched again; see `cache_folder`."""

OBJECT_STORES = ("s3",)
"""Schemes of what can be written to as safely as to a disk."""
READABLE = ("s3", "gs", "hf", "az", "abfs")
"""Schemes of what a checkpoint or a folder of files can be read from."""
STREAMED = ("s3", "gs", "hf", "oci", "azure", "azure-dl", "dbfs", "sftp", "alipan")
"""Schemes that Streaming fetches shards from."""

_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*):(/{1,2})(.*)", re.DOTALL)
_VARIABLE = re.compile(r"\$(?:(\w+)|\{(\w+)\})")
_SECRET = re.compile(r"[^/@\s]+:[^/@\s]+@|[?&](?:X-Amz-|sig=|AWSAccessKeyId|token=)", re.IGNORECASE)


def scheme_of(text: str) -> str:
    """The scheme of a remote place, in small letters; '' for a path of this machine."""
    match = _SCHEME.match(str(text))
    return match[1].lower() if match and match[1].lower() != "file" else ""


def is_remote(text: str | Path) -> bool:
    """Whether a path names something that is not on this machine."""
    return scheme_of(str(text)) != ""


def join(place: str, *names: str) -> str:
    """A path under a place, remote or not; '' is the working folder."""
    return "/".join([place.rstrip("/"), *names] if place else names)


def absolute(place: str) -> str:
    """The place as a process or machine understands it whose working folder is another."""
    return place if is_remote(place) else os.path.abspath(place)


def expand(text: str) -> str:
    """A path with `~`, `~user`, `$VAR` and `${VAR}` replaced.

    Raises:
        ValueError: a variable is not set or is empty, or there is no such user.
    """

    def value(match: re.Match[str]) -> str:
        name = match[1] or match[2]
        found = os.environ.get(name, "")
        if not found:
            state = "empty" if name in os.environ else "not set"
            raise ValueError(
                f"'{text}': the environment variable {name} is {state}; set it, or write the path"
            )
        return found

    expanded = _VARIABLE.sub(value, text)
    if "${" in expanded:
        raise ValueError(f"'{text}': a variable is written $NAME or ${{NAME}}")
    if expanded.startswith("~"):
        home = os.path.expanduser(expanded)
        if home.startswith("~"):
            user = expanded.partition("/")[0]
            raise ValueError(f"'{text}': there is no home folder of '{user}'; write the path")
        return home
    return expanded


@dataclass(frozen=True)
class Place:
    """What one kind of key may name; `parse` is asked by whoever reads a YAML or an option."""

    schemes: tuple[str, ...] | None = ()
    """None: whatever a library is found for."""
    local: bool = True
    instead: str = ""
    """What to do about a remote place where there can be none."""

    def parse(self, text: object) -> str:
        """The path with everything expanded.

        Raises:
            ValueError: it cannot be where the key has to be; says where that is.
        """
        if not isinstance(text, str) or not text.strip() or "\0" in text:
            raise ValueError(f"expected a path, got {text!r}")
        expanded = expand(text)
        match = _SCHEME.match(expanded)
        scheme = expanded.partition(":")[0].lower()
        if match is None and ":" in expanded and scheme in {*READABLE, *STREAMED, "file"}:
            raise ValueError(f"'{text}': expected {scheme}://, or ./{text} for such a file")
        if match is None:
            if not self.local:
                raise ValueError(f"'{text}': expected {self._kinds()}")
            return expanded
        scheme, slashes, rest = match[1].lower(), match[2], match[3]
        if _SECRET.search(expanded):
            raise ValueError(
                f"credentials do not belong into a {scheme}:// place, which is written into "
                "config.yaml and logs; give them in the environment or in ~/.aws/credentials"
            )
        if scheme == "file" and self.local:
            if slashes == "//" and not rest.startswith("/"):
                raise ValueError(
                    f"'{text}': expected file:///folder, from the root of this machine"
                )
            return "/" + rest.lstrip("/")
        if self.schemes is not None and scheme not in self.schemes:
            raise ValueError(f"'{text}': {self._refusal(scheme)}")
        if slashes != "//" or not rest.strip("/"):
            raise ValueError(f"'{text}': expected {scheme}://bucket/folder")
        if {"", ".", ".."} & set(rest.rstrip("/").split("/")):
            raise ValueError(f"'{text}': a remote place has no empty, '.' or '..' parts")
        return f"{scheme}://{rest.rstrip('/')}"

    def _refusal(self, scheme: str) -> str:
        known = {*READABLE, *STREAMED}
        if scheme not in known:
            return f"unknown scheme '{scheme}'; expected {self._kinds()}"
        return f"{scheme}:// cannot serve here{self.instead}; expected {self._kinds()}"

    def _kinds(self) -> str:
        remote = ", ".join(f"{scheme}://" for scheme in self.schemes or ())
        return " or ".join(filter(None, ["a path of this machine" * self.local, remote]))


def option(place: Place) -> Callable[[str], str]:
    """How argparse is told that an option takes a path (`type=option(LOCAL)`)."""

    def parse(text: str) -> str:
        try:
            return place.parse(text)
        except ValueError as error:
            raise ArgumentTypeError(str(error)) from None

    return parse


def named_path(text: str) -> str:
    """For argparse: `[NAME=]PATH`, the path of this machine and expanded."""
    name, equals, path = text.rpartition("=")
    if "/" in name or name.startswith(("~", "$")):  # the sign is part of a folder's name
        name, equals, path = "", "", text
    return f"{name}{equals}{option(LOCAL)(path)}"


def cache_folder() -> Path:
    """Where what can be fetched again is kept; it may vanish at any moment.

    `$TESSERA_CACHE` if that is set, else `tessera-cache-UID` in the system's temporary folder: a
    local disk, which is what it should be, and the user's own.

    Raises:
        ValueError: the variable names no folder of this machine, or somebody else could write to
            the one in the temporary folder.
    """
    named = os.environ.get(CACHE_VARIABLE)
    if not named:
        folder = Path(tempfile.gettempdir()) / f"tessera-cache-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        found = folder.lstat()
        if found.st_uid != os.getuid() or not S_ISDIR(found.st_mode) or found.st_mode & 0o022:
            raise ValueError(
                f"{folder}: others may write there, so that what it holds cannot be trusted; "
                f"remove it, or set {CACHE_VARIABLE} to a folder of your own"
            )
        return folder
    try:
        return Path(LOCAL.parse(named)).absolute()
    except ValueError as error:
        raise ValueError(f"{CACHE_VARIABLE}: {error}") from None


def cached(kind: str, place: str) -> Path:
    """The folder that a remote place has in the cache: its name for people, a hash to be unique."""
    name = re.sub(r"[^\w.-]+", "-", place.partition("://")[2]).strip("-.")[-60:]
    return cache_folder() / kind / f"{name}-{sha256(place.encode()).hexdigest()[:12]}"


def safe_names(names: Sequence[str], where: str) -> list[str]:
    """Names of files that somebody else chose, none of which leads out of a folder.

    Raises:
        ValueError: one does.
    """
    for name in names:
        parts = name.split("/")
        if not name or {"", ".", ".."} & set(parts) or "\\" in name or "\0" in name:
            raise ValueError(f"{where}: holds an object of the name {name!r}, which is no file's")
    return list(names)


# ---- the kinds of keys

LOCAL = Place()
RUN = Place(OBJECT_STORES, instead=" (nothing there can refuse a second writer)")
STORE = Place(OBJECT_STORES, local=False, instead=" (nothing there can refuse a second writer)")
SOURCE = Place(READABLE)
SHARDS = Place(STREAMED)
ANYWHERE = Place(schemes=None)
SHARD_CACHE = Place(instead=": this is the folder that caches it; name it as `remote`")

LocalPath = Annotated[str, LOCAL]
"""A file or folder of this machine."""
RunPath = Annotated[str, RUN]
"""A run folder: of this machine, or in an object store."""
StorePath = Annotated[str, STORE]
"""A folder in an object store."""
SourcePath = Annotated[str, SOURCE]
"""A checkpoint, model, tokenizer or run folder that is only read."""
ShardsPath = Annotated[str, SHARDS]
"""A folder of shards, which Streaming fetches."""
ShardCachePath = Annotated[str, SHARD_CACHE]
"""The folder of this machine that holds, or will hold, shards."""
