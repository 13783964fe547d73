"""`tessera doctor`: what this machine has, and what stands in the way of more."""

import argparse
import importlib.metadata
import os
import platform
from collections.abc import Iterator

HELP = "This machine: versions, devices, attention backends and why not."

PACKAGES = (
    "torch",
    "mosaicml",
    "mosaicml-streaming",
    "transformers",
    "torch-optimi",
    "numpy",
    "triton",
    "flash-attn",
    "flash-attn-4",
)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command has no options."""


def run(options: argparse.Namespace) -> None:
    """Print the findings."""
    print(report())


def report() -> str:
    """The findings as text, one a line."""
    return "\n".join([*_versions(), "", *_devices(), "", *_attention()])


def _versions() -> Iterator[str]:
    yield f"python {platform.python_version()} on {platform.platform()}"
    for package in PACKAGES:
        try:
            yield f"{package} {importlib.metadata.version(package)}"
        except importlib.metadata.PackageNotFoundError:
            yield f"{package}: not installed"


def _devices() -> Iterator[str]:
    import torch

    yield f"cpu: {os.cpu_count()} cores, torch uses {torch.get_num_threads()} threads"
    if not torch.cuda.is_available():
        yield "gpu: none that torch can use; training runs on the CPU in float32"
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        yield (
            f"gpu {index}: {properties.name}, {properties.total_memory / 2**30:.0f} GiB, "
            f"compute capability {properties.major}.{properties.minor}"
        )


def _attention() -> Iterator[str]:
    from tessera.model.attention.backends import survey

    yield "attention backends (fastest first; `compute.attention` forces one)"
    for name, reason in survey():
        yield f"  {name}: {reason or 'ready'}"
