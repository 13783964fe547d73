"""The size of a global batch is a function of the rows before it."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tessera.config import ConfigError
from tessera.data.batch_schedule import (
    BatchPlan,
    allowed_world_sizes,
    check_world_size,
    data_rank,
)
from tessera.data.config import BatchConfig, BatchWarmupConfig
from tessera.quantities import Duration


def config(rows, initial=None, increment=None, over="0tok"):
    warmup = None
    if initial is not None:
        warmup = BatchWarmupConfig(
            initial_rows=initial, increment_rows=increment, over=Duration.parse(over)
        )
    return BatchConfig(rows=rows, warmup=warmup)


BASE = config(576, 96, 96, "50e9tok")  # the published recipe, in rows of 8192 tokens


def test_base_grows_where_the_published_run_did():
    plan = BatchPlan.of(BASE, 8192)
    assert plan.sizes == (96, 192, 288, 384, 480, 576)
    thresholds = [rows * 8192 / 1e9 for rows in plan.first_rows[1:]]
    assert thresholds == pytest.approx([10 / 3, 10, 20, 100 / 3, 50], abs=0.005)


def test_large_grows_where_the_published_run_did():
    plan = BatchPlan.of(config(88, 8, 8, "10e9tok"), 57_344)
    published = [0.182, 0.545, 1.091, 1.818, 2.727, 3.818, 5.091, 6.545, 8.182, 10]
    assert [rows * 57_344 / 1e9 for rows in plan.first_rows[1:]] == pytest.approx(
        published, abs=0.006
    )


@given(
    initial=st.integers(1, 20),
    increment=st.integers(1, 20),
    sizes=st.integers(1, 8),
    over=st.integers(0, 10**7),
)
@settings(deadline=None)
def test_the_plan_is_that_of_the_obvious_loop(initial, increment, sizes, over):
    rows = initial + increment * (sizes - 1)
    plan = BatchPlan.of(config(rows, initial, increment, f"{over}tok"), 1000)
    growing = range(initial, rows, increment)
    before, served = 0, dict.fromkeys(range(initial, rows + 1, increment), 0)
    for step in range(200):
        passed = [
            before * 1000 * sum(growing) >= over * sum(growing[: n + 1])
            for n in range(len(growing))
        ]
        size = initial + increment * sum(passed)
        assert plan.rows_before(step) == before
        assert plan.rows_at(before) == size
        served[size] += 1
        before += size
    complete = [served[size] for size in growing if size < plan.rows_at(before)]
    assert not complete or max(complete) - min(complete) <= 1


def test_any_step_is_found_at_once():
    plan = BatchPlan.of(BASE, 8192)
    assert plan.rows_before(10**12) - plan.rows_before(10**12 - 1) == 576
    assert plan.rows_at(10**15) == 576


def test_only_ranks_that_share_every_batch_equally_are_allowed():
    assert allowed_world_sizes(BASE, 96) == [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96]
    assert allowed_world_sizes(config(8, 2, 2), 8) == [1, 2]
    check_world_size(BASE, lanes=96, workers=3, world_size=32)
    with pytest.raises(ConfigError) as error:
        check_world_size(BASE, lanes=96, workers=0, world_size=5)
    for key in ("batch.rows: 576", "batch.warmup.initial_rows: 96", "train_data.lanes: 5 ranks"):
        assert key in str(error.value)
    assert "or run on one of 1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 96 ranks" in str(error.value)
    with pytest.raises(ConfigError, match=r"workers: 5 .*12 lanes.*1, 2, 3, 4, 6, 12"):
        check_world_size(BASE, lanes=96, workers=5, world_size=8)


@pytest.mark.parametrize("nodes, gpus", [(1, 8), (4, 8), (3, 2)])
def test_consecutive_data_ranks_sit_on_different_nodes(nodes, gpus):
    world = nodes * gpus
    numbers = [data_rank(rank, gpus, world) for rank in range(world)]
    assert sorted(numbers) == list(range(world))
    node_of = {number: rank // gpus for rank, number in enumerate(numbers)}
    assert all(node_of[number] == number % nodes for number in range(world))
