"""One rank that reads batches and saves its place after each: `composer -n N data_rank.py ...`."""

import json
import os
import sys
from itertools import islice
from pathlib import Path

import torch
import torch.distributed as dist

from tessera.data.batch_schedule import data_rank
from tessera.data.config import BatchConfig, BatchWarmupConfig, DataConfig, SourceConfig
from tessera.data.digest import batch_digest, digest_sum
from tessera.data.loader import Loader, LoaderState, merge_states
from tessera.quantities import Duration


def make_loader(folder, *, workers=0, rank=0, world_size=1, state=None, microbatch_rows=1):
    from reference.data_fake_source import fake_tokenizer

    sources = {
        name: SourceConfig(local=f"{folder}/{name}", weight=weight)
        for name, weight in (("web", 0.7), ("code", 0.3))
    }
    config = DataConfig(
        sources=sources, max_seq_len=32, row_tokens=128, lanes=8, waiting_pieces=12, workers=workers
    )
    warmup = BatchWarmupConfig(initial_rows=4, increment_rows=4, over=Duration.parse("9000tok"))
    batch = BatchConfig(rows=12, microbatch_rows=microbatch_rows, warmup=warmup)
    return Loader(
        *(config, batch, fake_tokenizer()),
        vocab_size=512,
        seed=17,
        rank=rank,
        world_size=world_size,
        state=state,
    )


def main(folder, steps, workers):
    rank, world_size = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group("gloo")
    saved = Path(folder) / "state.json"
    state = LoaderState.from_json(json.loads(saved.read_text())) if saved.exists() else None
    loader = make_loader(
        folder,
        workers=int(workers),
        rank=data_rank(rank, int(os.environ["LOCAL_WORLD_SIZE"]), world_size),
        world_size=world_size,
        state=state,
        microbatch_rows=world_size,
    )
    for batch in islice(loader, int(steps)):
        total = torch.from_numpy(digest_sum(batch.row_digests.numpy()))
        dist.all_reduce(total)
        shares = [None] * world_size
        dist.all_gather_object(shares, loader.state_after(batch))
        if rank == 0:
            with open(f"{folder}/digests.txt", "a") as digests:
                digests.write(f"{batch.step} {batch.global_rows} {batch_digest(total.numpy())}\n")
            saved.with_suffix(".new").write_text(json.dumps(merge_states(shares).to_json()))
            saved.with_suffix(".new").rename(saved)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(*sys.argv[1:])
