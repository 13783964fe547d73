"""Rows per global batch, as a function of the rows before it: resuming has nothing to restore."""

from bisect import bisect_right
from dataclasses import dataclass
from math import gcd

from tessera.data.config import BatchConfig


@dataclass(frozen=True)
class BatchPlan:
    """The sizes of a phase's global batches: one stage for each size, in order."""

    sizes: tuple[int, ...]
    """Rows of a global batch in each stage."""
    first_rows: tuple[int, ...]
    """How many rows come before each stage."""
    first_steps: tuple[int, ...]
    """How many batches come before each stage."""

    @classmethod
    def of(cls, batch: BatchConfig, row_tokens: int) -> "BatchPlan":
        """Stages of a batch-size warmup, or the one stage of a constant size.

        Each size serves the same number of batches, to within one: the k-th size ends at the first
        batch past `over * (s_1 + ... + s_k) / (s_1 + ... + s_n)` token slots, where s_n is the last
        size but one.
        """
        if batch.warmup is None:
            return cls((batch.rows,), (0,), (0,))
        sizes = range(batch.warmup.initial_rows, batch.rows + 1, batch.warmup.increment_rows)
        growing = sizes[:-1]
        first_rows, first_steps = [0], [0]
        for stage, size in enumerate(growing):
            slots = batch.warmup.over.value * sum(growing[: stage + 1])
            threshold = -(-slots // (sum(growing) * row_tokens))
            batches = max(0, -(-(threshold - first_rows[-1]) // size))
            first_rows.append(first_rows[-1] + batches * size)
            first_steps.append(first_steps[-1] + batches)
        return cls(tuple(sizes), tuple(first_rows), tuple(first_steps))

    def rows_at(self, rows_before: int) -> int:
        """Rows of the global batch that begins after so many rows."""
        return self.sizes[bisect_right(self.first_rows, rows_before) - 1]

    def rows_before(self, step: int) -> int:
        """Rows in all the global batches before this one, numbered from 0."""
        stage = bisect_right(self.first_steps, step) - 1
        return self.first_rows[stage] + (step - self.first_steps[stage]) * self.sizes[stage]


def allowed_world_sizes(batch: BatchConfig, lanes: int) -> list[int]:
    """The numbers of ranks that divide the lanes and every batch size."""
    common = gcd(lanes, batch.rows)
    if batch.warmup is not None:
        common = gcd(common, batch.warmup.initial_rows, batch.warmup.increment_rows)
    return [ranks for ranks in range(1, common + 1) if common % ranks == 0]


def check_world_size(batch: BatchConfig, *, lanes: int, workers: int, world_size: int) -> None:
    """Refuse a number of ranks or workers that cannot share the rows equally.

    Raises:
        ValueError: Naming the keys and the allowed values.
    """
    allowed = allowed_world_sizes(batch, lanes)
    if world_size not in allowed:
        keys = f"train_data.lanes {lanes}, batch.rows {batch.rows}"
        if batch.warmup is not None:
            keys += (
                f", batch.warmup.initial_rows {batch.warmup.initial_rows} and increment_rows "
                f"{batch.warmup.increment_rows}"
            )
        raise ValueError(
            f"{world_size} ranks do not divide {keys}, so that ranks would get unequal shares; "
            f"run on one of {', '.join(map(str, allowed))} ranks, or change those keys"
        )
    lanes_per_rank = lanes // world_size
    if workers and lanes_per_rank % workers:
        divisors = [n for n in range(1, lanes_per_rank + 1) if lanes_per_rank % n == 0]
        raise ValueError(
            f"train_data.workers {workers} does not divide the {lanes_per_rank} lanes of each of "
            f"{world_size} ranks; set it to 0 or one of {', '.join(map(str, divisors))}"
        )


def data_rank(rank: int, local_world_size: int, world_size: int) -> int:
    """The number of a rank for data: consecutive numbers sit on different nodes.

    With it, `canonical_nodes` equal to the number of nodes (or a multiple) gives each node lanes of
    its own groups of shards. Ranks of a node are assumed consecutive, as launchers number them.
    """
    if world_size % local_world_size:
        return rank  # nodes of unequal size: any numbering serves, locality is lost
    nodes = world_size // local_world_size
    return rank % local_world_size * nodes + rank // local_world_size
