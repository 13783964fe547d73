"""Validation batches are the same at every evaluation, whatever the number of ranks."""

import numpy as np
import pytest
import torch
from reference.data_fake_source import CLS, MASK, PAD, SEP, corpus, fake_tokenizer, open_fake

from tessera.data.config import DataConfig, SourceConfig
from tessera.data.validation import validation_batches

SETTINGS = {
    "vocab_size": 512,
    "masking_rate": 0.15,
    "max_tokens": 10**9,
    "seed": 0,
    "open_source": open_fake,
}


def data_config(**source):
    sources = {"web": SourceConfig(local="documents=200", **source)}
    return DataConfig(sources=sources, max_seq_len=64, row_tokens=256, waiting_pieces=16)


def batches(config=None, **changes):
    config = config or data_config()
    return list(validation_batches(config, "web", fake_tokenizer(), **(SETTINGS | changes)))


def originals(batch):
    """The segments before masking."""
    ids = torch.where(batch.labels() == -100, batch.input_ids, batch.labels()).numpy()
    return np.split(ids, batch.cu_seqlens.numpy()[1:])[: batch.documents]


def test_every_evaluation_sees_the_same():
    first, second = batches(), batches()
    assert len(first) == len(second) > 10
    for a, b in zip(first, second, strict=True):
        for name in ("input_ids", "cu_seqlens", "masked_positions", "masked_labels", "rows"):
            assert torch.equal(getattr(a, name), getattr(b, name))


def test_every_validation_document_comes_once():
    source = corpus("web", 200, seed=len("validation"))
    contents = [source.document(s, n) for s, n in np.ndindex(4, 50)]
    pieces = [c[n : n + 62] for c in contents for n in range(0, len(c), 62)]
    found = [segment for batch in batches() for segment in originals(batch)]
    assert all(segment[0] == CLS and segment[-1] == SEP for segment in found)
    assert sorted(s[1:-1].tolist() for s in found) == sorted(p.tolist() for p in pieces)


def test_no_segment_is_longer_than_stated_not_even_of_padding():
    some = batches(max_tokens=600)
    padding = [256 - batch.tokens for batch in some]
    assert max(padding) > 64, "no row had enough padding to prove anything"
    for batch in some:
        assert torch.diff(batch.cu_seqlens).max() <= batch.max_seqlen == 64


def test_ranks_share_the_rows_and_repeat_none():
    alone = {int(batch.rows): batch for batch in batches()}
    shares = [batches(rank=rank, world_size=5) for rank in range(5)]
    assert len({len(share) for share in shares}) == 2, "the shares should be unequal here"
    rows = {int(batch.rows): batch for share in shares for batch in share}
    assert rows.keys() == alone.keys() and sum(map(len, shares)) == len(alone)
    assert all(torch.equal(rows[n].input_ids, alone[n].input_ids) for n in alone)


def test_a_rank_may_get_nothing():
    assert batches(max_tokens=100, rank=3, world_size=4) == []


def test_the_rate_is_its_own():
    tokens = sum(batch.tokens - 2 * batch.documents for batch in batches())
    masked = sum(batch.masked_tokens for batch in batches())
    assert abs(masked / tokens - 0.15) < 0.02
    shown = torch.cat([b.input_ids[b.masked_positions[: b.masked_tokens]] for b in batches()])
    assert abs((shown == MASK).float().mean() - 0.8) < 0.05


@pytest.mark.parametrize("max_tokens", [1, 100, 3000])
def test_no_more_tokens_than_asked_for(max_tokens):
    some = batches(max_tokens=max_tokens)
    tokens = sum(batch.tokens for batch in some)
    assert tokens == sum(int((batch.input_ids != PAD).sum()) for batch in some)
    assert max_tokens - 64 < tokens <= max(max_tokens, 64)


def test_a_source_without_validation_documents_is_named():
    with pytest.raises(ValueError, match="source 'web' has no validation_split"):
        batches(data_config(validation_split=None))
