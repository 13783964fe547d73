"""How far a phase is, and what one optimizer step was: each rank's share, and the whole."""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

import numpy as np
import torch

from tessera.batch import RankBatch
from tessera.data.digest import batch_digest, digest_sum
from tessera.files import JsonObject
from tessera.quantities import COUNTED, Duration, Unit


@dataclass
class Clock:
    """How much of the phase is done, in the unit of its duration and in all others."""

    steps: int = 0
    tokens: int = 0
    documents: int = 0
    rows: int = 0
    source_tokens: dict[str, int] = field(default_factory=dict)
    """Of `tokens`, those of each source."""

    @classmethod
    def from_progress(cls, progress: JsonObject) -> "Clock":
        """The clock that a checkpoint's `progress` holds, among other things."""
        return cls(**{f.name: progress[f.name] for f in fields(cls) if f.name in progress})

    def done(self, unit: Unit) -> int:
        """Progress in a unit of `tessera.quantities.Duration`."""
        return getattr(self, COUNTED[unit])

    def has_reached(self, duration: Duration) -> bool:
        """Whether so much is done."""
        return self.done(duration.unit) >= duration.value


class Marks:
    """Notices what was passed since it looked last: milestones, and multiples of an interval."""

    def __init__(self, clock: Clock) -> None:
        """Look for the first time."""
        self._clock = clock
        self.look()

    def look(self) -> None:
        """Take what is done now for what was done before."""
        self._before = {unit: self._clock.done(unit) for unit in COUNTED}

    def passed(self, milestone: Duration) -> bool:
        """Whether a milestone lies in what was done since."""
        unit = milestone.unit
        return self._before[unit] < milestone.value <= self._clock.done(unit)

    def crossed(self, interval: Duration | None) -> bool:
        """Whether a multiple of the interval lies in what was done since; never, without one."""
        if interval is None:
            return False
        before, now = self._before[interval.unit], self._clock.done(interval.unit)
        return now // interval.value > before // interval.value


@dataclass(frozen=True, kw_only=True)
class Share:
    """One rank's part of a step, small enough to tell every other rank."""

    loss_sum: float
    grad_norm: float
    """Over all parameters, after the ranks' gradients were averaged, before any clipping."""
    masked_tokens: int
    tokens: int
    slots: int
    """Token slots, padding included."""
    documents: int
    rows: np.ndarray
    """(R,) int64: numbers of this rank's rows in the global stream."""
    digest_sum: np.ndarray
    """(4,) int64: of this rank's rows."""
    source_tokens: dict[str, int]
    source_epochs: dict[str, int]
    finished_documents: dict[str, int]
    source_documents: dict[str, int]
    flops: float
    wait_seconds: float
    stop_signal: int | None
    """A signal this rank was sent."""

    def __reduce__(self) -> tuple[Any, ...]:
        # Each rank unpickles those of all in each step; arrays take ten times as long as lists.
        values = (getattr(self, one.name) for one in fields(self))
        return _unpickled, tuple(v.tolist() if isinstance(v, np.ndarray) else v for v in values)


def _unpickled(*values: Any) -> Share:
    given = dict(zip((one.name for one in fields(Share)), values, strict=True))
    for name in ("rows", "digest_sum"):
        given[name] = np.array(given[name], dtype=np.int64)
    return Share(**given)


@dataclass(frozen=True, kw_only=True)
class Step:
    """A whole step, the same on every rank."""

    loss: float
    """Mean over the masked tokens of the global batch, in nats; NaN if there were none."""
    grad_norm: float
    masked_tokens: int
    tokens: int
    slots: int
    documents: int
    rows: np.ndarray
    """(R,) int64, sorted."""
    digest: str
    """Hexadecimal sha256 of the global batch, whatever the number of ranks."""
    source_tokens: dict[str, int]
    source_epochs: dict[str, int]
    epochs_read: dict[str, float] = field(default_factory=dict)
    """How often each source was read so far: 0.74 if three quarters of its documents were."""
    flops: float
    wait_seconds: float
    """Of the rank that waited longest."""
    stop_signal: int | None

    @property
    def finite(self) -> bool:
        """Whether loss and gradient are numbers that may touch the weights."""
        return math.isfinite(self.grad_norm) and (
            math.isfinite(self.loss) or self.masked_tokens == 0
        )


def share_of(
    batch: RankBatch,
    *,
    loss_sum: float,
    grad_norm: float,
    flops: float,
    stop_signal: int | None,
) -> Share:
    """This rank's part of a step."""
    microbatches = batch.microbatches
    return Share(
        loss_sum=loss_sum,
        grad_norm=grad_norm,
        masked_tokens=batch.masked_tokens,
        tokens=batch.tokens,
        slots=sum(m.input_ids.numel() for m in microbatches),
        documents=batch.documents,
        rows=torch.cat([m.rows for m in microbatches]).numpy(),
        digest_sum=digest_sum(batch.row_digests.numpy()),
        source_tokens=batch.source_tokens,
        source_epochs=batch.source_epochs,
        finished_documents=batch.finished_documents,
        source_documents=batch.source_documents,
        flops=flops,
        wait_seconds=batch.wait_seconds,
        stop_signal=stop_signal,
    )


def whole(shares: Sequence[Share]) -> Step:
    """Put the ranks' parts together."""
    masked = sum(share.masked_tokens for share in shares)
    loss_sum = math.fsum(share.loss_sum for share in shares) if _all_finite(shares) else math.nan
    rows = np.concatenate([share.rows for share in shares])
    finished = _merged(sum, [share.finished_documents for share in shares])
    documents = _merged(max, [share.source_documents for share in shares])
    return Step(
        loss=loss_sum / masked if masked else math.nan,
        grad_norm=max((share.grad_norm for share in shares), key=_nan_last),
        masked_tokens=masked,
        tokens=sum(share.tokens for share in shares),
        slots=sum(share.slots for share in shares),
        documents=sum(share.documents for share in shares),
        rows=np.sort(rows),
        digest=batch_digest(digest_sum(np.stack([share.digest_sum for share in shares]))),
        source_tokens=_merged(sum, [share.source_tokens for share in shares]),
        source_epochs=_merged(max, [share.source_epochs for share in shares]),
        epochs_read={name: finished[name] / documents[name] for name in finished},
        flops=math.fsum(share.flops for share in shares),
        wait_seconds=max(share.wait_seconds for share in shares),
        stop_signal=next((s.stop_signal for s in shares if s.stop_signal is not None), None),
    )


def counted_as(causal: bool) -> str:
    """What a record calls the number of tokens that were predicted."""
    return "predicted_tokens" if causal else "masked_tokens"


def finite_or_none(value: float) -> float | None:
    """JSON knows no NaN and no infinity."""
    return value if math.isfinite(value) else None


def _all_finite(shares: Sequence[Share]) -> bool:
    return all(math.isfinite(share.loss_sum) for share in shares)


def _nan_last(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _merged(how: Callable[[Iterable[int]], int], parts: Sequence[dict[str, int]]) -> dict[str, int]:
    names = sorted({name for part in parts for name in part})
    return {name: how([part[name] for part in parts if name in part]) for name in names}
