"""The rows of some lanes, in one process: what the training process or a worker runs."""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass

from tessera.data.config import DataConfig, row_ranges
from tessera.data.draws import Draws
from tessera.data.lane import LaneState, packed_rows
from tessera.data.masking import rate_at
from tessera.data.mixture import head_start, whole_shares
from tessera.data.pieces import Cut
from tessera.data.rows import Row, RowFormat, make_row
from tessera.data.streams import Cursor, Stream


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


def make_rows(
    recipe: Recipe,
    streams: Callable[[int], list[Stream]],
    states: dict[int, LaneState],
    slots: Iterable[int],
) -> Iterator[Row]:
    """One row for each slot, from the slot's lane: `slot % lanes`.

    A lane's rows fill its slots in order; rows that the configuration skips are made, and left out.

    Args:
        recipe: What to make.
        streams: The streams of any lane.
        states: Where each lane stands.
        slots: Which lanes' turns it is.
    """
    lanes = recipe.config.lanes
    making: dict[int, Iterator[Row]] = {}
    for slot in slots:
        lane = slot % lanes
        if lane not in making:
            making[lane] = _lane_rows(recipe, lane, streams(lane), states[lane])
        yield next(making[lane])


def _lane_rows(recipe: Recipe, lane: int, streams: list[Stream], state: LaneState) -> Iterator[Row]:
    config = recipe.config
    skipped = row_ranges(config.skip_rows)
    packed = packed_rows(
        streams,
        recipe.cut,
        recipe.shares,
        row_tokens=config.row_tokens,
        waiting_pieces=config.waiting_pieces,
        state=state,
    )
    draws = Draws()
    for pieces, after in packed:
        number = (after.rows - 1) * config.lanes + lane
        if any(number in rows for rows in skipped):
            continue
        draws.begin("masks", recipe.seed, number)
        yield make_row(
            number,
            lane,
            pieces,
            after,
            streams,
            recipe.form,
            rate=rate_at(config.masking, number, config.row_tokens),
            draws=draws,
        )
