"""The step of a phase on many GPUs, its hours, and where adding GPUs ends to pay.

What a rank computes comes from `tessera.planning`, `floor.py` or a measured step, what ranks
exchange from `communication.py`; what else is assumed is in `STATED`.
"""

import functools
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import floor
from communication import (
    Gradient,
    Network,
    all_reduce_seconds,
    exchange_seconds,
    exposed_seconds,
    half_seconds,
    whole_seconds,
)
from models import MODELS

from tessera.config import ConfigError
from tessera.data.batch_schedule import BatchPlan, world_problems
from tessera.model.config import ModelConfig
from tessera.planning.cost import UTILISATION, Work
from tessera.planning.disk import disk_of, steps_of
from tessera.planning.gpus import GPUS, Gpu, gpu_of
from tessera.planning.memory import parameters
from tessera.planning.shapes import useful_share
from tessera.training.config import RunConfig

RESULTS = Path(__file__).parent / "results"
THRESHOLDS = (0.9, 0.7, 0.5)

PUBLISHED_HOURS = {
    ("base", 1_719_000_000_000): 191.1,
    ("base", 250_000_000_000): 36.3,
    ("base", 50_000_000_000): 7.5,
    ("large", 1_719_000_000_000): 420.4,
    ("large", 250_000_000_000): 75.1,
    ("large", 50_000_000_000): 15.3,
}
"""Of training alone on eight H100, by model and tokens (https://arxiv.org/abs/2412.13663)."""

WITHIN = {"a100-40": 300e9, "a100-80": 300e9, "h100": 450e9, "h200": 450e9, "b200": 900e9} | {
    "l40s": 32e9,
    "4090": 32e9,
}
"""Bytes per second of a GPU's links to its node, one way: NVLink 3, 4 and 5, or PCIe 4 x16."""
BETWEEN = {
    "ndr": ("InfiniBand NDR, 8 x 400 Gb/s a node", 400e9, 14e-6),
    "hdr": ("InfiniBand HDR, 8 x 200 Gb/s a node", 200e9, 14e-6),
    "ethernet": ("Ethernet, 100 Gb/s a node", 12.5e9, 30e-6),
}
"""Bytes per second of a node's adapters together, one way, and seconds of a hop."""
STATED = {
    "link_share": (0.8, "of a link's speed is reached"),
    "hop_within": (3.4e-6, "seconds of a hop within a node"),
    "ranks_per_node": (8, "GPUs of a node"),
    "launch": (0.3e-3, "host's seconds to launch a layer's kernels, forward and backward"),
    "object": (2056, "bytes of a rank's part of a step, which every rank is told"),
    "unpickle": (15e-6, "host's seconds to unpickle and add up a rank's part of a step"),
    "waits": (4, "small all-reduces of a step that Composer waits for"),
    "optimizer": (36, "bytes an optimizer moves for a parameter"),
    "disk": (2e9, "bytes per second of a local disk, for a checkpoint"),
    "to_host": (25e9, "bytes per second from a GPU to its host"),
    "upload": (250e6, "bytes per second of one uploading process"),
}
"""What is assumed, and what it means; benchmarks/README.md tells where each comes from."""


def assumed(changes: Sequence[str] = ()) -> dict[str, float]:
    """The stated numbers, with `name=number` in the place of some.

    Raises:
        ConfigError: naming those there are.
    """
    numbers = {name: float(value) for name, (value, _) in STATED.items()}
    for change in changes:
        name, _, text = change.partition("=")
        try:
            value = float(text)
        except ValueError:
            value = -1.0
        if name not in STATED or not 0 < value < float("inf"):
            raise ConfigError(
                f"--set {change}: NAME=NUMBER above 0, NAME one of {', '.join(STATED)}"
            )
        numbers[name] = value
    return numbers


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A phase, and what of it does not depend on how many GPUs there are."""

    config: RunConfig
    work: Work
    gpu: Gpu
    speed: float
    """Tokens per second of one GPU that computes full microbatches and talks to nobody."""
    stated: dict[str, float] = field(default_factory=assumed)

    @property
    def slots(self) -> int:
        """Token slots of the full batch."""
        return self.config.batch.rows * self.config.train_data.row_tokens

    @property
    def microbatch_slots(self) -> int:
        """Token slots of a full microbatch."""
        return self.config.batch.microbatch_rows * self.config.train_data.row_tokens


@dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of an optimizer step, by what they go to; one after the other."""

    compute: float
    """Of the microbatches."""
    gradients: float
    """Of exchanging gradients and, sharded, weights, as far as nothing hides it."""
    exchange: float
    """Of small exchanges for which the GPU waits."""
    optimizer: float
    loader: float
    """Of waiting for a batch."""
    hidden: float
    """Of exchanging gradients while the backward pass goes on: not part of the sum."""

    @property
    def seconds(self) -> float:
        """All of it."""
        return self.compute + self.gradients + self.exchange + self.optimizer + self.loader


