"""Predict the step of a recipe on many GPUs from measured or counted parts, and where it ends.

    python benchmarks/scaling.py                                     the published phases
    python benchmarks/scaling.py yamls/phase1.yaml --gpus 8,64,512 --gpu h100 --network ethernet
    python benchmarks/scaling.py --set unpickle=1e-6                 another of the stated numbers
    python benchmarks/scaling.py --measure                           the formula beside real ranks

A step is the microbatches of a rank, what of the gradients' all-reduce outlasts the backward pass,
what ranks tell each other on the host, and the optimizer. What is assumed is printed with it.
"""

import argparse
import json
import os
import statistics
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import hardware
from communication import Network, buckets, exposed_seconds, whole_seconds
from models import MODELS
from prediction import (
    BETWEEN,
    STATED,
    Phase,
    against_published,
    assumed,
    gradients,
    limits,
    network_of,
    predicted,
    speeds,
)

from tessera.cli.arguments import load_run_config
from tessera.config import ConfigError, mistake
from tessera.data.supply import readings
from tessera.planning.cost import work_of
from tessera.planning.drawing import table
from tessera.planning.gpus import GPUS, gpu_of
from tessera.quantities import NOTHING, short_number, short_time

REPOSITORY = Path(__file__).parents[1]
PHASES = ("yamls/phase1.yaml", "yamls/phase2.yaml", "yamls/phase3.yaml")


def main(arguments: Sequence[str] | None = None) -> int:
    """Predict or measure; 2 if what is asked makes no sense."""
    options = _parse(arguments)
    try:
        if options.out is not None and not options.out.parent.is_dir():
            raise ConfigError(f"--out {options.out}: there is no folder {options.out.parent}")
        report, lines = _measurement() if options.measure else _prediction(options)
    except (ConfigError, OSError) as error:
        if (said := mistake(error)) is None:
            raise
        print(f"scaling.py: {said}", file=sys.stderr)
        return 2
    print("\n".join(lines))
    if options.out is not None:
        options.out.write_text(json.dumps(report, indent=1) + "\n")
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("yamls", nargs="*", metavar="YAML", help="phases; default: the published three")
    add("--gpu", default="h100", metavar="NAME", help=", ".join(GPUS))
    add("--gpus", default="8,64,512", metavar="N,N", help="how many, in all")
    add("--network", default="ndr", metavar="NAME", help=f"between nodes: {', '.join(BETWEEN)}")
    add("--gbit", type=float, metavar="X", help="a node's Gb/s to others, instead of --network's")
    add(
        "--compute",
        metavar="NAME",
        help="what a GPU computes: measured, published, floor, or tokens per second; default: "
        "measured if there is such a result, published and floor",
    )
    add("--set", action="append", default=[], metavar="NAME=X", help=", ".join(STATED))
    add("--measure", action="store_true", help="run 1, 2 and 4 ranks here, beside the formula")
    add("--out", type=Path, metavar="FILE", help="write the numbers as JSON")
    return parser.parse_args(arguments)


# ---- the prediction


def _prediction(options: argparse.Namespace) -> tuple[dict[str, Any], list[str]]:
    gpu, stated = gpu_of(options.gpu), assumed(options.set)
    network = network_of(options.gpu, options.network, stated, options.gbit)
    counts = _counts(options.gpus)
    lines = [
        f"{gpu.title}: {network.within / 1e9:,.0f} GB/s reached within a node, "
        f"{network.between / 1e9:,.1f} between nodes ({network.title})",
        "assumed (--set):",
        *(f"  {name:<15}{stated[name]:<9g}{what}" for name, (_, what) in STATED.items()),
    ]
    phases = []
    for path in options.yamls or [str(REPOSITORY / path) for path in PHASES]:
        config = load_run_config(path)
        work = work_of(config, readings(config.train_data, config.batch, config.duration, None, {}))
        name = path if options.yamls else Path(path).relative_to(REPOSITORY).as_posix()
        for number, (source, (speed, what)) in enumerate(
            _chosen(speeds(config, work, options.gpu), options.compute)
        ):
            phase = Phase(config=config, work=work, gpu=gpu, speed=speed, stated=stated)
            rows = [predicted(phase, count, network) for count in counts]
            ends, beside = limits(phase, network), against_published(phase, network)
            if number == 0:
                lines += ["", f"{name}: {short_number(phase.slots)} slots a step", *_notes(rows)]
            lines += ["", f"{name}: {short_number(speed)} tokens/s a GPU alone ({source}: {what})"]
            lines += [*_table(rows), *_limit_lines(ends)]
            if beside is not None:
                lines.append(
                    f"8 x H100: {beside['predicted_hours']:,.1f} hours, published "
                    f"{beside['published_hours']:,.1f} of training: {beside['deviation']:+.0%}"
                )
            phases.append(
                {
                    "yaml": name,
                    "compute": source,
                    "tokens_per_second_alone": speed,
                    "flops_per_token": work.flops_per_token,
                    "runs": rows,
                    "limits": ends,
                    "published": beside,
                }
            )
    report = {"gpu": gpu.title, "network": vars(network), "assumed": stated, "phases": phases}
    return report, lines


