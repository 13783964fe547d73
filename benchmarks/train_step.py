"""Time training steps, ours beside transformers', and write benchmarks/results/<device>.json.

    python benchmarks/train_step.py                                  what suits this machine
    python benchmarks/train_step.py --model base --max-length 1024   a published setting
    python benchmarks/train_step.py --attention all                  each backend that serves here

A step is forward, backward and optimizer on documents of log-normal lengths, other ones each time;
tokens are real ones, padding counts nothing. Variants take turns in rounds, so that whatever else
the machine does meets all of them. Utilisation is against a matrix product timed in the same run.
"""

import argparse
import json
import re
import statistics
import time
from datetime import date
from pathlib import Path
from typing import Any

import torch
from hardware import named
from torch.profiler import ProfilerActivity, profile
from workloads import (
    MASKED_SHARE,
    MODELS,
    Variant,
    Workload,
    draw_workload,
    shorter,
    tessera,
    transformers_variant,
)

from tessera.model.attention.backends import survey
from tessera.model.compilation import graph_breaks, graphs_compiled
from tessera.model.config import ModelConfig
from tessera.model.flops import flops_per_token

RESULTS = Path(__file__).parent / "results"
PARTS = {
    "attention": r"attend|flash|attention|fmha|flex",
    "optimizer": r"adam|optim|foreach|multi_tensor",
    "matrix products": r"mm|gemm|linear|cutlass|nvjet|matmul",
    "loss": r"softmax|gather|scatter|nll|cross_entropy",
    "norms": r"layer_norm|native_layer_norm",
    "copies and fills": r"copy|fill|cat|memcpy|memset|zero|stack|contiguous|index",
}


def main() -> None:
    """Measure, print, write."""
    options = parse()
    device = torch.device(options.device or ("cuda" if torch.cuda.is_available() else "cpu"))
    if device.type == "cpu":
        torch.set_num_threads(options.threads)
    config = shorter(MODELS[options.model or default_model(device)], options.layers)
    slots = options.slots or (8192 if device.type == "cpu" else 98_304)

    def workload(step: int) -> Workload:
        return draw_workload(
            vocab_size=config.vocab_size,
            slots=slots,
            max_length=options.max_length,
            seed=step,
            fixed=options.fixed_lengths,
        )

    variants = build_variants(config, device, options)
    measured = measure(variants, workload, device, options)
    rate = matmul_rate(device)
    entry = {
        "date": date.today().isoformat(),
        "model": options.model or default_model(device),
        "layers": config.num_hidden_layers,
        "max_length": options.max_length,
        "slots": slots,
        "machine": named(),
        "threads": torch.get_num_threads() if device.type == "cpu" else None,
        "matmul_flops_per_second": rate,
        "variants": [summary(v, measured[v.name], config, rate, workload) for v in variants],
        "parts_of_a_step": parts_of_a_step(variants[0], workload(0), device),
    }
    print_table(entry)
    if not options.dry_run:
        write(device, entry)


def parse() -> argparse.Namespace:
    """What to measure."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--model", choices=MODELS, help="tiny on a CPU, base on a GPU")
    parser.add_argument("--layers", type=int, help="fewer layers, to try this out")
    parser.add_argument("--max-length", type=int, default=512, help="of a document, in tokens")
    parser.add_argument("--fixed-lengths", action="store_true", help="all documents of max-length")
    parser.add_argument("--slots", type=int, help="token slots of a step; 8192 or, on a GPU, 98304")
    parser.add_argument("--attention", default="auto", help="a backend, 'auto', or 'all'")
    parser.add_argument("--no-compile", action="store_true", help="leave ours uncompiled on a GPU")
    parser.add_argument("--checkpoint", action="store_true", help="ours recomputes activations")
    parser.add_argument("--only-ours", action="store_true", help="leave transformers out")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=5, help="timed steps per variant and round")
    parser.add_argument("--warm-up", type=int, default=3, help="steps of each variant before")
    parser.add_argument("--threads", type=int, default=2, help="on a CPU")
    parser.add_argument("--device", help="cpu, or a GPU such as cuda:0")
    parser.add_argument("--dry-run", action="store_true", help="write no file")
    return parser.parse_args()


def default_model(device: torch.device) -> str:
    """What a machine can train in a benchmark's time."""
    return "tiny" if device.type == "cpu" else "base"


def build_variants(
    config: ModelConfig, device: torch.device, options: argparse.Namespace
) -> list[Variant]:
    """Ours first, then transformers' from what most do to the best it can be made to do."""
    names = [options.attention]
    if options.attention == "all":
        names = [name for name, reason in survey(device) if reason is None]
    compiled = device.type == "cuda" and not options.no_compile
    variants = [
        tessera(config, device, attention=name, compiled=compiled, checkpointed=options.checkpoint)
        for name in names
    ]
    if options.only_ours:
        return variants
    # A padded microbatch of a GPU user: what fits with a dense head.
    most = 32_768 if device.type == "cuda" else None
    kinds: list[dict[str, Any]] = [
        {},
        {"sparse": True},
        {"sorted_microbatches": 4},
        {"sparse": True, "sorted_microbatches": 4},
    ]
    if device.type == "cuda" and dict(survey(device))["flash-attn-2"] is None:
        kinds.append({"implementation": "flash_attention_2", "sparse": True})
    return variants + [
        transformers_variant(config, device, max_slots=most, **kind) for kind in kinds
    ]


