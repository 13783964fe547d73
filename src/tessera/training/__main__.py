"""One phase, or what is left of it, as one process: `python -m tessera.training CONFIG ...`.

`main.py` is this by another name; launchers that find the package and not the repository use it.
"""

import sys

from tessera.config import load, to_yaml
from tessera.training import distributed
from tessera.training.config import RunConfig
from tessera.training.console import say_complete
from tessera.training.remote.remote_run import is_complete
from tessera.training.shutdown import leave_after


def main(yaml_path: str, *overrides: str) -> int:
    """Load, build, fit."""
    config = load(RunConfig, yaml_path, overrides)
    config.check_world(distributed.world_size())
    if is_complete(config, to_yaml(config)):
        say_complete(config)
        return 0

    from tessera.training.run import build_run  # torch, only once the configuration is right

    return build_run(config).fit()


if __name__ == "__main__":
    leave_after(lambda: main(*sys.argv[1:]))