def _counts(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isdecimal() and 1 <= int(part) <= 65_536 for part in parts):
        raise ConfigError(f"--gpus {text}: numbers of GPUs from 1 to 65536, such as 8,64,512")
    return [int(part) for part in parts]


def _chosen(
    found: dict[str, tuple[float, str]], asked: str | None
) -> list[tuple[str, tuple[float, str]]]:
    if asked is None:
        return list(found.items())
    if asked in found:
        return [(asked, found[asked])]
    if asked == "measured":
        raise ConfigError(
            "--compute measured: benchmarks/results has no training step of this GPU at this shape "
            "and length; run benchmarks/train_step.py there, or choose published or floor"
        )
    try:
        speed = float(asked.replace("_", "").replace(",", ""))
    except ValueError:
        speed = 0.0
    if not 0 < speed < float("inf"):
        raise ConfigError(
            f"--compute {asked}: measured, published, floor, or tokens per second of a GPU"
        )
    return [("as stated", (speed, "--compute"))]


def _table(rows: Sequence[dict[str, Any]]) -> list[str]:
    head = "GPUs,rows a rank,microbatches,compute,gradients,(hidden),exchange,optimizer,step ms"
    head += ",tokens/s,efficiency,slots for 90 %,hours,loader busy,saving"
    lines = [head.split(",")]
    for row in rows:
        step, saving = row["step"], row["checkpoint"]
        names = ("compute", "gradients", "hidden", "exchange", "optimizer", "seconds")
        needed, apart = row["batch_slots_for_90_percent"], saving["seconds_apart"]
        lines.append(
            [
                f"{row['gpus']:,}",
                f"{row['rows_per_rank']} of {row['row_tokens']:,}",
                f"{row['microbatches']:.3g}",
                *(f"{1e3 * step[name]:,.1f}" for name in names),
                short_number(row["tokens_per_second"]),
                f"{row['efficiency']:.0%}",
                NOTHING if needed is None else short_number(needed),
                NOTHING if row["hours"] is None else f"{row['hours']:,.1f}",
                f"{row['loader']['share_of_its_speed']:.1%}",
                NOTHING if apart is None else f"{saving['pause_seconds'] / apart:.1%}",
            ]
        )
    return table(lines)


def _notes(rows: Sequence[dict[str, Any]]) -> list[str]:
    """What had to change, how small the batch is at first, and what saving takes."""
    lines = []
    for row in rows:
        gpus = row["gpus"]
        if row["changed"]:
            lines.append(
                f"{gpus} GPUs cannot share this batch as it is; predicted with "
                f"{', '.join(row['changed'])}: {short_number(row['batch_slots'])} slots a step"
            )
        if row["first_microbatches"] < min(1.0, row["microbatches"]):
            lines.append(
                f"{gpus} GPUs: while the batch grows, a rank has {row['first_microbatches']:.2g} "
                "of a full microbatch at first"
            )
    saving = rows[0]["checkpoint"]
    text = (
        f"a checkpoint of {saving['bytes'] / 1e9:.1f} GB: a pause of "
        f"{short_time(saving['pause_seconds'])}, an upload of "
        f"{short_time(saving['upload_seconds'])} beside training"
    )
    late = [
        f"{row['gpus']}"
        for row in rows
        if (row["checkpoint"]["seconds_apart"] or float("inf")) < saving["upload_seconds"]
    ]
    return [*lines, text + (f"; with {', '.join(late)} GPUs it does not keep up" if late else "")]


def _limit_lines(found: Sequence[dict[str, Any]]) -> list[str]:
    """Where it stops scaling."""
    lines = []
    for limit in found:
        if limit["most_gpus"] is None:
            return ["not even a node's GPUs have a sequence of full length each"]
        if limit["gpus"] is None:
            lines.append(
                f"never below {limit['efficiency']:.0%}, up to {limit['most_gpus']:,} GPUs: more "
                "would not have a sequence of full length each"
            )
            break
        needed = limit["batch_slots_needed"]
        cure = "no batch helps" if needed is None else f"{short_number(needed)} slots would do"
        lines.append(
            f"below {limit['efficiency']:.0%} from {limit['gpus']:,} GPUs "
            f"({limit['reached']:.1%}), most of it lost to {limit['most_lost_to']}; {cure}"
        )
    return lines


# ---- real ranks


