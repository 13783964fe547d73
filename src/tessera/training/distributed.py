"""The processes of a run: who this one is, and small exchanges between them.

What ranks tell each other here are Python objects of a few hundred bytes, on the host through gloo,
so that a GPU is not waited for; what a step waits for goes over the GPUs' own links. Without
`WORLD_SIZE` in the environment there is one process, and every exchange is with itself. Imports
torch only to exchange something.
"""

import os
import pickle
import time
from datetime import timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from torch.distributed import ProcessGroup

Value = TypeVar("Value")

_SMALL = 2048
"""Bytes that nearly every object fits into whose length nobody knows beforehand."""

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


def gather_in_step(value: Value, small: int = _SMALL) -> list[Value]:
    """Every rank's value, by rank, on every rank: what `gather` does, while the GPU waits.

    One exchange over the links that gradients take, instead of two over gloo, whose ring takes a
    hop between hosts for each rank. A second one only where an object is larger than `small`.
    """
    if world_size() == 1:
        return [value]
    import torch
    import torch.distributed as dist

    own = pickle.dumps(value)
    device = torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

    def exchange(capacity: int) -> torch.Tensor:
        # (ranks, 8 + capacity): how long an object is, and as much of it as there is room for.
        sent = torch.zeros(8 + capacity, dtype=torch.uint8)
        sent[:8] = torch.tensor([len(own)]).view(torch.uint8)
        part = own[:capacity]
        sent[8 : 8 + len(part)] = torch.frombuffer(bytearray(part), dtype=torch.uint8)
        got = torch.empty(world_size() * sent.numel(), dtype=torch.uint8, device=device)
        dist.all_gather_into_tensor(got, sent.to(device))
        return got.cpu().view(world_size(), -1)

    got = exchange(small)
    lengths = got[:, :8].contiguous().view(torch.int64).flatten().tolist()
    if max(lengths) > small:
        got = exchange(max(lengths))
    return [
        pickle.loads(line[8 : 8 + length].numpy().tobytes())
        for line, length in zip(got, lengths, strict=True)
    ]


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
