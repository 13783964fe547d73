"""What can be known to be wrong before a process group starts."""

from tessera.training.preflight.phase import Findings, examine, missing_files, origin_of

__all__ = ["Findings", "examine", "missing_files", "origin_of"]
