"""How every command is told a configuration: a YAML, and dotted keys that override it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessera import fetch
from tessera.config import ConfigError, load
from tessera.fetch import Wanted
from tessera.paths import LOCAL

if TYPE_CHECKING:
    from tessera.training.config import RunConfig


def add_config(parser: argparse.ArgumentParser) -> None:
    """The positional `CONFIG [key=value ...]`."""
    parser.add_argument("config", help="the YAML of a phase")
    parser.add_argument("overrides", nargs="*", metavar="key=value")


def load_config(options: argparse.Namespace) -> "RunConfig":
    """The configuration that `add_config` asked for.

    Raises:
        ConfigError: naming every key that is wrong.
    """
    return load_run_config(options.config, options.overrides)


def load_run_config(path: str, overrides: Sequence[str] = ()) -> "RunConfig":
    """A phase's configuration; imports no torch.

    Raises:
        ConfigError: naming every key that is wrong.
    """
    from tessera.training.config import RunConfig

    return load(RunConfig, path, overrides)


def at_least(least: int, option: str, value: int) -> int:
    """The value of an option, if it is large enough.

    Raises:
        ConfigError: it is not.
    """
    if value < least:
        raise ConfigError(f"{option} must be at least {least}; got {value}")
    return value


def existing(path: str, wanted: Wanted = "newest") -> Path:
    """A path that a command is to read, before anything heavy is imported to read it.

    Args:
        path: of this machine, or a remote one, which is fetched into the cache.
        wanted: what is needed of it, if it is a remote run folder.

    Raises:
        ValueError: there is nothing, or it cannot be fetched.
    """
    found = fetch.local(path, wanted)
    if not found.exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    return found


def written(option: str, path: str) -> Path:
    """A path that a command is to write: of this machine, expanded.

    Raises:
        ConfigError: it is somewhere else.
    """
    try:
        return Path(LOCAL.parse(path))
    except ValueError as error:
        raise ConfigError(f"{option}: {error}") from None
