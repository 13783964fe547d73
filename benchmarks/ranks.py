"""Ranks on this machine, over gloo: what a step takes with and without the exchange of gradients.

Each rank is a process of one thread, with the model, the optimizer and DistributedDataParallel of a
training. Steps with and without all-reduce (`no_sync`) take turns, each between two barriers, so
that a step is as long as that of the slowest rank.
"""

import json
import os
import pickle
import socket
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import nullcontext
from typing import Any

SIZES = (2**16, 2**20, 2**22, 25 * 2**20)
"""Bytes of the all-reduces that are timed by themselves."""
CLOCKS = ("wall", "processor")


def measure(ranks: int, rounds: dict[int, int]) -> dict[str, Any]:
    """Start so many ranks, and return what the first of them reports.

    Args:
        ranks: processes.
        rounds: how many steps of each kind, by the token slots of a rank's step.

    Raises:
        RuntimeError: a rank failed; what it said is on the terminal.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    common = {
        "WORLD_SIZE": str(ranks),
        "LOCAL_WORLD_SIZE": str(ranks),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        "GLOO_SOCKET_IFNAME": "lo",
    }
    asked = json.dumps(rounds)
    started = [
        subprocess.Popen(
            [sys.executable, __file__, asked],
            env={**os.environ, **common, "RANK": str(rank), "LOCAL_RANK": str(rank)},
            stdout=subprocess.PIPE if rank == 0 else subprocess.DEVNULL,
            text=True,
        )
        for rank in range(ranks)
    ]
    try:
        said, _ = started[0].communicate()
        if any(process.wait(timeout=60) for process in started):
            raise RuntimeError(f"a rank of {ranks} failed")
    finally:
        for process in started:
            process.kill()
    return json.loads(said.splitlines()[-1])


def main() -> None:
    """One rank: measure with the others, and print it on the first."""
    import torch
    import torch.distributed as dist

    asked = json.loads(sys.argv[1])
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    try:
        report = {
            "all_reduce": {str(size): _all_reduce(size) for size in SIZES},
            "exchange": _exchange(),
            "unpickling": _unpickling(),
            "steps": {slots: _steps(int(slots), rounds) for slots, rounds in asked.items()},
        }
        if dist.get_rank() == 0:
            print(json.dumps(report), flush=True)
        dist.barrier()
    finally:
        dist.destroy_process_group()


def _timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds from a barrier to the next, of the slowest rank; of processor time, of this one."""
    import torch.distributed as dist

    dist.barrier()
    begin, processor = time.perf_counter(), time.process_time()
    work()
    used = time.process_time() - processor
    dist.barrier()
    return time.perf_counter() - begin, used


def _all_reduce(size: int) -> dict[str, float]:
    import torch
    import torch.distributed as dist

    numbers, other = torch.ones(size // 4), torch.empty(2**25)
    times: dict[str, list[tuple[float, float]]] = {"whole": [], "empty": []}
    for _ in range(24):
        for kind, work in (("whole", lambda: dist.all_reduce(numbers)), ("empty", lambda: None)):
            other.fill_(1.0)  # as in a step: gradients have left the caches
            times[kind].append(_timed(work))
    whole, empty = (part[4:] for part in times.values())
    return {
        clock: max(0.0, _median(whole, n) - _median(empty, n)) for n, clock in enumerate(CLOCKS)
    }


def _median(times: list[tuple[float, float]], clock: int) -> float:
    return statistics.median(each[clock] for each in times)


def _share() -> Any:
    """What a rank tells the others of a step of 9 rows."""
    import numpy as np

    from tessera.training.callbacks.progress import Share

    sources = {f"source{i}": 10_000 + i for i in range(8)}
    return Share(
        loss_sum=1e4,
        grad_norm=1.0,
        masked_tokens=22_000,
        tokens=73_000,
        slots=73_728,
        documents=150,
        rows=np.arange(9),
        digest_sum=np.arange(4),
        source_tokens=sources,
        source_epochs=sources,
        finished_documents=sources,
        source_documents=sources,
        flops=1e12,
        wait_seconds=0.0,
        stop_signal=None,
    )


def _exchange() -> float:
    """Seconds in which every rank learns what all others say of a step."""
    from tessera.training import distributed

    share = _share()
    times = []
    for _ in range(60):
        begin = time.perf_counter()
        distributed.gather_in_step(share)
        times.append(time.perf_counter() - begin)
    return statistics.median(times[10:])


def _unpickling() -> float:
    """Seconds for one rank's part of a step, of 512: to unpickle it, and to add it up."""
    from tessera.training.callbacks.progress import whole

    pickled = [pickle.dumps(_share())] * 512
    times = []
    for _ in range(5):
        begin = time.perf_counter()
        whole([pickle.loads(part) for part in pickled])  # noqa: S301  our own
        times.append((time.perf_counter() - begin) / 512)
    return min(times)


def _steps(slots: int, rounds: int) -> dict[str, Any]:
    import torch
    import torch.distributed as dist
    from models import MODELS
    from torch.nn.parallel import DistributedDataParallel
    from workloads import draw_workload, tessera

    config = MODELS["tiny"]
    variant = tessera(config, torch.device("cpu"), wrap=DistributedDataParallel)
    model = variant.model
    assert isinstance(model, DistributedDataParallel)
    kinds = {"with": nullcontext, "without": model.no_sync}
    times: dict[str, list[tuple[float, float]]] = {kind: [] for kind in kinds}
    for number in range(rounds + 2):
        work = draw_workload(
            vocab_size=config.vocab_size,
            slots=slots,
            max_length=512,
            seed=number * dist.get_world_size() + dist.get_rank(),
        )
        for kind, context in kinds.items():
            with context():
                seconds = _timed(lambda: variant.step(work))  # noqa: B023
            if number >= 2:  # the first steps allocate, and DDP makes its buckets anew
                times[kind].append(seconds)
    gradients = sum(4 * p.numel() for p in model.parameters() if p.requires_grad)
    clocks = {
        clock: {kind: [seconds[number] for seconds in times[kind]] for kind in kinds}
        for number, clock in enumerate(CLOCKS)
    }
    return {"gradient_bytes": gradients, **clocks}


if __name__ == "__main__":
    main()