def step_of(phase: Phase, ranks: int, slots: float, network: Network) -> Step:
    """A step in which every rank computes so many token slots."""
    full, model = float(phase.microbatch_slots), phase.config.model
    whole, rest = divmod(slots, full)
    parts = [(whole, full), (1, rest)] if rest else [(whole, full)]
    times = [(count, microbatch_seconds(phase, part)) for count, part in parts if count]
    numbers = parameters(model)
    sharded = phase.config.compute.sharding == "fsdp"
    exposed = hidden = 0.0
    if sharded:
        exposed = sum(n * _sharded_seconds(phase, time, ranks, network) for n, time in times)
    elif ranks > 1:
        order, backward = gradients(
            model, times[-1][1], phase.work.flops_per_token, phase.config.train_data.masking.rate
        )
        exposed = exposed_seconds(order, backward, ranks, network)
        hidden = whole_seconds(order, ranks, network) - exposed
    small = phase.stated["waits"]
    exchange = small * all_reduce_seconds(8, ranks, network) + exchange_seconds(
        phase.stated["object"], phase.stated["unpickle"], ranks, network
    )
    own = numbers / ranks if sharded else float(numbers)
    moved = phase.stated["optimizer"] * own
    before = Step(
        compute=sum(n * time for n, time in times),
        gradients=exposed,
        exchange=exchange,
        optimizer=moved / phase.gpu.memory_bandwidth,
        loader=0.0,
        hidden=max(0.0, hidden),
    )
    return replace(before, loader=max(0.0, slots / loader_speed(phase.config) - before.seconds))


def microbatch_seconds(phase: Phase, slots: float) -> float:
    """Forward and backward pass: slower than in proportion where few tokens leave a GPU idle."""
    model, gpu = phase.config.model, phase.gpu
    full = useful_share(model, phase.microbatch_slots, gpu)
    waste = max(1.0, full / useful_share(model, max(1, int(slots)), gpu))
    launching = phase.stated["launch"]
    return max(slots * waste / phase.speed, launching * model.num_hidden_layers)


def gradients(
    model: ModelConfig, seconds: float, flops_per_token: float, masked: float = 0.3
) -> tuple[list[Gradient], float]:
    """Gradients in the order of the backward pass of a microbatch, and its seconds.

    It is two thirds of the microbatch. The head goes first, then the layers from the last, in equal
    parts; the embedding is last, being the decoder as well. Layers are compiled: all gradients of
    one are ready when it is done.
    """
    wide, inner, words = model.hidden_size, model.intermediate_size, model.vocab_size
    backward = seconds * 2 / 3
    head = min(0.9, 6 * masked * (wide * wide + wide * words) / flops_per_token)
    layer = (1 - head) * backward / model.num_hidden_layers
    sizes = [(words, head * backward), (wide, head * backward), (wide * wide, head * backward)]
    sizes.append((wide, head * backward))  # the final norm
    for number in range(model.num_hidden_layers):
        done = min(backward, head * backward + (number + 1) * layer)
        norms = [wide, wide] if number < model.num_hidden_layers - 1 else [wide]
        matrices = [wide * inner, 2 * inner * wide, wide * wide, 3 * wide * wide]
        sizes += [(size, done) for size in [*matrices, *norms]]
    sizes += [(wide, backward), (words * wide, backward)]
    return [Gradient(4 * size, ready) for size, ready in sizes], backward


