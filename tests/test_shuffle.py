"""The order of documents is a function of seed, epoch and position, and remembers no documents."""

import time
import tracemalloc
from collections import Counter
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import data_oracles as oracle

from tessera.data.pipeline.shuffle import Order, Spans, group_spans
from tessera.data.randomness import permuted

KEY = ("order", 17, "web")


def make_order(samples, *, block_documents=50, shuffle=True, key=KEY):
    spans = Spans.whole(np.asarray(samples))
    return Order(spans, block_documents=block_documents, shuffle=shuffle, key=key)


def documents(order, positions):
    shards, samples = order.locate(np.asarray(positions, np.int64))
    return list(zip(shards.tolist(), samples.tolist(), strict=True))


def everything(samples):
    return [(shard, n) for shard, count in enumerate(samples) for n in range(count)]


@given(
    samples=st.lists(st.integers(0, 30), min_size=1, max_size=12).filter(any),
    block_documents=st.integers(1, 60),
    epoch=st.integers(0, 10**6),
)
@settings(max_examples=60, deadline=None)
def test_each_epoch_holds_every_document_once(samples, block_documents, epoch):
    order = make_order(samples, block_documents=block_documents)
    total = sum(samples)
    seen = documents(order, np.arange(total) + epoch * total)
    assert sorted(seen) == everything(samples)
    assert seen == oracle.documents_in_order(samples, epoch, block_documents, KEY)


def test_epochs_and_seeds_differ():
    samples = [40] * 10
    first, second = (documents(make_order(samples), np.arange(400) + e * 400) for e in (0, 1))
    other = documents(make_order(samples, key=("order", 18, "web")), np.arange(400))
    for a, b in [(first, second), (first, other)]:
        assert sum(x == y for x, y in zip(a, b, strict=True)) < 20


def test_positions_may_be_asked_for_in_any_order():
    order = make_order([7, 0, 30, 11], block_documents=10)
    positions = np.random.default_rng(0).permutation(300)
    expected = dict(enumerate(documents(order, np.arange(300))))
    assert documents(order, positions) == [expected[p] for p in positions.tolist()]
    assert [documents(order, [p])[0] for p in range(300)] == list(expected.values())


def test_the_order_is_the_same_for_ever():
    """Recorded once: a change would make every saved state resume somewhere else."""
    order = make_order([5, 3, 8, 4], block_documents=8)
    assert documents(order, range(12)) == [
        *[(2, 0), (2, 5), (2, 6), (2, 3), (2, 1), (2, 7), (2, 4), (2, 2)],
        *[(0, 2), (0, 0), (0, 1), (1, 2)],
    ]
    assert permuted(np.arange(10), 10, "recorded").tolist() == [1, 6, 8, 7, 2, 5, 3, 4, 9, 0]


def test_without_shuffling_documents_come_as_they_lie():
    order = make_order([3, 0, 4], shuffle=False)
    assert documents(order, range(10)) == [*everything([3, 0, 4]), (0, 0), (0, 1), (0, 2)]


def test_reading_stays_near_a_moving_front():
    order = make_order([100] * 40, block_documents=300)
    position, fronts = 0, []
    while position < 4000:
        front = order.front(position)
        assert front.end - position == 300 or front.end == 4000
        read = {shard for shard, _ in documents(order, np.arange(position, front.end))}
        assert read == set(front.shards.tolist())
        fronts.append(read)
        position = front.end
    assert len(fronts) == 14
    assert not any(a & b for n, a in enumerate(fronts) for b in fronts[:n])


@given(
    samples=st.lists(st.integers(0, 40), min_size=1, max_size=15).filter(lambda s: sum(s) > 8),
    groups=st.integers(1, 8),
    shuffle=st.booleans(),
)
@settings(max_examples=60, deadline=None)
def test_groups_share_the_documents_equally(samples, groups, shuffle):
    found = []
    for group in range(groups):
        spans = group_spans(
            np.asarray(samples), group=group, groups=groups, shuffle=shuffle, key=KEY
        )
        order = Order(spans, block_documents=20, shuffle=True, key=(*KEY, group))
        assert abs(order.documents - sum(samples) / groups) < 1
        found += documents(order, np.arange(order.documents))
    assert sorted(found) == everything(samples)


def test_a_group_needs_only_its_share_of_the_shards():
    samples = np.full(100, 1000)
    for group in range(4):
        spans = group_spans(samples, group=group, groups=4, shuffle=True, key=KEY)
        assert len(spans) <= 26


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_every_permutation_of_a_few_is_equally_likely(size):
    tries = 300 * len(list(permutations(range(size))))
    counts = Counter(tuple(permuted(np.arange(size), size, n).tolist()) for n in range(tries))
    chi2 = sum((counts[p] - 300) ** 2 / 300 for p in permutations(range(size)))
    freedom = max(1, len(counts) - 1)
    assert chi2 < freedom + 5 * (2 * freedom) ** 0.5


def test_a_permutation_mixes_like_a_random_one():
    size, cells = 200_000, 20
    images = permuted(np.arange(size), size, "mixing")
    assert np.array_equal(np.sort(images), np.arange(size))
    cell = images * cells // size
    for a, b in [
        (np.arange(size) * cells // size, cell),  # where from, where to
        (np.arange(size) % cells, images % cells),  # low bits
        (cell[:-1], cell[1:]),  # neighbours
    ]:
        counts = np.bincount(a * cells + b, minlength=cells**2)
        expected = len(a) / cells**2
        chi2 = ((counts - expected) ** 2 / expected).sum()
        freedom = (cells - 1) ** 2
        assert abs(chi2 - freedom) < 5 * (2 * freedom) ** 0.5


def test_two_billion_documents_start_at_once_and_need_little_memory():
    samples = np.random.default_rng(0).integers(50_000, 90_000, 29_000)
    assert samples.sum() > 2e9
    tracemalloc.start()
    begin = time.perf_counter()
    order = Order(
        group_spans(samples, group=3, groups=8, shuffle=True, key=KEY),
        block_documents=262_144,
        shuffle=True,
        key=KEY,
    )
    for position in (0, 10**6, order.documents * 3 - 5000):
        order.locate(np.arange(position, position + 5000))
    seconds, (_, peak_bytes) = time.perf_counter() - begin, tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert seconds < 5
    assert peak_bytes < 50e6
