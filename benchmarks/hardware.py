"""The machine and the versions that a benchmark's numbers belong to."""

import importlib.metadata
import os
import platform
from pathlib import Path

PACKAGES = ("torch", "transformers", "numpy", "mosaicml", "torch-optimi")


def named() -> dict[str, str]:
    """Processor, cores, Python and the packages that matter, for a result's JSON."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "processor": models[0] if models else platform.processor() or platform.machine(),
        "cores": str(os.cpu_count()),
        "python": platform.python_version(),
        **{name: _version(name) for name in PACKAGES},
    }


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"
