"""Rows per global batch, as a function of the rows before it: resuming has nothing to restore."""

from bisect import bisect_right
from dataclasses import dataclass
from math import gcd

from tessera.config import refusal
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


def world_problems(batch: BatchConfig, *, lanes: int, workers: int, world_size: int) -> list[str]:
    """What keeps so many ranks from sharing rows and lanes equally, by key; empty if nothing does.

    Every rank must get as many rows of each global batch as every other, of lanes that are its
    own, and each worker of a rank as many lanes as every other.
    """
    found = []
    serving = ", ".join(map(str, allowed_world_sizes(batch, lanes)))
    rows = {"batch.rows": batch.rows}
    if batch.warmup is not None:
        rows["batch.warmup.initial_rows"] = batch.warmup.initial_rows
        rows["batch.warmup.increment_rows"] = batch.warmup.increment_rows
    for key, value in rows.items():
        if value % world_size:
            below = value // world_size * world_size
            near = f"{below} or {below + world_size}" if below else f"{world_size}"
            found.append(
                f"{key}: {value} rows do not divide among {world_size} ranks; use {near}, or run "
                f"on one of {serving} ranks"
            )
    if lanes % world_size:
        found.append(
            f"train_data.lanes: {world_size} ranks do not divide {lanes} lanes; run on one of "
            f"{serving} ranks, or in a new phase with other lanes"
        )
    elif workers and (lanes // world_size) % workers:
        each = lanes // world_size
        divisors = ", ".join(str(n) for n in range(1, each + 1) if each % n == 0)
        found.append(
            f"train_data.workers: {workers} workers do not divide the {each} lanes of a rank "
            f"({lanes} lanes, {world_size} ranks); use 0 or one of {divisors}"
        )
    return found


def check_world_size(
    batch: BatchConfig, *, lanes: int, workers: int, world_size: int, name: str = "this batch"
) -> None:
    """Raise ConfigError with all `world_problems`, if there are any."""
    found = world_problems(batch, lanes=lanes, workers=workers, world_size=world_size)
    if found:
        raise refusal(f"{name} cannot run on {world_size} ranks", found)


def data_rank(rank: int, local_world_size: int, world_size: int) -> int:
    """The number of a rank for data: consecutive numbers sit on different nodes.

    With it, `canonical_nodes` equal to the number of nodes (or a multiple) gives each node lanes of
    its own groups of shards. Ranks of a node are assumed consecutive, as launchers number them.
    """
    # Lane k reads the shards of group k % canonical_nodes, and data rank d hosts the lanes with
    # k % world_size == d. With 2 nodes of 4 ranks, numbering them 0 2 4 6 and 1 3 5 7 gives the
    # first node all even lanes, hence group 0, and the second all odd ones: each node downloads
    # half of the corpus. Numbered 0 1 2 3 and 4 5 6 7, both would read all of it.
    if world_size % local_world_size:
        return rank  # nodes of unequal size: any numbering serves, locality is lost
    nodes = world_size // local_world_size
    return rank % local_world_size * nodes + rank // local_world_size
