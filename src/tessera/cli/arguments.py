"""How every command is told a configuration: a YAML, and dotted keys that override it."""

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from tessera.config import ConfigError, load

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


def existing(path: str) -> Path:
    """A path that a command is to read, before anything heavy is imported to read it.

    Raises:
        ConfigError: there is nothing.
    """
    if not Path(path).exists():
        raise ConfigError(f"{path}: there is no such file or folder")
    return Path(path)
