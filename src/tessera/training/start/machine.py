"""What a run runs on: devices and versions, and how fast they were measured to be.

`machine.json` in the run folder lists the machines of the run's starts, one entry as long as
nothing of it changes. The rate that FLOP utilisation is measured against is kept with it, so that
a run which goes on, and the phase after it, are held to the same.
"""

import contextlib
import importlib.metadata
import json
import math
import os
import platform
from collections.abc import Callable, Sequence
from pathlib import Path

import torch

from tessera.files import JsonObject, as_json, write_whole
from tessera.training import distributed

MACHINE_FILE = "machine.json"
RATE = "matmul_flops_per_second"
"""Of one device, in the type that matrices are multiplied in."""
_PACKAGES = ("torch", "mosaicml", "mosaicml-streaming", "transformers", "torch-optimi", "numpy")
_SECONDS = 0.5


class Machine:
    """This machine, as the run folder will remember it. Rank 0 alone asks."""

    def __init__(
        self,
        folder: Path,
        device: str,
        dtype: torch.dtype,
        *,
        step: int,
        before: Path | None = None,
    ) -> None:
        """Look at the machine, and at what is known of one like it.

        Args:
            folder: the run folder.
            device: "cpu" or "cuda".
            dtype: in which matrices are multiplied.
            step: after which the run goes on.
            before: what this phase starts from: its run folder, or a checkpoint in there.
        """
        self._path = folder / MACHINE_FILE
        self._starts = _read(self._path)
        self._entry = {"after_step": step, **_description(device, dtype)}
        self._kept = self._fastest(self._starts)
        places = () if before is None else (before, before.parent, before.parent.parent)
        self._earlier = max(
            (self._fastest(_read(place / MACHINE_FILE)) for place in places), default=0.0
        )

    def peak(self, measure: Callable[[float], float]) -> float:
        """Operations per second that one device can do: what is kept, else `measure(seconds)`."""
        best = self._kept or max(self._earlier, measure(_SECONDS))
        self.note(best)
        return best

    def note(self, peak: float) -> None:
        """Keep the machine, and the highest rate that was seen of it."""
        entry = {**self._entry, RATE: peak}
        last = self._starts[-1] if self._starts else {}
        same = last | {"after_step": None, RATE: None} == entry | {"after_step": None, RATE: None}
        if same and last.get(RATE) == peak:
            return
        if same:
            entry["after_step"] = last.get("after_step", 0)
            self._starts[-1] = entry
        else:
            self._starts.append(entry)
        with contextlib.suppress(OSError):  # a full disk is said by what cannot do without
            write_whole(self._path, as_json({"starts": self._starts}).encode())

    def _fastest(self, entries: Sequence[JsonObject]) -> float:
        """The highest rate of a machine like this one; 0 if none is known."""
        names = ("device", "threads", "dtype", "ranks_of_node")
        alike = (e for e in entries if all(e.get(name) == self._entry[name] for name in names))
        return max(map(_rate, alike), default=0.0)


def _description(device: str, dtype: torch.dtype) -> JsonObject:
    cuda = device == "cuda"
    ranks = distributed.local_world_size()
    return {
        "device": torch.cuda.get_device_name() if cuda else _processor(),
        "kind": "GPU" if cuda else "CPU",
        "ranks": distributed.world_size(),
        "ranks_of_node": ranks,
        "threads": None if cuda else torch.get_num_threads(),
        "dtype": str(dtype).removeprefix("torch."),
        "memory_gib": round(torch.cuda.get_device_properties(0).total_memory / 2**30)
        if cuda
        else round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30),
        "cuda": torch.version.cuda if cuda else None,
        "versions": {
            "tessera": _version("tessera"),
            "python": platform.python_version(),
            **{name: _version(name) for name in _PACKAGES},
        },
    }


def _processor() -> str:
    with contextlib.suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _read(path: Path) -> list[JsonObject]:
    """The entries of a file; none of one that is not there, or damaged: it is written anew."""
    try:
        entries = json.loads(path.read_bytes())["starts"]
    except (OSError, ValueError, RecursionError, LookupError, TypeError):
        return []
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        return []
    return entries


def _rate(entry: JsonObject) -> float:
    rate = entry.get(RATE)
    if isinstance(rate, bool) or not isinstance(rate, int | float) or not math.isfinite(rate):
        return 0.0
    return float(rate)
