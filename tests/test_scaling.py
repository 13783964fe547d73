"""What benchmarks/scaling.py predicts, against numbers worked out by hand."""

import json
import math
import sys
from dataclasses import replace

import pytest
from tiny_run import REPOSITORY

sys.path.insert(0, str(REPOSITORY / "benchmarks"))
import scaling
from communication import (
    MIB,
    Gradient,
    Network,
    all_reduce_seconds,
    buckets,
    exchange_seconds,
    exposed_seconds,
    half_seconds,
    ring_seconds,
    tree_seconds,
)
from models import MODELS
from prediction import (
    STATED,
    Phase,
    adapted,
    against_published,
    assumed,
    batch_needed,
    efficiency,
    gradients,
    limits,
    network_of,
    predicted,
    speeds,
    step_of,
)

from tessera.cli.arguments import load_run_config
from tessera.data.batch_schedule import BatchPlan, world_problems
from tessera.data.supply import readings
from tessera.planning.cost import work_of
from tessera.planning.gpus import GPUS
from tessera.planning.memory import parameters

YAMLS = [f"{size}phase{n}.yaml" for size in ("", "large/") for n in (1, 2, 3)]
QUIET = Network(
    title="", ranks_per_node=8, within=1e9, between=1e8, hop_within=0, hop_between=0, start=0
)
"""Of links that cost nothing but bytes."""


def load(name):
    return load_run_config(str(REPOSITORY / "yamls" / name))


def phase_of(name="phase1.yaml", speed=3e5, **stated):
    config = load(name)
    read = readings(config.train_data, config.batch, config.duration, None, {})
    work = work_of(config, read)
    numbers = assumed() | stated
    return Phase(config=config, work=work, gpu=GPUS["h100"], speed=speed, stated=numbers)


def links(name="ndr"):
    return network_of("h100", name, assumed())


def test_an_all_reduce_takes_what_it_takes_by_hand():
    assert ring_seconds(1e8, 4, QUIET) == pytest.approx(2 * 3 / 4 * 1e8 / 1e9)
    assert ring_seconds(1e8, 16, QUIET) == pytest.approx(2 * 15 / 16 * 1e8 / 1e8)
    assert half_seconds(1e8, 4, QUIET) == pytest.approx(3 / 4 * 1e8 / 1e9)
    # 24 ranks on three nodes: 46 hops around the ring, six of them between nodes.
    slow = replace(QUIET, hop_within=1e-3, hop_between=1e-1, start=1.0)
    assert ring_seconds(0, 24, slow) == pytest.approx(1 + 6 * 0.1 + 40 * 0.001)
    # A tree over four nodes of eight: a chain of seven and two levels, up and down.
    assert tree_seconds(0, 32, slow) == pytest.approx(1 + 2 * (7 * 0.001 + 2 * 0.1))
    assert tree_seconds(1e8, 32, QUIET) == pytest.approx(2 * 1e8 / (0.92 * 1e8))
    assert all_reduce_seconds(1e9, 32, slow) == ring_seconds(1e9, 32, slow)
    assert all_reduce_seconds(8, 4096, slow) == tree_seconds(8, 4096, slow)
    alone = (ring_seconds, tree_seconds, half_seconds, all_reduce_seconds)
    assert [how(1e8, 1, slow) for how in alone] == [0.0] * 4
    told = exchange_seconds(100, 80e-6, 32, slow)  # 31 hops, four of them between nodes
    gathered = 31 / 32 * 3200 / 1e8 + 1 + 4 * 0.1 + 27 * 0.001
    assert told == pytest.approx(gathered + 32 * 80e-6)
    assert exchange_seconds(100, 80e-6, 1, slow) == 0.0


