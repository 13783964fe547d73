"""What a person watching sees: plain lines, from rank 0 alone."""

import contextlib
import sys
import time
from typing import Any

from tessera.quantities import Duration
from tessera.training import distributed
from tessera.training.config import RunConfig


def say(text: str) -> None:
    """A line for people."""
    if distributed.rank() == 0:
        with contextlib.suppress(OSError):  # nobody is listening any more; training goes on
            print(text, flush=True)


def say_complete(config: RunConfig) -> None:
    """That a phase has nothing left to do."""
    say(f"{config.name}: complete already, in {config.run_folder}; nothing to do")


class Progress:
    """A line now and then: done of total, loss, rate, time left."""

    def __init__(self, name: str, duration: Duration, seconds: float) -> None:
        self._name = name
        self._duration = duration
        self._seconds = seconds
        self._last = -float("inf")
        self._recent: list[tuple[float, float]] = []

    def __call__(self, record: dict[str, Any]) -> None:
        """A sink for records."""
        if record["kind"] == "evaluation":
            self._evaluation(record)
            return
        key = {"tok": "tokens", "ba": "step", "sp": "total_documents"}[self._duration.unit]
        done, total = record[key], self._duration.value
        amount = {"tok": record["step_tokens"], "ba": 1, "sp": record["documents"]}
        self._recent = [
            *self._recent[-49:],
            (record["step_seconds"], amount[self._duration.unit]),
        ]
        now = time.monotonic()
        if now - self._last < self._seconds and done < total:
            return
        self._last = now
        rate = sum(n for _, n in self._recent) / max(1e-9, sum(s for s, _ in self._recent))
        loss = "skipped" if record["loss"] is None else f"{record['loss']:.4f}"
        say(
            f"{self._name}  {amount_of(done)} of {amount_of(total)} {self._duration.unit} "
            f"({min(1.0, done / total):.0%})  step {record['step']}  loss {loss}  "
            f"lr {record['lr']:.2e}  {amount_of(record['tokens_per_second'])} tok/s  "
            f"{span(max(0.0, total - done) / rate)} left"
        )

    def _evaluation(self, record: dict[str, Any]) -> None:
        for source, score in record["sources"].items():
            loss = "not finite" if score["loss"] is None else f"{score['loss']:.4f}"
            say(
                f"{self._name}  evaluation at step {record['step']}  {source}: "
                f"loss {loss}  accuracy {score['accuracy']:.1%}"
            )


def amount_of(number: float) -> str:
    """1_234_567 -> '1.23M'."""
    for size, unit in ((1e12, "T"), (1e9, "B"), (1e6, "M"), (1e3, "k")):
        if number >= size:
            return f"{number / size:.4g}{unit}"
    return f"{number:.4g}"


def span(seconds: float) -> str:
    """A length of time in its two largest units."""
    whole = round(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"


def warn(text: str) -> None:
    """A line for people that is not to be missed."""
    if distributed.rank() == 0:
        with contextlib.suppress(OSError):
            print(f"tessera: warning: {text}", file=sys.stderr, flush=True)
