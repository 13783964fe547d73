"""A stream of small batches over fake sources, from any state, on any number of ranks."""

import json
from itertools import islice

from reference.data_fake_source import fake_tokenizer, open_fake
from tessera.data.config import (
    BatchConfig,
    BatchWarmupConfig,
    DataConfig,
    MaskingConfig,
    SourceConfig,
)
from tessera.data.loader import Loader, LoaderState, merge_states
from tessera.quantities import Duration

TOKENIZER = fake_tokenizer()
WARMUP = BatchWarmupConfig(initial_rows=4, increment_rows=4, over=Duration.parse("9000tok"))
BATCH = BatchConfig(rows=12, microbatch_rows=2, warmup=WARMUP)
MASKING = MaskingConfig(rate=0.3, final_rate=0.1, over=Duration.parse("20000tok"))


def data_config(**changes):
    sources = {
        "web": SourceConfig(local="documents=400,longest=70", weight=0.7),
        "code": SourceConfig(local="documents=20,longest=80", weight=0.3),
    }
    plain = {"sources": sources, "max_seq_len": 32, "row_tokens": 128, "lanes": 8}
    plain |= {"waiting_pieces": 10, "block_documents": 60, "masking": MASKING}
    return DataConfig(**(plain | changes))


SOURCES = data_config().sources


def run(state, steps, *, world_size=1, batch=BATCH, config=None, open_source=open_fake, seed=17):
    """[(step, rows, sorted row digests, tokens, tokens per source)] and the merged states."""
    ranks = [
        Loader(
            *(config or data_config(), batch, TOKENIZER),
            vocab_size=512,
            seed=seed,
            rank=rank,
            world_size=world_size,
            state=state,
            open_source=open_source,
        )
        for rank in range(world_size)
    ]
    batches, states = [], []
    for shares in islice(zip(*ranks, strict=True), steps):
        numbers = [n for share in shares for m in share.microbatches for n in m.rows.tolist()]
        digests = [tuple(d) for share in shares for d in share.row_digests.tolist()]
        per_source = {
            name: sum(share.source_tokens[name] for share in shares)
            for name in shares[0].source_tokens
        }
        batches.append(
            {
                "step": shares[0].step,
                "rows": shares[0].global_rows,
                "digests": sorted(zip(numbers, digests, strict=True)),
                "tokens": sum(share.tokens for share in shares),
                "source_tokens": per_source,
                "source_epochs": {
                    name: max(share.source_epochs[name] for share in shares)
                    for name in shares[0].source_epochs
                },
            }
        )
        merged = merge_states(
            loader.state_after(s) for loader, s in zip(ranks, shares, strict=True)
        )
        states.append(json.dumps(merged.to_json()))
    return batches, states


def state_of(saved):
    """The state that `run` gave as JSON."""
    return LoaderState.from_json(json.loads(saved))
