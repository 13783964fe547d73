import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tessera.optim.schedules import (
    Constant,
    Cosine,
    Linear,
    OneMinusSqrt,
    WarmupStableDecay,
    decay_begins,
    problems,
)
from tessera.quantities import Duration


def tok(value: int) -> Duration:
    return Duration(value, "tok")


def test_the_published_decay_has_its_published_values():
    schedule = OneMinusSqrt(decay=tok(50_000_000_000), floor=0.001)
    total = 50_000_000_000
    published = {0.0: 1.0, 0.01: 0.9001, 0.25: 0.5005, 0.5: 0.2936, 0.81: 0.1009, 0.99: 0.0060}
    for share, value in published.items():
        assert schedule.multiplier(int(share * total), total) == pytest.approx(value, abs=5e-5)
    assert schedule.multiplier(total, total) == pytest.approx(0.001)


def test_the_published_warmup_and_plateau():
    schedule = WarmupStableDecay(warmup=tok(3_000_000_000))
    total = 1_719_000_000_000
    assert schedule.multiplier(0, total) == 1e-10
    assert schedule.multiplier(1_500_000_000, total) == pytest.approx(0.5)
    assert schedule.multiplier(3_000_000_000, total) == 1.0
    assert schedule.multiplier(total, total) == 1.0  # the published code divides by zero here


@pytest.mark.parametrize(
    ("shape", "expected"), [("linear", 0.55), ("one_minus_sqrt", 1 - 0.9 * math.sqrt(0.5))]
)
def test_the_plateau_ends_in_a_decay_of_either_shape(shape, expected):
    schedule = WarmupStableDecay(warmup=tok(10), decay=tok(20), decay_shape=shape, floor=0.1)
    assert schedule.multiplier(80, 100) == 1.0
    assert schedule.multiplier(90, 100) == pytest.approx(expected)
    assert schedule.multiplier(100, 100) == pytest.approx(0.1)


def test_a_drop_lowers_the_rest_of_the_plateau():
    schedule = WarmupStableDecay(drop_at=tok(50), drop_to=0.1, decay=tok(10))
    assert schedule.multiplier(49, 100) == 1.0
    assert schedule.multiplier(50, 100) == 0.1
    assert schedule.multiplier(95, 100) == pytest.approx(0.05)


def test_cosine_and_linear_go_through_their_middle():
    assert Cosine(floor=0.2).multiplier(50, 100) == pytest.approx(0.6)
    assert Cosine(warmup=tok(50)).multiplier(75, 100) == pytest.approx(0.5)
    assert Linear(floor=0.2).multiplier(50, 100) == pytest.approx(0.6)
    assert Linear().multiplier(100, 100) == 0.0


SCHEDULES = [
    Constant(warmup=tok(30)),
    WarmupStableDecay(warmup=tok(30), decay=tok(40), floor=0.1),
    WarmupStableDecay(warmup=tok(30), decay=tok(40), decay_shape="one_minus_sqrt"),
    WarmupStableDecay(warmup=tok(30), drop_at=tok(60), drop_to=0.5),
    OneMinusSqrt(warmup=tok(30), floor=0.1),
    OneMinusSqrt(warmup=tok(30), decay=tok(40)),
    Cosine(warmup=tok(30)),
    Linear(warmup=tok(30), floor=0.1),
]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=lambda s: s.name)
@given(progress=st.integers(0, 300))
def test_a_multiplier_climbs_then_only_falls_and_stays_within_bounds(schedule, progress):
    now, later = (schedule.multiplier(p, 100) for p in (progress, progress + 1))
    assert 0.0 <= now <= 1.0
    if progress < 30:
        assert later > now
    else:
        assert later <= now


def test_units_that_cannot_be_compared_are_a_problem():
    found = problems(WarmupStableDecay(warmup=Duration(10, "ba")), tok(100))
    assert found == [
        "schedule.warmup: '10ba' cannot be compared with duration '100tok': give both in 'tok'"
    ]
    assert problems(WarmupStableDecay(), Duration(10, "ba")) == []


def test_warmup_and_decay_must_fit_into_the_phase():
    assert problems(WarmupStableDecay(warmup=tok(60), decay=tok(40)), tok(100)) == []
    (found,) = problems(WarmupStableDecay(warmup=tok(61), decay=tok(40)), tok(100))
    assert "longer than duration '100tok'" in found
    (found,) = problems(WarmupStableDecay(drop_at=tok(100)), tok(100))
    assert "drop_at" in found


def test_a_decay_begins_where_the_plateau_ends():
    assert decay_begins(WarmupStableDecay(decay=tok(30)), tok(100)) == tok(70)
    assert decay_begins(WarmupStableDecay(), tok(100)) is None
    assert decay_begins(OneMinusSqrt(decay=tok(100)), tok(100)) is None
    assert decay_begins(Cosine(), tok(100)) is None


def test_a_floor_outside_its_range_is_refused():
    with pytest.raises(ValueError, match="floor is a fraction"):
        OneMinusSqrt(floor=1.0)
