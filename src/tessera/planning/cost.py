"""Operations, hours and money of a phase, counted before it runs."""

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.data.pipeline.pieces import FRAME_TOKENS, Cut
from tessera.data.supply import Reading
from tessera.model.flops import most_keys, needed_flops, pairs_of
from tessera.planning.gpus import Gpu
from tessera.training.config import RunConfig

UTILISATION = 0.25
"""Of the data sheet's operations: the published base model's first phase on H100 (312,000 tokens a
second and GPU at length 1024, counted as in `tessera.model.flops`); its later ones reached 0.32."""


@dataclass(frozen=True, kw_only=True)
class Segments:
    """Sums over the segments that make up one token of a phase, on average."""

    number: float
    """Segments."""
    squares: dict[int | None, float]
    """By most keys a token sees (None: all): pairs of a query and a key."""
    from_lengths: bool
    """Whether documents' lengths are known; else all segments are as long as they may be."""


@dataclass(frozen=True, kw_only=True)
class Work:
    """What a phase computes."""

    tokens: float | None
    """None if the duration is in documents of unknown lengths."""
    flops_per_token: float
    from_lengths: bool

    @property
    def flops(self) -> float | None:
        """Of the whole phase."""
        return None if self.tokens is None else self.tokens * self.flops_per_token

    def gpu_hours(self, gpu: Gpu, utilisation: float) -> float | None:
        """Over all GPUs together."""
        return None if self.flops is None else self.flops / (gpu.bf16_flops * utilisation) / 3600


def work_of(config: RunConfig, readings: Sequence[Reading]) -> Work:
    """What a phase computes, from the lengths of its documents where they are known."""
    model, data = config.model, config.train_data
    windows = {model.window(layer) for layer in range(model.num_hidden_layers)}
    most = {most_keys(window, data.causal) for window in windows}
    cut = Cut(data.max_seq_len, split=data.long_documents == "split")
    segments = _segments(cut, readings, most, data.causal)
    predicted = sum(data.predicted_shares) / 2 * (1 - FRAME_TOKENS * segments.number)
    per_token = needed_flops(
        model, 1.0, predicted, segments.squares.__getitem__, causal=data.causal
    )
    known = [reading.wanted for reading in readings if reading.wanted is not None]
    return Work(
        tokens=sum(known) if len(known) == len(readings) else None,
        flops_per_token=per_token,
        from_lengths=segments.from_lengths,
    )


def _segments(
    cut: Cut, readings: Sequence[Reading], most: set[int | None], causal: bool
) -> Segments:
    number, squares = 0.0, dict.fromkeys(most, 0.0)
    for reading in readings:
        lengths, tokens = reading.supply.lengths, reading.supply.tokens
        if lengths is None or not tokens:
            whole = cut.max_seq_len
            seen = {n: whole if n is None else min(n, whole) for n in most}
            each = {n: float(pairs_of(whole, seen[n], causal)) / whole for n in most}
            return Segments(number=1 / whole, squares=each, from_lengths=False)
        for segment_lengths, count in cut.segments(lengths.values):
            times = count * lengths.documents * reading.share / tokens
            number += float(times.sum())
            for n in most:
                shown = segment_lengths if n is None else segment_lengths.clip(max=n)
                squares[n] += float(pairs_of(segment_lengths, shown, causal) @ times)
    return Segments(number=number, squares=squares, from_lengths=True)
