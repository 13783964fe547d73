"""How a variant's steps are timed, and what its time goes to."""

import re
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch
from models import MASKED_SHARE
from torch.autograd import DeviceType
from torch.profiler import ProfilerActivity, profile
from workloads import Variant, Workload

from tessera.model.compilation import graphs_compiled
from tessera.model.config import ModelConfig
from tessera.model.flops import training_flops

PARTS = {
    "attention": r"attend|flash|attention|fmha|flex",
    "optimizer": r"adam|optim|foreach|multi_tensor",
    "matrix products": r"mm|gemm|linear|cutlass|nvjet|matmul",
    "loss": r"softmax|scatter|nll|cross_entropy",
    "norms": r"layer_norm",
    "gated GELU": r"gelu",
    "copies and fills": r"copy|fill|cat|memcpy|memset|zero|stack|contiguous|index",
}


class Timer:
    """One variant's warm-up and rounds of steps."""

    def __init__(
        self, variant: Variant, workload: Callable[[int], Workload], device: torch.device
    ) -> None:
        self.variant = variant
        self.speeds: list[float] = []
        """Real tokens per second of each round."""
        self.steps = 0
        self.recompiled = 0
        self.warm_up_seconds = 0.0
        self._workload = workload
        self._device = device

    def warm_up(self, steps: int) -> None:
        """Take steps that do not count."""
        begin = time.perf_counter()
        self._take([self._workload(step) for step in range(steps)])
        self.warm_up_seconds = time.perf_counter() - begin

    def round(self, steps: int) -> float:
        """Time steps, one behind the other as in training, and return the seconds they took."""
        first = 1000 + self.steps
        works = [self._workload(first + step) for step in range(steps)]
        graphs = graphs_compiled()
        if self._device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(self._device)
        seconds = self._take(works)
        self.speeds.append(sum(work.tokens for work in works) / seconds)
        self.steps += steps
        self.recompiled += graphs_compiled() - graphs
        return seconds

    def _take(self, works: list[Workload]) -> float:
        synchronize(self._device)
        begin = time.perf_counter()
        for work in works:
            self.variant.step(work)
        synchronize(self._device)
        return time.perf_counter() - begin

    def summary(self, config: ModelConfig, rate: float) -> dict[str, Any]:
        """Tokens per second, their spread, and the share of the machine's products used."""
        example = self._workload(0)
        lengths = torch.tensor([len(document) for document in example.documents])
        flops = training_flops(config, lengths, MASKED_SHARE * example.tokens) / example.tokens
        median = statistics.median(self.speeds)
        cuda = self._device.type == "cuda"
        return {
            "name": self.variant.name,
            "tokens_per_second": round(median),
            "slowest_and_fastest": [round(min(self.speeds)), round(max(self.speeds))],
            "steps": self.steps,
            "slots": self.variant.slots(example),
            "utilisation": round(median * flops / rate, 3),
            "peak_bytes": torch.cuda.max_memory_allocated(self._device) if cuda else None,
            "recompiled_after_warm_up": self.recompiled,
            "warm_up_seconds": round(self.warm_up_seconds, 1),
        }


def parts_of_a_step(variant: Variant, workload: Workload, device: torch.device) -> dict[str, float]:
    """Share of a step's time in each kind of operation, by the profiler.

    On a GPU also "idle", the share of the step in which no kernel ran; profiling itself adds to it.
    """
    cuda = device.type == "cuda"
    activities = [ProfilerActivity.CUDA] if cuda else []
    synchronize(device)
    begin = time.perf_counter()
    with profile(activities=[ProfilerActivity.CPU, *activities]) as profiled:
        variant.step(workload)
        synchronize(device)
        seconds = time.perf_counter() - begin
    shares: dict[str, float] = {}
    for event in profiled.key_averages():
        if cuda and (event.device_type != DeviceType.CUDA or event.is_user_annotation):
            continue  # what launched a kernel is listed with the kernel's time once more
        spent = event.self_device_time_total if cuda else event.self_cpu_time_total
        kinds = (part for part, names in PARTS.items() if re.search(names, event.key.lower()))
        part = next(kinds, "elementwise and other")
        shares[part] = shares.get(part, 0.0) + spent
    if cuda:
        shares["idle"] = max(0.0, seconds * 1e6 - sum(shares.values()))
    total = sum(shares.values()) or 1.0
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {part: round(spent / total, 3) for part, spent in ordered}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