def measure(
    variants: list[Variant], workload: Any, device: torch.device, options: argparse.Namespace
) -> dict[str, dict[str, Any]]:
    """Seconds of every timed step, per variant; peak memory; graphs compiled after warm-up."""
    measured: dict[str, dict[str, Any]] = {}
    for variant in variants:
        begin = time.perf_counter()
        for step in range(options.warm_up):
            variant.step(workload(step))
        synchronize(device)
        measured[variant.name] = {"seconds": [], "tokens": [], "peak_bytes": None, "recompiled": 0}
        measured[variant.name]["warm_up_seconds"] = time.perf_counter() - begin
    for number in range(options.rounds):
        for variant in variants:
            record = measured[variant.name]
            graphs = graphs_compiled()
            if device.type == "cuda":
                torch.cuda.reset_peak_memory_stats(device)
            for step in range(options.steps):
                work = workload(options.warm_up + number * options.steps + step)
                synchronize(device)
                begin = time.perf_counter()
                variant.step(work)
                synchronize(device)
                record["seconds"].append(time.perf_counter() - begin)
                record["tokens"].append(work.tokens)
            record["recompiled"] += graphs_compiled() - graphs
            if device.type == "cuda":
                record["peak_bytes"] = torch.cuda.max_memory_allocated(device)
    return measured


def summary(
    variant: Variant, record: dict[str, Any], config: ModelConfig, rate: float, workload: Any
) -> dict[str, Any]:
    """Tokens per second, their spread, and the share of the machine's matrix products used."""
    speeds = [n / s for n, s in zip(record["tokens"], record["seconds"], strict=True)]
    example = workload(0)
    flops = flops_per_token(
        config, attended_tokens=example.attended_tokens, masked_share=MASKED_SHARE
    )
    median = statistics.median(speeds)
    return {
        "name": variant.name,
        "tokens_per_second": round(median),
        "slowest_and_fastest": [round(min(speeds)), round(max(speeds))],
        "steps": len(speeds),
        "slots": variant.slots(example),
        "utilisation": round(median * flops / rate, 3),
        "peak_bytes": record["peak_bytes"],
        "recompiled_after_warm_up": record["recompiled"],
        "warm_up_seconds": round(record["warm_up_seconds"], 1),
    }


def matmul_rate(device: torch.device) -> float:
    """Operations per second of a large matrix product in the type that training multiplies in."""
    size = 8192 if device.type == "cuda" else 2048
    dtype = torch.bfloat16 if device.type == "cuda" else torch.float32
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    seconds = []
    for _ in range(12):
        synchronize(device)
        begin = time.perf_counter()
        for _ in range(8 if device.type == "cuda" else 1):
            torch.mm(a, b)
        synchronize(device)
        seconds.append((time.perf_counter() - begin) / (8 if device.type == "cuda" else 1))
    return 2 * size**3 / statistics.median(seconds[2:])


def parts_of_a_step(variant: Variant, workload: Workload, device: torch.device) -> dict[str, float]:
    """Share of a step's time in each kind of operation, by the profiler."""
    activities = [ProfilerActivity.CPU]
    if device.type == "cuda":
        activities.append(ProfilerActivity.CUDA)
    with profile(activities=activities) as profiled:
        variant.step(workload)
        synchronize(device)
    shares: dict[str, float] = {}
    for event in profiled.key_averages():
        spent = event.self_device_time_total if device.type == "cuda" else event.self_cpu_time_total
        kinds = (part for part, names in PARTS.items() if re.search(names, event.key.lower()))
        part = next(kinds, "elementwise and other")
        shares[part] = shares.get(part, 0.0) + spent
    total = sum(shares.values()) or 1.0
    ordered = sorted(shares.items(), key=lambda item: -item[1])
    return {part: round(spent / total, 3) for part, spent in ordered}


def synchronize(device: torch.device) -> None:
    """Wait until the device has done all it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def device_name(device: torch.device) -> str:
    """As its maker calls it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else named()["processor"]


def write(device: torch.device, entry: dict[str, Any]) -> None:
    """Keep the entry beside those of other settings on this device."""
    name = device_name(device)
    slug = re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")
    path = RESULTS / f"{slug}.json"
    known = json.loads(path.read_text()) if path.exists() else {"device": name, "entries": {}}
    known["entries"][f"{entry['model']}@{entry['max_length']}x{entry['slots']}"] = entry
    RESULTS.mkdir(exist_ok=True)
    path.write_text(json.dumps(known, indent=2) + "\n")
    print(f"\nwritten to {path}")


def print_table(entry: dict[str, Any]) -> None:
    """The entry, for a person."""
    first = entry["variants"][0]["tokens_per_second"]
    print(f"\n{entry['model']}, {entry['layers']} layers, documents <= {entry['max_length']}")
    print(f"matrix products: {entry['matmul_flops_per_second'] / 1e12:.2f} TFLOP/s\n")
    print(
        f"{'variant':58} {'tokens/s':>9} {'[slowest..fastest]':>20} {'slots':>7} {'MFU':>6} ours is"
    )
    for row in entry["variants"]:
        low, high = row["slowest_and_fastest"]
        again = row["recompiled_after_warm_up"]
        print(
            f"{row['name']:58} {row['tokens_per_second']:9,} {f'[{low:,}..{high:,}]':>20} "
            f"{row['slots']:7,} {row['utilisation']:6.1%} "
            f"{first / row['tokens_per_second']:7.2f}x" + f"  recompiled {again}" * bool(again)
        )
    shares = ", ".join(f"{part} {share:.0%}" for part, share in entry["parts_of_a_step"].items())
    print(f"\na step of ours: {shares}; graph breaks: {graph_breaks()}")


if __name__ == "__main__":
    main()
