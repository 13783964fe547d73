"""What a person watching sees: plain lines, from rank 0 alone."""

import contextlib
import sys
import time

from tessera.files import JsonObject
from tessera.quantities import Duration, short_number, short_time
from tessera.training import distributed
from tessera.training.config import RunConfig


def say(text: str) -> None:
    """Print a line for people, on rank 0 alone."""
    if distributed.rank() == 0:
        with contextlib.suppress(OSError):  # nobody is listening any more; training goes on
            print(text, flush=True)


def say_complete(config: RunConfig) -> None:
    """That a phase has nothing left to do."""
    say(f"{config.name}: complete already, in {config.run_folder}; nothing to do")


_LOG_TIMES = 6
"""Lines are so many times rarer where nobody watches: in a log that is no terminal."""
_RECORDED = {"tok": "tokens", "ba": "step", "sp": "total_documents"}
"""Where a record of `metrics.jsonl` keeps the count of each unit."""


class ProgressLines:
    """A line now and then: done of total, loss, rate, time left."""

    def __init__(
        self, name: str, duration: Duration, *, every_seconds: float, done: int = 0
    ) -> None:
        """Begin, where `done` of the duration is behind a phase that is resumed."""
        self._name = name
        self._duration = duration
        self._seconds = every_seconds if sys.stdout.isatty() else _LOG_TIMES * every_seconds
        self._last = -float("inf")
        self._done = done
        self._recent: list[tuple[float, float]] = []

    def __call__(self, record: JsonObject) -> None:
        """Print a line about a record of `metrics.jsonl`, if it is time for one."""
        if record["kind"] == "evaluation":
            self._evaluation(record)
            return
        if record["kind"] == "probes":
            self._probes(record)
            return
        done, total = record[_RECORDED[self._duration.unit]], self._duration.value
        self._recent = [*self._recent[-49:], (record["step_seconds"], done - self._done)]
        self._done = done
        now = time.monotonic()
        if now - self._last < self._seconds and done < total:
            return
        self._last = now
        rate = sum(n for _, n in self._recent) / max(1e-9, sum(s for s, _ in self._recent))
        loss = "not finite" if record["loss"] is None else f"{record['loss']:.4f}"
        loss += " (skipped)" if record.get("skipped") else ""
        causal = "causal " * (record.get("objective") == "causal")
        say(
            f"{self._name}  {short_number(done)} of {short_number(total)} {self._duration.unit} "
            f"({min(1.0, done / total):.0%})  step {record['step']}  "
            f"{causal}loss {loss}  lr {_rate(record)}  "
            f"{short_number(record['tokens_per_second'])} tok/s  "
            f"{short_time(max(0.0, total - done) / rate)} left"
        )

    def _evaluation(self, record: JsonObject) -> None:
        causal = "causal " * (record.get("objective") == "causal")
        for source, score in record["sources"].items():
            loss = "not finite" if score["loss"] is None else f"{score['loss']:.4f}"
            say(
                f"{self._name}  evaluation at step {record['step']}  {source}: "
                f"{causal}loss {loss}  accuracy {score['accuracy']:.1%}"
            )

    def _probes(self, record: JsonObject) -> None:
        said = []
        if "context" in record:
            said.append(f"context gains {_nats(record['context']['gain'])}")
        if "recall" in record:
            each = ", ".join(f"{d} {one['accuracy']:.0%}" for d, one in record["recall"].items())
            said.append(f"recall {each.replace('_', ' ')}")
        if "linear_probe" in record:
            accuracy = record["linear_probe"]["accuracy"]
            said.append(f"linear probe {'not finite' if accuracy is None else f'{accuracy:.1%}'}")
        said.append(f"{record['seconds']:.1f} s, {record['time_share']:.1%} of the time so far")
        say(f"{self._name}  probes at step {record['step']}  {'; '.join(said)}")


def _nats(value: float | None) -> str:
    return "not finite" if value is None else f"{value:.4f} nats"


def _rate(record: JsonObject) -> str:
    """The learning rate; the almost nothing that a warm-up begins with is 0 to a reader."""
    peak = record.get("max_lr") or 0.0
    return "0" if record["lr"] < 1e-6 * peak else f"{record['lr']:.2e}"


def warn(text: str) -> None:
    """Print a warning to standard error, on rank 0 alone."""
    if distributed.rank() == 0:
        with contextlib.suppress(OSError):
            print(f"tessera: warning: {text}", file=sys.stderr, flush=True)