def test_buckets_are_those_of_distributed_data_parallel():
    sizes = [MIB // 2, MIB // 2 + 1, 20 * MIB, 4 * MIB, 2 * MIB, 3 * MIB]
    found = buckets([Gradient(size, float(n)) for n, size in enumerate(sizes)])
    assert found == [Gradient(MIB + 1, 1.0), Gradient(26 * MIB, 4.0), Gradient(3 * MIB, 5.0)]
    import torch.distributed as dist

    numbers = [dist._DEFAULT_FIRST_BUCKET_BYTES, 25 * MIB]
    import torch

    tensors = [torch.empty(size // 4, device="meta") for size in (MIB, 20 * MIB, 8 * MIB, MIB)]
    theirs, _ = dist._compute_bucket_assignment_by_size(tensors, numbers)
    assert theirs == [[0], [1, 2], [3]]
    ours = buckets([Gradient(4 * t.numel(), 0.0) for t in tensors])
    assert [bucket.size for bucket in ours] == [MIB, 28 * MIB, MIB]


def test_what_outlasts_the_backward_pass_by_hand():
    # 30 MiB are ready at 0.1 s, 40 MiB at its end, 0.2 s; a MiB takes 4 ms between two ranks.
    network = replace(QUIET, within=MIB / 4e-3)
    order = [Gradient(30 * MIB, 0.1), Gradient(40 * MIB, 0.2)]
    assert exposed_seconds(order, 0.2, 2, network) == pytest.approx(0.1 + 0.12 + 0.16 - 0.2)
    fast = replace(QUIET, within=MIB / 1e-3)
    assert exposed_seconds(order, 0.2, 2, fast) == pytest.approx(0.04)
    assert exposed_seconds(order, 0.2, 1, fast) == 0.0


@pytest.mark.parametrize("name", MODELS)
def test_every_parameter_has_a_gradient_and_the_embedding_is_last(name):
    model = MODELS[name]
    order, backward = gradients(model, 3.0, 1e9)
    assert backward == pytest.approx(2.0)
    assert sum(gradient.size for gradient in order) == 4 * parameters(model)
    assert [g.ready for g in order] == sorted(g.ready for g in order)
    assert order[-1] == Gradient(4 * model.vocab_size * model.hidden_size, backward)


def test_a_step_by_hand():
    phase = phase_of(object=1e-9, unpickle=1e-12, waits=1e-12)
    step = step_of(phase, 8, 6 * 98_304, links())
    assert step.compute == pytest.approx(6 * 98_304 / 3e5)
    numbers = parameters(phase.config.model)
    assert step.optimizer == pytest.approx(36 * numbers / 3.35e12)
    # Last comes the bucket of the embedding; the layers' are long gone by then.
    words = 4 * 50_368 * 768
    least = 2 * 7 / 8 * words / 360e9
    assert least < step.gradients < least + 2 * 7 / 8 * 25 * MIB / 360e9 + 60e-6
    assert step.seconds == pytest.approx(step.compute + step.gradients + step.optimizer, abs=5e-5)
    assert step_of(phase, 1, 98_304, links()).gradients == 0.0
    # A rank with half a row waits for the host: 1 ms for each of 22 layers.
    assert step_of(phase_of(launch=1e-3), 8, 512, links()).compute == pytest.approx(22e-3)
    # A loader gives 28.9M tokens a second: more than this GPU takes, less than the next.
    assert step.loader == 0.0
    assert step_of(phase_of(speed=1e9, launch=1e-9), 8, 589_824, links()).loader > 0


def test_hours_are_those_of_every_step_of_the_growing_batch():
    phase, network = phase_of(), links()
    plan = BatchPlan.of(phase.config.batch, 8192)
    found = predicted(phase, 8, network)
    ends = [*plan.first_steps[1:], found["steps"]]
    by_hand = sum(
        (end - first) * step_of(phase, 8, size // 8 * 8192, network).seconds
        for size, first, end in zip(plan.sizes, plan.first_steps, ends, strict=True)
    )
    pauses = found["steps"] // 4000 * found["checkpoint"]["pause_seconds"]
    assert found["hours"] == pytest.approx((by_hand + pauses) / 3600)
    assert found["hours"] > 1.719e12 / (8 * 3e5) / 3600


@pytest.mark.parametrize("name", ["phase1.yaml", "phase3.yaml"])
def test_more_gpus_are_less_efficient_and_a_better_network_is_not(name):
    phase = phase_of(name)
    shares = {
        network: [
            efficiency(phase, n, phase.slots / n, links(network)) for n in (8, 16, 64, 256, 512)
        ]
        for network in ("ndr", "hdr", "ethernet")
    }
    for found in shares.values():
        assert found == sorted(found, reverse=True) and 0 < found[-1] < found[0] <= 1
    assert all(a >= b >= c for a, b, c in zip(*shares.values(), strict=True))
    sizes = [efficiency(phase, 64, slots, links()) for slots in (98_304, 2e5, 4e5, 8e5)]
    assert sizes == sorted(sizes)
    faster = [efficiency(replace(phase, speed=v), 64, 73_728, links()) for v in (1e5, 3e5, 5e5)]
    assert faster == sorted(faster, reverse=True)
    costs = [efficiency(phase_of(name, unpickle=u), 64, 73_728, links()) for u in (1e-6, 1e-4)]
    assert costs[0] > costs[1]


def test_limits_are_where_a_threshold_is_first_missed_and_the_batch_cures_it():
    phase, network = phase_of(), links()
    found = limits(phase, network)
    assert [limit["efficiency"] for limit in found] == [0.9, 0.7, 0.5]
    for limit in found:
        n, slots = limit["gpus"], limit["batch_slots_needed"]
        assert efficiency(phase, n, phase.slots / n, network) < limit["efficiency"]
        assert efficiency(phase, n - 8, phase.slots / (n - 8), network) >= limit["efficiency"]
        assert efficiency(phase, n, slots / n, network) >= limit["efficiency"]
        assert slots > phase.slots and limit["most_lost_to"] == "exchange"
    assert batch_needed(phase, 8, 0.9, network) == phase.slots


@pytest.mark.parametrize("name", YAMLS)
@pytest.mark.parametrize("ranks", [1, 8, 24, 64, 512])
def test_a_recipe_is_adapted_to_ranks_that_cannot_share_it(name, ranks):
    config = load(name)
    new, changes = adapted(config, ranks)
    data, batch = new.train_data, new.batch
    assert not world_problems(batch, lanes=data.lanes, workers=data.workers, world_size=ranks)
    assert data.row_tokens >= data.max_seq_len
    slots = config.batch.rows * config.train_data.row_tokens
    assert batch.rows * data.row_tokens == pytest.approx(slots, rel=0.2)
    assert batch.microbatch_rows * data.row_tokens <= (
        config.batch.microbatch_rows * config.train_data.row_tokens
    )
    assert bool(changes) == (new != config)


def test_the_recipe_on_eight_h100_is_near_what_was_published():
    for name in YAMLS:
        phase = phase_of(name)
        found = speeds(phase.config, phase.work, "h100")
        beside = {
            source: against_published(replace(phase, speed=speed), links())["deviation"]
            for source, (speed, _) in found.items()
        }
        assert -0.05 < beside["published"] < 0.5, name  # a quarter of the peak; later ones did more
        assert -0.6 < beside["floor"] < -0.2, name
    assert against_published(replace(phase, gpu=GPUS["h200"]), links()) is None
    assert against_published(phase_of("demo/phase1.yaml"), links()) is None


def test_sharding_costs_more_than_averaging_gradients():
    phase = phase_of()
    compute = replace(phase.config.compute, sharding="fsdp")
    sharded = replace(phase, config=replace(phase.config, compute=compute))
    steps = [step_of(p, 64, 6 * 98_304, links("ethernet")) for p in (phase, sharded)]
    assert steps[1].gradients > steps[0].gradients > 0
    assert steps[1].optimizer == pytest.approx(steps[0].optimizer / 64)


def test_the_link_of_real_ranks_is_found_from_their_all_reduces():
    network = replace(QUIET, hop_within=2e-4, ranks_per_node=1024)
    sizes = (2**16, 2**20, 25 * 2**20)
    times = {str(size): {"wall": ring_seconds(size, 2, network)} for size in sizes}
    found = scaling.link_of(times, "wall")
    assert (found.within, found.hop_within) == pytest.approx((1e9, 2e-4))


def test_the_table_and_the_file_say_the_same(tmp_path, capsys):
    out = tmp_path / "scaling.json"
    yaml = str(REPOSITORY / "yamls" / "phase1.yaml")
    asked = [yaml, "--gpus", "8,512", "--gpu", "h100", "--out", str(out), "--set", "unpickle=1e-9"]
    assert scaling.main(asked) == 0
    said, report = capsys.readouterr().out, json.loads(out.read_text())
    assert report["assumed"]["unpickle"] == 1e-9 and set(report["assumed"]) == set(STATED)
    for phase in report["phases"]:
        assert [run["gpus"] for run in phase["runs"]] == [8, 512]
        for run in phase["runs"]:
            parts = {k: v for k, v in run["step"].items() if k not in ("seconds", "hidden")}
            assert math.fsum(parts.values()) == pytest.approx(run["step"]["seconds"])
            assert f"{1e3 * run['step']['seconds']:,.1f}" in said
    assert "512 GPUs cannot share this batch as it is" in said and "published 191.1" in said


def test_a_loader_that_grows_is_told_from_one_that_does_not():
    from loader import flatness

    def samples(per_hour):
        hours = [n / 10 for n in range(30)]
        each = {"pss": 5.0, "uss": 4.0}
        return [
            {"seconds": 60 * h, "tokens": int(h * 3600 * 500e3), "rss": 900 + per_hour * h} | each
            for h in hours
        ]

    grows, rests = flatness(samples(7.0)), flatness(samples(0.0))
    assert grows["rss_megabytes_per_hour_of_a_gpu"] == grows["rss_megabytes_per_minute"] == 7.0
    assert rests["rss_megabytes_per_hour_of_a_gpu"] == pytest.approx(0, abs=1e-6)
    assert rests["lowest_and_highest_megabytes"]["rss"] == [900, 900]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (["--gpus", "8,x"], "--gpus 8,x: numbers of GPUs"),
        (["--gpus", "0"], "--gpus 0: numbers of GPUs"),
        (["--gpu", "z80"], "--gpu z80: unknown; one of a100-40"),
        (["--network", "string"], "--network string: unknown; one of ndr"),
        (["--gbit", "-1"], "--gbit must be positive; got -1"),
        (["--compute", "much"], "--compute much: measured, published, floor"),
        (["--compute", "measured"], "run benchmarks/train_step.py there"),
        (["--set", "hop=1"], "--set hop=1: NAME=NUMBER"),
        (["--set", "disk=0"], "--set disk=0: NAME=NUMBER above 0"),
        (["--out", "no/such/folder/x.json"], "there is no folder no/such/folder"),
        (["nothing.yaml"], "nothing.yaml"),
    ],
)
def test_what_makes_no_sense_is_said_in_one_line(asked, said, capsys):
    assert scaling.main(asked) == 2
    printed = capsys.readouterr()
    assert said in printed.err and printed.out == "" and printed.err.count("\n") == 1


@pytest.mark.slow
def test_real_ranks_are_measured():
    import ranks

    found = {n: ranks.measure(n, {64: 2}) for n in (1, 2)}
    assert found[2]["exchange"] > 0
    for clock in ranks.CLOCKS:
        assert scaling.link_of(found[2]["all_reduce"], clock).within > 1e7
        row = scaling.beside(found, 2, 64, clock, 2)
        assert 0 < row["predicted"]["share"] < 1
        assert (row["buckets"], row["measured"]["steps"]) == (2, 2)
