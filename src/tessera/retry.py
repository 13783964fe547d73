"""Trying again what a network may refuse for a moment. Imports no torch."""

import time
from collections.abc import Callable
from typing import TypeVar

Value = TypeVar("Value")


def persistently(
    work: Callable[[], Value],
    *,
    attempts: int,
    first_pause_seconds: float,
    is_final: Callable[[Exception], bool] = lambda error: False,
    before_pause: Callable[[int, float, Exception], None] = lambda attempt, seconds, error: None,
) -> Value:
    """What `work` returns, tried again after pauses that double each time.

    Args:
        work: what to do.
        attempts: how often to try at most, from 1.
        first_pause_seconds: before the second attempt.
        is_final: whether an error is of a kind that trying again does not change.
        before_pause: told the attempt that failed, from 1, the pause in seconds, and the error.

    Raises:
        Exception: what the last attempt raised.
    """
    for attempt in range(1, attempts + 1):
        try:
            return work()
        except Exception as error:  # each kind of remote raises its own
            if attempt == attempts or is_final(error):
                raise
            seconds = first_pause_seconds * 2 ** (attempt - 1)
            before_pause(attempt, seconds, error)
            time.sleep(seconds)
    raise ValueError(f"attempts must be at least 1; got {attempts}")
