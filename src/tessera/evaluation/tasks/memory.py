"""Doing again with half the batch what did not fit into memory."""

import gc
from collections.abc import Callable
from typing import TypeVar

import torch

Result = TypeVar("Result")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether a failure is that of a GPU's or the machine's memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    said = str(error)
    return isinstance(error, RuntimeError) and "not enough memory" in said


def halving(attempt: Callable[[int], Result], batch: int, notes: list[str]) -> Result:
    """The result of an attempt with `batch`, or with a half, a quarter ... of it: whole divisors.

    Args:
        attempt: gets how many examples may be in memory at a time.
        batch: how many to begin with.
        notes: gets what was halved.

    Raises:
        ValueError: not even one example fits.
    """
    size = batch
    while True:
        try:
            result = attempt(size)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if size == 1:
                raise ValueError("out of memory with a single example at a time") from error
        else:
            if size < batch:
                notes.append(
                    f"out of memory with {batch} examples at a time: done {size} at a time"
                )
            return result
        size = next(part for part in range(size // 2, 0, -1) if batch % part == 0)
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.empty_cache()
