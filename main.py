"""Pretrain a ModernBERT-style encoder: one phase, or what is left of it.

Usage:
    composer main.py yamls/phase1.yaml
    composer main.py yamls/phase1.yaml optimizer.lr=3e-4 run_folder=runs/gentle

Exit status: 0 done, 2 a mistake in what was asked for, 1 a defect, 75 stopped by a signal with
everything saved (start it again).
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
    if len(sys.argv) < 2 or sys.argv[1] in {"-h", "--help"}:
        asked = len(sys.argv) > 1
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    leave_after(lambda: main(*sys.argv[1:]))
