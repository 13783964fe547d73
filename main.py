"""Pretrain a ModernBERT-style encoder: one phase, or what is left of it.

Usage:
    composer main.py yamls/phase1.yaml
    composer main.py yamls/phase1.yaml optimizer.lr=3e-4 run_folder=runs/gentle

Exit status: 0 done, 2 a mistake in what was asked for, 1 a defect, 75 stopped by a signal with
everything saved (start it again).
"""

import sys

from tessera.training.__main__ import main
from tessera.training.shutdown import leave_after

if __name__ == "__main__":
    if len(sys.argv) < 2 or sys.argv[1] in {"-h", "--help"}:
        asked = len(sys.argv) > 1
        print(__doc__, file=sys.stdout if asked else sys.stderr)
        sys.exit(0 if asked else 2)
    leave_after(lambda: main(*sys.argv[1:]))
