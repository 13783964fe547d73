"""The rows of some lanes, in one process: what the training process or a worker runs."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

from tessera.data.config import DataConfig, row_ranges
from tessera.data.pipeline.lane import Lane, LaneState
from tessera.data.pipeline.masking import rate_at
from tessera.data.pipeline.mixture import head_start, whole_shares
from tessera.data.pipeline.pieces import Cut
from tessera.data.pipeline.rows import Row, RowFormat, make_row
from tessera.data.pipeline.streams import Cursor, Stream, read_again
from tessera.data.randomness import Draws


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """What rows are made of, beside the documents. Small and picklable: it travels to workers."""

    config: DataConfig
    seed: int
    cut: Cut
    form: RowFormat

    @property
    def shares(self) -> tuple[int, ...]:
        """The sources' shares of the tokens, as integers."""
        weights = [source.weight for source in self.config.sources.values() if source.weight > 0]
        return whole_shares(weights)

    def first_state(self, lane: int) -> LaneState:
        """A lane that has made no rows."""
        shares = self.shares
        drawn = head_start(shares, lane, self.config.max_seq_len // 2)
        return LaneState(0, (Cursor(),) * len(shares), tuple(drawn))


def own_lanes(first_slot: int, stride: int, lanes: int) -> list[int]:
    """The lanes whose turn it is in the slots `first_slot, first_slot + stride, ...`."""
    return [slot % lanes for slot in range(first_slot, first_slot + lanes, stride)]


def make_rows(
    recipe: Recipe,
    streams: Callable[[int], list[Stream]],
    states: Mapping[int, LaneState],
    *,
    first_slot: int,
    stride: int,
) -> Iterator[Row]:
    """One row for each of the slots `first_slot, first_slot + stride, ...`, for ever.

    Slot s is a turn of lane `s % lanes`. A lane's rows fill its slots in order; rows that the
    configuration skips are made, and left out.

    Args:
        recipe: What to make.
        streams: The streams of any lane.
        states: Where each of the lanes stands, and maybe others.
        first_slot: Whose turn is first.
        stride: Divides the lanes.
    """
    lanes = recipe.config.lanes
    own = own_lanes(first_slot, stride, lanes)
    working = _take_up(recipe, {lane: (streams(lane), states[lane]) for lane in own})
    making = {lane: _lane_rows(recipe, lane, streams(lane), working[lane]) for lane in own}
    for slot in count(first_slot, stride):
        yield next(making[slot % lanes])


def _take_up(
    recipe: Recipe, lanes: Mapping[int, tuple[list[Stream], LaneState]]
) -> dict[int, Lane]:
    """Lanes ready for their next row.

    They read side by side, so that all are near one front: a shard is not read again for each.
    """
    config = recipe.config
    waiting = read_again(
        {lane: (streams, state.waiting) for lane, (streams, state) in lanes.items()}, recipe.cut
    )
    working = {
        lane: Lane(
            streams,
            recipe.cut,
            recipe.shares,
            row_tokens=config.row_tokens,
            waiting_pieces=config.waiting_pieces,
            state=state,
            waiting=waiting[lane],
        )
        for lane, (streams, state) in lanes.items()
    }
    hungry = list(working.values())
    while hungry := [lane for lane in hungry if lane.wants_more()]:
        for lane in hungry:
            lane.draw()
    return working


def _lane_rows(recipe: Recipe, number: int, streams: list[Stream], lane: Lane) -> Iterator[Row]:
    config = recipe.config
    skipped = row_ranges(config.skip_rows)
    draws = Draws()
    while True:
        pieces, after = lane.next_row()
        row = (after.rows - 1) * config.lanes + number
        if any(row in rows for rows in skipped):
            continue
        draws.begin("masks", recipe.seed, row)
        rate = rate_at(config.masking, row, config.row_tokens)
        yield make_row(row, number, pieces, after, streams, recipe.form, rate=rate, draws=draws)
