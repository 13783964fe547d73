"""What ranks tell each other, by real processes over gloo."""

import json
import subprocess
import sys
from datetime import timedelta

import pytest
import tiny_run
import torch
import torch.distributed as dist

from tessera.training import distributed

RANK = """
import json, os, sys
import torch.distributed as dist
from tessera.training import distributed
rank = int(os.environ["RANK"])
dist.init_process_group("gloo", init_method=f"file://{sys.argv[1]}", rank=rank, world_size=3)
own = {"rank": rank, "text": "x" * (int(sys.argv[2]) if rank == 1 else 3)}
found = distributed.gather_in_step(own, small=64)
assert found == distributed.gather(own)
print(json.dumps([[one["rank"], len(one["text"])] for one in found]))
dist.destroy_process_group()  # gloo's threads, still there at exit, now and then abort a process
"""


@pytest.mark.parametrize("length", [3, 100_000], ids=["small", "larger than there is room for"])
def test_every_rank_knows_every_value_whatever_its_size(length, tmp_path):
    ranks = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(tmp_path / "meet"), str(length)],
            env={**tiny_run.environment(), "RANK": str(rank), "WORLD_SIZE": "3"},
            stdout=subprocess.PIPE,
            text=True,
        )
        for rank in range(3)
    ]
    for process in ranks:
        printed, _ = process.communicate(timeout=120)
        assert process.returncode == 0
        assert json.loads(printed) == [[0, 3], [1, length], [2, 3]]


def test_one_rank_alone_tells_itself(monkeypatch):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    value = object()
    assert distributed.gather_in_step(value) == [value]


def test_exchanges_on_the_host_wait_as_long_as_a_step_does(monkeypatch):
    """Beside NCCL they have a gloo group of their own, which would wait 30 minutes by itself."""
    for name in ("_host_group", "_patience"):
        monkeypatch.setattr(distributed, name, None)
    distributed.give_up_after(7.0)
    monkeypatch.setattr(dist, "get_backend", lambda: "nccl")
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    try:
        group = distributed._host()._get_backend(torch.device("cpu"))
        assert group.options._timeout == timedelta(seconds=7)
    finally:
        dist.destroy_process_group()
