"""Any batch is a place to continue from, on any number of ranks, workers and microbatches."""

import json
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference.data_batches import BATCH, SOURCES, TOKENIZER, WARMUP, data_config, run
from reference.data_fake_source import corpus, fake_tokenizer, open_fake

from tessera.data.config import BatchConfig, DataConfig, MaskingConfig, SourceConfig
from tessera.data.loader import Loader, LoaderState

STEPS = 24


@pytest.fixture(scope="module")
def uninterrupted():
    batches, states = run(None, STEPS)
    assert [batch["rows"] for batch in batches] == sorted(batch["rows"] for batch in batches)
    assert len({batch["rows"] for batch in batches}) == 3, "the batch size did not grow"
    last = LoaderState.from_json(json.loads(states[-1]))
    code = [state.cursors[1].document for state in last.lanes.values()]
    assert sum(code) > 3 * 20, "no epoch ended on the way"
    return batches, states


@given(
    stop=st.integers(1, STEPS - 2),
    world_size=st.sampled_from([1, 2, 4]),
    microbatch_rows=st.integers(1, 5),
)
@settings(max_examples=40, deadline=None)
def test_resuming_after_any_batch_changes_nothing(uninterrupted, stop, world_size, microbatch_rows):
    batches, states = uninterrupted
    state = LoaderState.from_json(json.loads(states[stop - 1]))
    batch = BatchConfig(rows=12, microbatch_rows=microbatch_rows, warmup=WARMUP)
    steps = min(4, STEPS - stop)
    again, states_again = run(state, steps, world_size=world_size, batch=batch)
    assert again == batches[stop : stop + steps]
    assert states_again == states[stop : stop + steps]


def test_epochs_are_those_of_all_lanes_even_in_the_first_batch_after_a_resume():
    """A batch of 2 rows comes from 2 of the 8 lanes, which need not be the furthest ones."""
    batches, states = run(None, 16, batch=BatchConfig(rows=2))
    epochs = [batch["source_epochs"]["code"] for batch in batches]
    assert epochs == sorted(epochs) and epochs[-1] > 1
    for stop in range(1, 16):
        state = LoaderState.from_json(json.loads(states[stop - 1]))
        (first,), _ = run(state, 1, batch=BatchConfig(rows=2))
        assert first == batches[stop]


def test_a_state_saved_by_many_ranks_serves_one(uninterrupted):
    batches, states = uninterrupted
    _, by_four = run(None, 10, world_size=4)
    assert by_four == states[:10]


@pytest.mark.parametrize("before, after", [(0, 2), (2, 0), (2, 4)])
def test_the_number_of_workers_changes_nothing(uninterrupted, before, after):
    batches, states = uninterrupted
    _, saved = run(None, 9, config=data_config(workers=before))
    state = LoaderState.from_json(json.loads(saved[-1]))
    again, states_again = run(state, 5, config=data_config(workers=after))
    assert again == batches[9:14]
    assert states_again == states[9:14]


def test_a_resumed_run_can_be_resumed_again(uninterrupted):
    batches, _ = uninterrupted
    state, got = None, []
    while len(got) < STEPS:
        some, states = run(state, 1 + len(got) % 3, world_size=[1, 2, 4][len(got) % 3])
        got += some
        state = LoaderState.from_json(json.loads(states[-1]))
    assert got[:STEPS] == batches


def test_a_change_of_ranks_in_a_changed_plan_loses_and_repeats_no_row():
    """After an odd number of rows, the next rank's turn is not rank 0's."""
    _, states = run(None, 1, batch=BatchConfig(rows=3))
    state = LoaderState.from_json(json.loads(states[0]))
    again, _ = run(state, 3, world_size=4, batch=BatchConfig(rows=4))
    numbers = [number for batch in again for number, _ in batch["digests"]]
    assert sorted(numbers) == list(range(3, 15))


def test_the_state_does_not_grow_with_progress():
    """At the size of the recipes: 96 lanes, rows of 8,192 tokens."""
    sources = {"web": SourceConfig(local="documents=30000,longest=860,shards=30")}
    config = data_config(sources=sources, max_seq_len=1024, row_tokens=8192, lanes=96)
    config = DataConfig(**(vars(config) | {"waiting_pieces": 256}))
    loader = Loader(
        config, BatchConfig(rows=96), TOKENIZER, vocab_size=512, seed=1, open_source=open_fake
    )
    sizes = [len(json.dumps(batch.state.to_json())) for batch in islice(loader, 12)]
    assert max(sizes) < 300_000
    assert sizes[-1] < 1.1 * sizes[0]