def measure(rounds: dict[int, int]) -> dict[str, Any]:
    """The formula beside 1, 2 and 4 ranks of this machine, the link being its loopback.

    The link is measured with two ranks; what is predicted for four is made of that. Ranks beyond
    the cores share them: `wall` seconds are predicted to grow as ranks outnumber cores. `processor`
    seconds, of the first rank, do not depend on who else wants the cores; what passes the loopback
    is copied by the cores, so that these are the time of the exchange as well.
    """
    import ranks as processes

    cores, load = os.cpu_count() or 1, os.getloadavg()[0]
    found = {n: processes.measure(n, rounds) for n in (1, 2, 4)}
    return {
        "cores": cores,
        "load_average_before": round(load, 1),
        "loopback_of_two_ranks": {
            clock: {"bytes_per_second": link.within, "seconds_of_a_hop": link.hop_within}
            for clock in processes.CLOCKS
            for link in [link_of(found[2]["all_reduce"], clock)]
        },
        "seconds_of_an_exchange_of_objects": {n: found[n]["exchange"] for n in found},
        "seconds_to_unpickle_a_rank's_part": found[1]["unpickling"],
        "all_reduce_seconds": {n: found[n]["all_reduce"] for n in found},
        "steps": [
            beside(found, n, slots, clock, cores)
            for clock in processes.CLOCKS
            for slots in rounds
            for n in found
        ],
    }


def link_of(times: dict[str, dict[str, float]], clock: str) -> Network:
    """Bandwidth and latency from the all-reduces of two ranks: S bytes each way, in two hops."""
    sizes = sorted(map(int, times))
    small, middle, large = (times[str(size)][clock] for size in (sizes[0], sizes[1], sizes[-1]))
    bandwidth = (sizes[-1] - sizes[1]) / (large - middle)
    hop = max(0.0, small - sizes[0] / bandwidth) / 2
    return Network(
        title="loopback",
        ranks_per_node=1024,
        within=bandwidth,
        between=bandwidth,
        hop_within=hop,
        hop_between=hop,
        start=0.0,
    )


def beside(found: dict[int, Any], ranks: int, slots: int, clock: str, cores: int) -> dict[str, Any]:
    """Predicted beside measured seconds, of one number of ranks and of slots."""
    crowd = max(1.0, ranks / cores) if clock == "wall" else 1.0
    link = link_of(found[2]["all_reduce"], clock)
    link = replace(link, within=link.within / crowd, hop_within=link.hop_within * crowd)
    times, alone = (found[n]["steps"][str(slots)] for n in (ranks, 1))
    middle, first = (
        {kind: statistics.median(part[clock][kind]) for kind in ("with", "without")}
        for part in (times, alone)
    )
    copying = max(0.0, first["with"] - first["without"])  # into buckets and out of them
    compute, communication = crowd * first["without"], crowd * copying
    order, backward = gradients(MODELS["tiny"], compute, 200.0 * 6e5)
    assert sum(gradient.size for gradient in order) == times["gradient_bytes"]
    communication += whole_seconds(order, ranks, link)
    return {
        "clock": clock,
        "ranks": ranks,
        "slots_per_rank": slots,
        "buckets": len(buckets(order)),
        "predicted": {
            "compute": compute,
            "communication": communication,
            "communication_if_hidden": exposed_seconds(order, backward, ranks, link),
            "share": communication / (compute + communication),
        },
        "measured": {
            "compute": middle["without"],
            "communication": middle["with"] - middle["without"],
            "share": 1 - middle["without"] / middle["with"],
            "quartiles": {kind: statistics.quantiles(times[clock][kind], n=4) for kind in middle},
            "steps": len(times[clock]["with"]),
        },
    }


def _measurement() -> tuple[dict[str, Any], list[str]]:
    found = measure({64: 40, 512: 16})
    return {"hardware": hardware.named(), "model": "tiny", **found}, _measured_lines(found)


def _measured_lines(found: dict[str, Any]) -> list[str]:
    """Predicted beside measured."""
    lines = [
        ["clock", "ranks", "slots", "step without, ms", "", "exchange, ms", "", "share", ""],
        ["", "", "", *["predicted", "measured"] * 3],
    ]
    for row in found["steps"]:
        pair = row["predicted"], row["measured"]
        lines.append(
            [
                row["clock"],
                str(row["ranks"]),
                str(row["slots_per_rank"]),
                *(f"{1e3 * part['compute']:,.0f}" for part in pair),
                *(f"{1e3 * part['communication']:,.1f}" for part in pair),
                *(f"{part['share']:.1%}" for part in pair),
            ]
        )
    links = (
        f"{clock} {link['bytes_per_second'] / 1e6:,.0f} MB/s and "
        f"{1e6 * link['seconds_of_a_hop']:,.0f} us a hop"
        for clock, link in found["loopback_of_two_ranks"].items()
    )
    return [
        f"loopback between two ranks: {', '.join(links)}; {found['cores']} cores, load average "
        f"{found['load_average_before']} before",
        *table(lines),
    ]


if __name__ == "__main__":
    sys.exit(main())
