"""The processes of a run: who this one is, and small exchanges between them on the host.

What ranks tell each other here are Python objects of a few hundred bytes, through gloo, so that a
GPU is not waited for. Without `WORLD_SIZE` in the environment there is one process, and every
exchange is with itself. Imports torch only to exchange something.
"""

import os
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")

_host_group: "ProcessGroup | None" = None
_patience: timedelta | None = None


def give_up_after(seconds: float) -> None:
    """Wait so long for other ranks in an exchange; otherwise gloo's own 30 minutes."""
    global _patience
    _patience = timedelta(seconds=seconds)


def world_size() -> int:
    """Processes of the run, over all nodes."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """This process among them, from 0."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """This process among those of its node, from 0."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def local_world_size() -> int:
    """Processes of this node."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def launched() -> bool:
    """Whether a launcher started this process, and watches it."""
    return "LOCAL_WORLD_SIZE" in os.environ


def began() -> float:
    """When this process, or the launcher it is of, was started: seconds since 1970 (proc(5))."""
    process = os.getppid() if launched() else os.getpid()
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    seconds_up = float(Path("/proc/uptime").read_text().split()[0])
    return time.time() - seconds_up + int(fields[19]) / os.sysconf("SC_CLK_TCK")


def gather(value: Value) -> list[Value]:
    """Every rank's value, by rank, on every rank."""
    if world_size() == 1:
        return [value]
    import torch.distributed as dist

    values: list[Any] = [None] * world_size()
    dist.all_gather_object(values, value, group=_host())
    return values


def from_first(value: Value) -> Value:
    """Rank 0's value on every rank."""
    if world_size() == 1:
        return value
    import torch.distributed as dist

    values = [value]
    dist.broadcast_object_list(values, src=0, group=_host())
    return values[0]


def barrier() -> None:
    """Wait for every rank."""
    if world_size() > 1:
        import torch.distributed as dist

        dist.barrier(group=_host())


def _host() -> "ProcessGroup | None":
    """The group for objects: gloo's, made beside NCCL's where that is the default."""
    import torch.distributed as dist

    global _host_group
    if dist.get_backend() == "gloo":
        return None
    if _host_group is None:
        made = dist.new_group(backend="gloo", timeout=_patience)
        assert not isinstance(made, int), "every rank is in it"
        _host_group = made
    return _host_group