def refusal(state, **changes):
    seed = changes.pop("seed", 17)
    with pytest.raises(ValueError) as caught:
        run(state, 1, config=data_config(**changes), seed=seed)
    return str(caught.value)


@pytest.mark.parametrize(
    "changes, key, consequence",
    [
        ({"seed": 18}, "seed", "again"),
        ({"lanes": 16}, "lanes", "again"),
        ({"canonical_nodes": 2}, "canonical_nodes", "again"),
        ({"row_tokens": 256}, "row_tokens", "no document is lost"),
        ({"max_seq_len": 64}, "max_seq_len", "may be lost or come again"),
        ({"long_documents": "truncate"}, "long_documents", "may be lost"),
        ({"waiting_pieces": 11}, "waiting_pieces", "no document is lost"),
        ({"block_documents": 61}, "block_documents", "again"),
        ({"shuffle": False}, "shuffle", "again"),
        ({"masking": MaskingConfig(rate=0.2)}, "masking.rate", "masks differ"),
    ],
)
def test_resuming_with_other_data_is_refused(uninterrupted, changes, key, consequence):
    state = LoaderState.from_json(json.loads(uninterrupted[1][5]))
    message = refusal(state, **changes)
    (line,) = [line for line in message.splitlines() if f"train_data.{key}: was " in line]
    assert consequence in line
    if key in ("lanes", "canonical_nodes"):
        assert "allow_changed" not in message
    else:
        allowing = message.splitlines()[-1]
        assert "train_data.allow_changed: [" in allowing
        assert key in allowing or (key == "masking.rate" and "[masking]" in allowing)


def test_an_allowed_change_that_is_misspelt_is_refused():
    with pytest.raises(ValueError, match=r"allow_changed: 'sede' is none of mixture, seed"):
        data_config(allow_changed=("sede",))


def test_shards_that_were_made_again_are_refused(uninterrupted):
    def made_again(name, source, split, vocab_size):
        return corpus(name, 400, index_fingerprint=f"new {name}")

    state = LoaderState.from_json(json.loads(uninterrupted[1][5]))
    with pytest.raises(ValueError, match=r"sources.web: was index index, now index new web"):
        run(state, 1, open_source=made_again)


def test_another_tokenizer_is_refused(uninterrupted):
    state = LoaderState.from_json(json.loads(uninterrupted[1][5]))
    other = fake_tokenizer(fingerprint="other")
    with pytest.raises(ValueError, match=r"tokenizer: was fake, now other; .*other tokens"):
        Loader(
            *(data_config(), BATCH, other),
            vocab_size=512,
            seed=17,
            state=state,
            open_source=lambda name, *_: corpus(name, 9, tokenizer_fingerprint=None),
        )


def test_allowed_changes_go_on_from_the_same_place(uninterrupted):
    batches, states = uninterrupted
    state = LoaderState.from_json(json.loads(states[5]))
    sources = {
        "math": SourceConfig(local="documents=100", weight=0.5),
        "web": SourceConfig(local=SOURCES["web"].local, weight=0.5),
    }
    allowed = ("sources.code", "sources.code.weight", "sources.math", "sources.math.weight")
    config = data_config(sources=sources, allow_changed=(*allowed, "sources.web.weight"))
    went_on, states_after = run(state, 12, config=config)
    assert went_on[0]["step"] == 6
    after = LoaderState.from_json(json.loads(states_after[-1]))
    for lane, was in state.lanes.items():
        assert after.lanes[lane].cursors[1].document > was.cursors[0].document  # web, now second
    tokens = {name: sum(b["source_tokens"][name] for b in went_on) for name in sources}
    assert abs(tokens["math"] / sum(tokens.values()) - 0.5) < 0.1

    seeded = data_config(masking=MaskingConfig(rate=0.2), allow_changed=("masking",))
    other_masks, _ = run(state, 2, config=seeded)
    assert [b["tokens"] for b in other_masks] == [b["tokens"] for b in batches[6:8]]
    assert [b["digests"] for b in other_masks] != [b["digests"] for b in batches[6:8]]
