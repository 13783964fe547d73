"""One phase before it runs: text, operations, hours, memory, disk; as lines and as JSON."""

from collections.abc import Sequence
from dataclasses import dataclass

from tessera.data.supply import Reading
from tessera.files import JsonObject
from tessera.planning.cost import UTILISATION, Work, work_of
from tessera.planning.disk import Disk, disk_of, steps_of
from tessera.planning.gpus import Gpu
from tessera.planning.memory import Memory, largest_microbatch, memory_of, parameters
from tessera.planning.mixture import mixture_json
from tessera.quantities import NOTHING, short_number, short_time, so_many
from tessera.training.config import RunConfig


@dataclass(frozen=True, kw_only=True)
class Hardware:
    """What a phase is to run on."""

    world_size: int
    gpu: Gpu | None = None
    """None: hours and what fits are not told."""
    utilisation: float | None = None
    """Of the GPU's data sheet; None: `UTILISATION`."""
    price: float | None = None
    """Of a GPU-hour, in any currency."""


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What a phase will need."""

    config: RunConfig
    hardware: Hardware
    readings: Sequence[Reading]
    work: Work
    memory: Memory
    disk: Disk

    @property
    def steps(self) -> float | None:
        """Optimizer steps, rows being full."""
        return steps_of(self.config, self.work.tokens)

    @property
    def gpu_hours(self) -> float | None:
        """Of all GPUs together; None without a GPU or a number of tokens."""
        gpu = self.hardware.gpu
        used = self.hardware.utilisation or UTILISATION
        return None if gpu is None else self.work.gpu_hours(gpu, used)

    @property
    def fitting_rows(self) -> int | None:
        """The largest `batch.microbatch_rows` that fits the GPU; None if none does."""
        gpu = self.hardware.gpu
        return (
            None if gpu is None else largest_microbatch(self.config, self.hardware.world_size, gpu)
        )

    def doubts(self) -> list[str]:
        """What will not fit."""
        found = []
        gpu, disk = self.hardware.gpu, self.disk
        if gpu is not None and self.memory.total > gpu.memory_mib * 2**20:
            rows = self.fitting_rows
            cure = (
                f"{rows} should fit"
                if rows
                else "not even 1 fits: lower train_data.row_tokens, or set "
                "compute.activation_checkpointing or compute.sharding"
            )
            found.append(
                f"batch.microbatch_rows: a step holds about {_gib(self.memory.total)}, a "
                f"{gpu.title} has {gpu.memory_mib / 1024:.1f} GiB; {cure}"
            )
        if disk.needed_bytes is not None and disk.needed_bytes > disk.free_bytes:
            found.append(
                f"run_folder: checkpoints and caches take up to {disk.needed_bytes / 1e9:,.1f} GB, "
                f"of which {disk.free_bytes / 1e9:,.1f} GB are free at {disk.folder}; lower "
                "checkpoints.keep, or name another place"
            )
        return found


def plan_of(config: RunConfig, readings: Sequence[Reading], hardware: Hardware) -> Plan:
    """Count what a phase will need."""
    work = work_of(config, readings)
    return Plan(
        config=config,
        hardware=hardware,
        readings=readings,
        work=work,
        memory=memory_of(config, hardware.world_size),
        disk=disk_of(config, work.tokens),
    )


def lines_of(plan: Plan) -> dict[str, str]:
    """`compute`, `memory` and `disk` for people."""
    return {"compute": _compute(plan), "memory": _memory(plan), "disk": _disk(plan)}


def plan_json(plan: Plan) -> JsonObject:
    """The same for programs, in bytes, tokens and hours; null where something is not known."""
    hours, gpu = plan.gpu_hours, plan.hardware.gpu
    price = plan.hardware.price
    return {
        "run_folder": plan.config.run_folder,
        "parameters": parameters(plan.config.model),
        "tokens": plan.work.tokens,
        "steps": plan.steps,
        "mixture": mixture_json(plan.readings),
        "flops": plan.work.flops,
        "flops_per_token": plan.work.flops_per_token,
        "flops_from_document_lengths": plan.work.from_lengths,
        "gpu": None if gpu is None else gpu.title,
        "world_size": plan.hardware.world_size,
        "utilisation": plan.hardware.utilisation or UTILISATION,
        "gpu_hours": hours,
        "hours": None if hours is None else hours / plan.hardware.world_size,
        "price": None if hours is None or price is None else hours * price,
        "memory": {**vars(plan.memory), "total": plan.memory.total},
        "largest_microbatch_rows": plan.fitting_rows,
        "disk": {
            "checkpoint": plan.disk.checkpoint_bytes,
            "checkpoints": plan.disk.checkpoints,
            "caches": plan.disk.cache_bytes,
            "free": plan.disk.free_bytes,
        },
    }


def _compute(plan: Plan) -> str:
    work, hardware = plan.work, plan.hardware
    rest = "" if work.from_lengths else ", all segments taken for as long as they may be"
    text = (
        f"{_number(work.flops)} operations, counted: {short_number(work.flops_per_token)} a token"
        f"{rest}"
    )
    hours = plan.gpu_hours
    if hardware.gpu is None:
        return f"{text}; --gpu NAME tells hours and what fits"
    if hours is None:
        return text
    stated = (
        "the published runs' on H100; --utilisation states another"
        if hardware.utilisation is None
        else "as stated"
    )
    price, peak = hardware.price, hardware.gpu.bf16_flops / 1e12
    cost = "" if price is None else f", {hours * price:,.2f} at {price:g} each"
    text += (
        f"\n{short_time(3600 * hours / hardware.world_size)} on {hardware.world_size} x "
        f"{hardware.gpu.title}, {hours:,.1f} GPU-hours"
        f"{cost}, at {hardware.utilisation or UTILISATION:.0%} of {peak:,.0f} "
        f"TFLOP/s ({stated}); nothing was measured"
    )
    return text


def _memory(plan: Plan) -> str:
    parts = ", ".join(f"{name} {_gib(size)}" for name, size in vars(plan.memory).items())
    text = f"about {_gib(plan.memory.total)} on each GPU: {parts}"
    gpu, rows = plan.hardware.gpu, plan.fitting_rows
    if gpu is not None and rows is not None:
        text += f"\na {gpu.title} holds microbatch_rows {rows} at most"
    return text


def _disk(plan: Plan) -> str:
    disk = plan.disk
    count = disk.checkpoints
    kept = f"{NOTHING} checkpoints" if count is None else so_many(count, "checkpoint")
    text = f"up to {kept} of {_bytes(disk.checkpoint_bytes)}"
    if disk.cache_bytes is None:
        text += "; caches grow to the size of their sources (no cache_limit)"
    elif disk.cache_bytes:
        text += f"; caches up to {_bytes(disk.cache_bytes)}"
    return f"{text}; {_bytes(disk.free_bytes)} free at {disk.folder}"


def _bytes(size: int) -> str:
    return f"{size / 1e9:,.1f} GB" if size >= 1e8 else f"{size / 1e6:,.1f} MB"


def _gib(size: int) -> str:
    return f"{size / 2**30:.1f} GiB" if size >= 2**29 else f"{size / 2**20:.1f} MiB"


def _number(value: float | None) -> str:
    return NOTHING if value is None else f"{value:.3g}" if value >= 1e15 else short_number(value)
