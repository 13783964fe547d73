"""Global batches of packed rows for one rank, with the state to continue after each."""

import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import count

import numpy as np
import torch

from tessera.batch import PackedBatch, RankBatch
from tessera.data.batch_schedule import BatchPlan, check_world_size
from tessera.data.collate import Shapes, packed_batch
from tessera.data.config import BatchConfig, DataConfig
from tessera.data.pipeline.continuation import continued, in_order_of, mixture_changes
from tessera.data.pipeline.fingerprint import fingerprint
from tessera.data.pipeline.lanes import (
    Recipe,
    lane_streams,
    make_rows,
    open_readers,
    warn_of_small_cache,
)
from tessera.data.pipeline.masking import SPAN_OF_A_TOKEN, rate_for_shapes
from tessera.data.pipeline.pieces import Cut, PieceId
from tessera.data.pipeline.rows import Row, row_format
from tessera.data.pipeline.state import LaneState, LoaderState, merge_states
from tessera.data.pipeline.workers import worker_rows
from tessera.data.sources.source import OpenSource, check_tokenizer, open_source
from tessera.tokenizer import Tokenizer

__all__ = ["Loader", "LoaderState", "merge_states"]


class Loader:
    """The global batches of a phase, as one rank sees them, from a state on, for ever.

    Rank d hosts the lanes k with `k % world_size == d`; every global batch takes as many rows from
    each rank. Which rows a global batch holds depends on neither ranks, workers nor microbatches.

    Attributes:
        sources: Names of the sources that are read.
        streams: The sources as a lane reads them.
        start: Where this rank's lanes stand before the first batch.
        plan: The sizes of the global batches.
        fingerprint: What the rows depend on beside the lanes' states.
        changes: What becomes of each source, in words, if the state has another mixture.
    """

    def __init__(
        self,
        config: DataConfig,
        batch: BatchConfig,
        tokenizer: Tokenizer,
        *,
        vocab_size: int,
        seed: int,
        rank: int = 0,
        world_size: int = 1,
        state: LoaderState | None = None,
        open_source: OpenSource = open_source,
    ) -> None:
        """Open the sources and find the place to continue from.

        Args:
            config: What to read.
            batch: How many rows a step takes.
            tokenizer: The one that made the shards.
            vocab_size: Rows of the model's embedding.
            seed: The run's; `config.seed` goes first.
            rank: This rank's number for data: see `tessera.data.batch_schedule.data_rank`.
            world_size: Number of ranks.
            state: All ranks' state to continue from, or None to begin.
            open_source: How sources are opened; a function that workers can import.

        Raises:
            ValueError: If ranks or workers cannot share the rows equally, a source cannot be
                opened, or the state belongs to other data.
        """
        check_world_size(batch, lanes=config.lanes, workers=config.workers, world_size=world_size)
        if state is not None:
            config = in_order_of(config, state)
        self._config, self._batch, self._open_source = config, batch, open_source
        self._rank, self._world_size = rank, world_size
        self.plan = BatchPlan.of(batch, config.row_tokens)
        seed = seed if config.seed is None else config.seed
        form = row_format(config, tokenizer, vocab_size)
        cut = Cut(config.max_seq_len, split=config.long_documents == "split")
        self._recipe = Recipe(config=config, seed=seed, cut=cut, form=form)
        self._readers = open_readers(config, form, open_source)
        for reader in self._readers:
            check_tokenizer(reader.name, reader.documents, tokenizer)
        self.sources = tuple(reader.name for reader in self._readers)
        self.streams = lane_streams(config, self._readers, seed)
        indexes = {reader.name: reader.documents.index_fingerprint for reader in self._readers}
        self.fingerprint = fingerprint(config, indexes, tokenizer, seed)
        self.changes: list[str] = []
        lanes = range(rank, config.lanes, world_size)
        for reader in self._readers:
            warn_of_small_cache(config, reader, lanes)
        if state is None:
            first = {lane: self._recipe.first_state(lane) for lane in lanes}
            self.start = LoaderState(self.fingerprint, 0, 0, self.sources, first)
        else:
            self.changes = mixture_changes(state, self.fingerprint)
            state = continued(state, self.fingerprint, config, self._recipe.first_state)
            self.start = state.share(lanes)

    def __iter__(self) -> Generator[RankBatch, None, None]:
        """The batches from the state given at the beginning."""
        together = SPAN_OF_A_TOKEN if self._config.masking.spans else 1.0
        shapes = Shapes(self._config.row_tokens, self._config.max_seq_len, together)
        lanes = dict(self.start.lanes)
        epochs = {lane: self.epochs(lane, state) for lane, state in lanes.items()}
        finished = {lane: state.documents_finished() for lane, state in lanes.items()}
        sizes = [int(reader.documents.samples.sum()) for reader in self._readers]
        steps = self.steps()

        def by_source(
            join: Callable[[Iterable[int]], int], counts: Iterable[tuple[int, ...]]
        ) -> dict[str, int]:
            return dict(zip(self.sources, map(join, zip(*counts, strict=True)), strict=True))

        while True:
            begin = time.perf_counter()
            step, rows_before, global_rows, rows = next(steps)
            last = {row.lane: row.state for row in rows}
            epochs |= {lane: self.epochs(lane, state) for lane, state in last.items()}
            finished |= {lane: state.documents_finished() for lane, state in last.items()}
            lanes |= last
            after = replace(
                self.start, step=step + 1, rows=rows_before + global_rows, lanes=dict(lanes)
            )
            microbatches = self._microbatches(rows, shapes)
            yield RankBatch(
                step=step,
                microbatches=microbatches,
                global_rows=global_rows,
                row_digests=torch.from_numpy(np.stack([row.digest for row in rows])),
                source_tokens=by_source(sum, (row.source_tokens for row in rows)),
                source_epochs=by_source(max, epochs.values()),
                finished_documents=by_source(sum, finished.values()),
                source_documents=dict(zip(self.sources, sizes, strict=True)),
                names=partial(self._names, rows),
                wait_seconds=time.perf_counter() - begin,
                state=after,
            )

    def steps(self) -> Iterator[tuple[int, int, int, list[Row]]]:
        """The batches as rows of numpy arrays, which `__iter__` makes tensors of.

        Yields:
            The step; the rows of all global batches before it; the rows of its global batch; those
            that are this rank's.
        """
        # Slots are turns of lanes, numbered from the beginning of the run: slot s is a turn of lane
        # s % lanes. Global batches take slots in order, and this rank those with s % world_size
        # equal to its number; after `start.rows` rows its next one is the first such slot from
        # there on. With workers, worker w takes every W-th of these.
        start, world_size = self.start, self._world_size
        first_slot = start.rows + (self._rank - start.rows) % world_size
        slots = {"first_slot": first_slot, "stride": world_size}
        if self._config.workers:
            rows = worker_rows(self._recipe, self._open_source, start.lanes, **slots)
        else:
            rows = make_rows(self._recipe, self.streams, start.lanes, **slots)
        rows_before = start.rows
        for step in count(start.step):
            global_rows = self.plan.rows_at(rows_before)
            mine = [next(rows) for _ in range(global_rows // world_size)]
            yield step, rows_before, global_rows, mine
            rows_before += global_rows

    def epochs(self, lane: int, state: LaneState) -> tuple[int, ...]:
        """The epoch that a lane has reached in each source."""
        return tuple(
            stream.epoch(cursor)
            for stream, cursor in zip(self.streams(lane), state.cursors, strict=True)
        )

    def state_after(self, batch: RankBatch) -> LoaderState:
        """This rank's share of the state after a batch; `merge_states` joins those of all ranks."""
        return batch.state

    def piece_names(self, row: Row) -> list[tuple[str, str, int]]:
        """(source, document id, number of the piece) of each segment of a row from `steps`."""
        streams = self.streams(row.lane)
        names: dict[PieceId, str] = {}
        for stream in streams:
            pieces = [piece for piece in row.pieces if piece[0] == stream.number]
            ids = stream.document_ids([document for _, document, _ in pieces])
            names |= zip(pieces, ids, strict=True)
        return [(self.sources[piece[0]], names[piece], piece[2]) for piece in row.pieces]

    def _names(self, rows: Sequence[Row]) -> list[list[tuple[str, str, int]]]:
        return [self.piece_names(row) for row in rows]

    def close(self) -> None:
        """Let go of the sources' files and threads."""
        for reader in self._readers:
            reader.documents.close()

    def _microbatches(self, rows: Sequence[Row], shapes: Shapes) -> list[PackedBatch]:
        config, size = self._config, self._batch.microbatch_rows
        rate = None
        if not config.causal:
            rate = rate_for_shapes(config.masking, rows[0].number, config.row_tokens)
        return [
            packed_batch(rows[first : first + size], shapes, rate)
            for first in range(0, len(rows), size)
        ]
