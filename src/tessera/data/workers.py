"""Rows made ahead by other processes.

Workers come from a fork server: forking the training process, which has threads, could deadlock.
They end with it, whatever ends it.
"""

import ctypes
import os
import signal
import traceback
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import count

import torch
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from tessera.data.lane import LaneState
from tessera.data.production import Recipe, make_rows
from tessera.data.rows import Row
from tessera.data.sources import OpenSource, lane_streams, open_readers

_PR_SET_PDEATHSIG = 1


@dataclass(frozen=True)
class _Rows(IterableDataset):
    """The rows of one rank, of which each worker makes every W-th."""

    recipe: Recipe
    open_source: OpenSource
    states: dict[int, LaneState]
    first_slot: int
    stride: int

    def __iter__(self) -> Iterator[Row | Exception]:
        info = get_worker_info()
        assert info is not None
        _die_with_parent()
        slots = count(self.first_slot + info.id * self.stride, info.num_workers * self.stride)
        try:
            readers = open_readers(self.recipe.config, self.recipe.form, self.open_source)
            streams = lane_streams(self.recipe.config, readers, self.recipe.seed)
            for row in make_rows(self.recipe, streams, self.states, slots):
                yield replace(row, pieces=())
        except Exception as error:  # raised again in the training process
            if not isinstance(error, ValueError):
                error.add_note("in a worker of the loader:\n" + traceback.format_exc())
            yield error


def worker_rows(
    recipe: Recipe,
    open_source: OpenSource,
    states: dict[int, LaneState],
    *,
    first_slot: int,
    stride: int,
) -> Iterator[Row]:
    """The rows of the slots `first_slot, first_slot + stride, ...`, made by `workers` processes."""
    loader = DataLoader(
        _Rows(recipe, open_source, states, first_slot, stride),
        batch_size=None,
        collate_fn=_same,  # type: ignore[arg-type]
        num_workers=recipe.config.workers,
        prefetch_factor=recipe.config.prefetch_rows,
        multiprocessing_context="forkserver",
        generator=torch.Generator(),  # else it would advance the training process's
    )
    for row in loader:
        if isinstance(row, Exception):
            raise row
        yield row


def _same(row: Row | Exception) -> Row | Exception:
    return row


def _die_with_parent() -> None:
    """Have the kernel kill this process when the fork server ends, as it does with the rank."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL) == 0 and os.getppid() == 1:
        os._exit(1)