def _sharded_seconds(phase: Phase, seconds: float, ranks: int, network: Network) -> float:
    """What FSDP adds to a microbatch: weights, twice, and gradients, all in float32.

    A layer's weights come while the one before computes, its gradients leave while the next does;
    those of embedding and head (the root) have nothing to hide behind.
    """
    model = phase.config.model
    wide, depth = model.hidden_size, model.num_hidden_layers
    layer = 4 * wide * wide + 3 * wide * model.intermediate_size + 2 * wide
    root = parameters(model) - depth * layer
    gather = scatter = half_seconds(4 * layer, ranks, network)
    forward, backward = seconds / 3 / depth, seconds * 2 / 3 / depth
    late = max(0.0, gather - forward) + max(0.0, gather + scatter - backward)
    ends = 2 * half_seconds(4 * root, ranks, network)
    return ends + depth * late if ranks > 1 else 0.0


def loader_speed(config: RunConfig) -> float:
    """Tokens per second of one rank's loader, as `results/loader.json` has it."""
    measured = _measured_loader()
    shape = "base phase 1" if config.train_data.max_seq_len <= 1024 else "base phase 2"
    return measured[shape]["mtok_per_s"] * 1e6 * max(1, config.train_data.workers)


@functools.cache
def _measured_loader() -> dict[str, Any]:
    return json.loads((RESULTS / "loader.json").read_text())


def network_of(gpu: str, name: str, stated: dict[str, float], gbit: float | None = None) -> Network:
    """The links of a cluster, at the speed that is reached.

    Args:
        gpu: as `gpu_of` knows it.
        name: of `BETWEEN`.
        stated: from `assumed`.
        gbit: a node's Gb/s to others, instead of that network's.

    Raises:
        ConfigError: naming the networks there are.
    """
    if name not in BETWEEN:
        raise ConfigError(f"--network {name}: unknown; one of {', '.join(BETWEEN)}")
    title, between, hop = BETWEEN[name]
    if gbit is not None:
        if not 0 < gbit < float("inf"):
            raise ConfigError(f"--gbit must be positive; got {gbit:g}")
        title, between = f"{gbit:g} Gb/s a node", gbit * 1e9 / 8
    return Network(
        title=title,
        ranks_per_node=max(1, int(stated["ranks_per_node"])),
        within=stated["link_share"] * WITHIN[gpu.lower()],
        between=stated["link_share"] * between,
        hop_within=stated["hop_within"],
        hop_between=hop,
    )


def efficiency(phase: Phase, ranks: int, slots: float, network: Network) -> float:
    """Tokens per second of a rank, beside one that computes the whole batch alone."""
    alone = step_of(phase, 1, slots * ranks, network).seconds
    return alone / (ranks * step_of(phase, ranks, slots, network).seconds)


# ---- the recipe on so many ranks


def adapted(config: RunConfig, ranks: int) -> tuple[RunConfig, list[str]]:
    """The phase as so many ranks can share it, nearest to what it is; what had to change.

    Rows are made shorter, by a whole number and never below `max_seq_len`, so that more of them
    make the same batch; if that is not enough, the batch is rounded to what divides.
    """
    data, batch = config.train_data, config.batch
    if not world_problems(batch, lanes=data.lanes, workers=data.workers, world_size=ranks):
        return config, []
    parts = [
        part
        for part in range(1, data.row_tokens // data.max_seq_len + 1)
        if data.row_tokens % part == 0
    ]
    warm = batch.warmup
    growing = [] if warm is None else [warm.initial_rows, warm.increment_rows]
    exact = [p for p in parts if all(n * p % ranks == 0 for n in [batch.rows, *growing])]
    nearly = [p for p in parts if batch.rows * p % ranks == 0]
    part = (exact or nearly or parts[-1:])[0]
    rows = max(1, round(batch.rows * part / ranks)) * ranks
    if warm is not None:
        first, more = (max(1, round(n * part / ranks)) * ranks for n in growing)
        first = min(first, rows)
        more = more if (rows - first) % more == 0 else ranks
        warm = replace(warm, initial_rows=first, increment_rows=more)
    shorter = replace(
        data, row_tokens=data.row_tokens // part, lanes=-(-data.lanes // ranks) * ranks, workers=0
    )
    micro = min(batch.microbatch_rows * part, rows)
    new = replace(
        config,
        train_data=replace(shorter, workers=_workers(data.workers, shorter.lanes // ranks)),
        batch=replace(batch, rows=rows, microbatch_rows=micro, warmup=warm),
    )
    return new, list(_changes(config, new))


def _workers(asked: int, lanes: int) -> int:
    return max((n for n in range(asked + 1) if n == 0 or lanes % n == 0), default=0)


def _changes(old: RunConfig, new: RunConfig) -> list[str]:
    pairs: dict[str, Callable[[RunConfig], object]] = {
        "train_data.row_tokens": lambda c: c.train_data.row_tokens,
        "train_data.lanes": lambda c: c.train_data.lanes,
        "train_data.workers": lambda c: c.train_data.workers,
        "batch.rows": lambda c: c.batch.rows,
        "batch.warmup.initial_rows": lambda c: c.batch.warmup and c.batch.warmup.initial_rows,
        "batch.warmup.increment_rows": lambda c: c.batch.warmup and c.batch.warmup.increment_rows,
    }
    return [
        f"{key} {value(old)} -> {value(new)}"
        for key, value in pairs.items()
        if value(old) != value(new)
    ]


def predicted(phase: Phase, ranks: int, network: Network) -> dict[str, Any]:
    """A phase on so many GPUs: its step, its hours, and what stands beside the step."""
    config, changes = adapted(phase.config, ranks)
    own = replace(phase, config=config)
    rows = config.batch.rows // ranks
    slots = rows * config.train_data.row_tokens
    step = step_of(own, ranks, slots, network)
    steps = steps_of(config, phase.work.tokens)
    seconds = training_seconds(own, ranks, network)
    saving = _checkpoints(own, ranks, network, steps, seconds)
    per_rank = slots / step.seconds
    total = None if seconds is None else seconds + (saving["pause_seconds_of_the_phase"] or 0.0)
    return {
        "gpus": ranks,
        "changed": changes,
        "batch_slots": config.batch.rows * config.train_data.row_tokens,
        "rows_per_rank": rows,
        "row_tokens": config.train_data.row_tokens,
        "microbatches": rows / config.batch.microbatch_rows,
        "first_microbatches": BatchPlan.of(config.batch, 1).sizes[0]
        / ranks
        / config.batch.microbatch_rows,
        "step": {**vars(step), "seconds": step.seconds},
        "tokens_per_second": per_rank * ranks,
        "tokens_per_second_and_gpu": per_rank,
        "efficiency": efficiency(own, ranks, slots, network),
        "batch_slots_for_90_percent": batch_needed(own, ranks, THRESHOLDS[0], network),
        "steps": steps,
        "hours": None if total is None else total / 3600,
        "checkpoint": saving,
        "loader": {
            "share_of_its_speed": per_rank / loader_speed(config),
            "node_bytes_per_second": 2 * per_rank * min(ranks, network.ranks_per_node),
        },
    }


def training_seconds(phase: Phase, ranks: int, network: Network) -> float | None:
    """All steps of the phase, those of the growing batch included; without pauses."""
    config = phase.config
    total = steps_of(config, phase.work.tokens)
    if total is None:
        return None
    plan = BatchPlan.of(config.batch, config.train_data.row_tokens)
    ends = [*plan.first_steps[1:], total]
    seconds = 0.0
    for size, first, end in zip(plan.sizes, plan.first_steps, ends, strict=True):
        steps = max(0.0, min(end, total) - first)
        slots = size // ranks * config.train_data.row_tokens
        seconds += steps * step_of(phase, ranks, slots, network).seconds
    return seconds


def _checkpoints(
    phase: Phase, ranks: int, network: Network, steps: float | None, seconds: float | None
) -> dict[str, Any]:
    config = phase.config
    size = disk_of(config, phase.work.tokens).checkpoint_bytes
    pause = size / phase.stated["to_host"]
    pause += size / phase.stated["disk"]
    if config.compute.sharding == "fsdp":
        pause += half_seconds(size, ranks, network)
    interval, apart = config.checkpoints.interval, None
    done = {"ba": steps, "tok": phase.work.tokens}.get("" if interval is None else interval.unit)
    number = None if interval is None or done is None else done // interval.value
    if number and seconds is not None:
        apart = seconds / number
    return {
        "bytes": size,
        "pause_seconds": pause,
        "upload_seconds": size / phase.stated["upload"],
        "seconds_apart": apart,
        "pause_seconds_of_the_phase": None if number is None else number * pause,
    }


# ---- where it ends


def limits(phase: Phase, network: Network, most: int = 65_536) -> list[dict[str, Any]]:
    """The fewest GPUs at which a threshold is missed, why, and the batch that would reach it there.

    Nodes are added one by one; the batch stays, and is shared to the token. No more than leave
    every rank a sequence of full length.
    """
    step = network.ranks_per_node
    room = phase.slots // phase.config.train_data.max_seq_len
    counts = range(step, min(room, most) + 1, step)
    reached: dict[int, float] = {}
    for count in counts:
        reached[count] = efficiency(phase, count, phase.slots / count, network)
        if reached[count] < THRESHOLDS[-1]:
            break
    found = []
    for threshold in THRESHOLDS:
        first = next((n for n, share in reached.items() if share < threshold), None)
        found.append(
            {
                "efficiency": threshold,
                "gpus": first,
                "reached": first and reached[first],
                "most_lost_to": first and _most_lost_to(phase, first, network),
                "batch_slots_needed": first and batch_needed(phase, first, threshold, network),
                "most_gpus": counts[-1] if counts else None,
            }
        )
    return found


def _most_lost_to(phase: Phase, ranks: int, network: Network) -> str:
    """The part of a step that takes most of what one rank alone would not need."""
    step = step_of(phase, ranks, phase.slots / ranks, network)
    alone = step_of(phase, 1, float(phase.slots), network)
    lost = {name: seconds - getattr(alone, name) / ranks for name, seconds in vars(step).items()}
    del lost["hidden"]
    return max(lost, key=lambda name: lost[name])


def batch_needed(phase: Phase, ranks: int, threshold: float, network: Network) -> float | None:
    """Token slots of the least batch, to within 2 %, that is so efficient; None if none is."""
    slots = phase.slots / ranks
    for _ in range(500):
        if efficiency(phase, ranks, slots, network) >= threshold:
            return slots * ranks
        slots *= 1.02
    return None


# ---- what a GPU computes


def speeds(config: RunConfig, work: Work, name: str) -> dict[str, tuple[float, str]]:
    """Tokens per second of one GPU by where the number comes from, and what it is."""
    gpu = gpu_of(name)
    found = {}
    measured = _measured_speed(config, gpu)
    if measured is not None:
        found["measured"] = measured, f"measured on this {gpu.title}: benchmarks/results"
    rate = gpu.bf16_flops * UTILISATION / work.flops_per_token
    found["published"] = rate, f"{UTILISATION:.0%} of the data sheet, the published base phase 1"
    rate = 1 / floor.seconds_per_token(config.model, work.flops_per_token, gpu)
    found["floor"] = rate, "the most a GPU could do, floor.py"
    return found


def _measured_speed(config: RunConfig, gpu: Gpu) -> float | None:
    """Of a training step at this shape and length, if train_step.py met this GPU."""
    for path in sorted(RESULTS.glob("*.json")):
        record = json.loads(path.read_text())
        if gpu.title.split()[0] not in str(record.get("device", "")):
            continue
        for entry in record.get("entries", {}).values():
            same = MODELS.get(entry["model"]) == replace(
                config.model, global_rope_theta=ModelConfig().global_rope_theta
            )
            if (
                same
                and not entry["changes"]
                and (entry["max_length"] == config.train_data.max_seq_len)
            ):
                return float(entry["variants"][0]["tokens_per_second"])
    return None


def against_published(phase: Phase, network: Network) -> dict[str, Any] | None:
    """The recipe on eight H100, beside what its authors needed; None if it is another run."""
    shapes = {parameters(MODELS[name]): name for name in ("base", "large")}
    key = shapes.get(parameters(phase.config.model), ""), int(phase.work.tokens or 0)
    if key not in PUBLISHED_HOURS or phase.gpu is not GPUS["h100"]:
        return None
    hours = predicted(phase, 8, network)["hours"]
    return {
        "published_hours": PUBLISHED_HOURS[key],
        "predicted_hours": hours,
        "deviation": hours / PUBLISHED_HOURS[key] - 1,
    }
