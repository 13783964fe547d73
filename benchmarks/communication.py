"""How long ranks take to exchange gradients and weights, by formula.

Legend: `n` ranks, `S` bytes that every rank holds, `B` bytes per second of the slowest link of a
ring, one way. Latencies per hop and their sums over rings and trees are those by which NCCL itself
chooses between the two (its `src/graph/tuning.cc`, protocol Simple).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

MIB = 2**20
FIRST_BUCKET, BUCKET = MIB, 25 * MIB
"""DistributedDataParallel's: a bucket closes once it holds so much."""
TREE_SHARE = 0.92
"""Of a ring's bandwidth, what a tree keeps."""


@dataclass(frozen=True, kw_only=True)
class Network:
    """Links between ranks: fast within a node, others between nodes."""

    title: str
    ranks_per_node: int
    within: float
    """Bytes per second that one rank sends within its node while it receives as many; reached."""
    between: float
    """Bytes per second that a node sends while it receives as many, all adapters; reached."""
    hop_within: float
    """Seconds."""
    hop_between: float
    start: float = 8.4e-6
    """Seconds of an exchange of nothing, beside its hops."""

    def nodes(self, ranks: int) -> int:
        """Nodes that so many ranks take."""
        return -(-ranks // self.ranks_per_node)

    def bandwidth(self, ranks: int) -> float:
        """B: rings enter a node by one adapter and leave it by another, all adapters at once."""
        return min(self.within, self.between) if self.nodes(ranks) > 1 else self.within

    def ring_latency(self, ranks: int, rounds: int) -> float:
        """Seconds of hops, one way around the ring for each of `rounds`."""
        hops = rounds * (ranks - 1)
        between = min(hops, rounds * self.nodes(ranks)) if self.nodes(ranks) > 1 else 0
        return self.start + between * self.hop_between + (hops - between) * self.hop_within


def ring_seconds(size: float, ranks: int, network: Network) -> float:
    """All-reduce around a ring: 2 (n - 1) / n * S / B (Patarasuk and Yuan 2009), and its hops."""
    if ranks == 1:
        return 0.0
    moved = 2 * (ranks - 1) / ranks * size
    return moved / network.bandwidth(ranks) + network.ring_latency(ranks, 2)


def tree_seconds(size: float, ranks: int, network: Network) -> float:
    """All-reduce up and down two binary trees over nodes, a chain within each: few hops."""
    if ranks == 1:
        return 0.0
    nodes = network.nodes(ranks)
    chain = min(ranks, network.ranks_per_node) - 1
    hops = 2 * (chain * network.hop_within + math.log2(nodes) * network.hop_between)
    return 2 * size / (TREE_SHARE * network.bandwidth(ranks)) + network.start + hops


def all_reduce_seconds(size: float, ranks: int, network: Network) -> float:
    """Every rank gets the sum of all: the faster of ring and tree."""
    return min(ring_seconds(size, ranks, network), tree_seconds(size, ranks, network))


def half_seconds(size: float, ranks: int, network: Network) -> float:
    """Reduce-scatter or all-gather of S bytes over a ring: half of an all-reduce each."""
    if ranks == 1:
        return 0.0
    moved = (ranks - 1) / ranks * size
    return moved / network.bandwidth(ranks) + network.ring_latency(ranks, 1)


@dataclass(frozen=True)
class Gradient:
    """A parameter's gradient in the order of the backward pass."""

    size: int
    """Bytes."""
    ready: float
    """Seconds into the backward pass."""


def buckets(gradients: Sequence[Gradient]) -> list[Gradient]:
    """What DistributedDataParallel sends at once: a bucket is ready when its last gradient is."""
    found: list[Gradient] = []
    size, limit = 0, FIRST_BUCKET
    for number, gradient in enumerate(gradients):
        size += gradient.size
        if size >= limit or number == len(gradients) - 1:
            found.append(Gradient(size, gradient.ready))
            size, limit = 0, BUCKET
    return found


def exposed_seconds(
    gradients: Sequence[Gradient], backward: float, ranks: int, network: Network
) -> float:
    """What is left of the all-reduces when the backward pass is over.

    Buckets go one after the other, each as soon as it is full; the backward pass is not slowed.
    """
    end = 0.0
    for bucket in buckets(gradients):
        end = max(end, bucket.ready) + all_reduce_seconds(bucket.size, ranks, network)
    return max(0.0, end - backward) if ranks > 1 else 0.0


def whole_seconds(gradients: Sequence[Gradient], ranks: int, network: Network) -> float:
    """All of the all-reduces, hidden or not."""
    return sum(all_reduce_seconds(bucket.size, ranks, network) for bucket in buckets(gradients))


def exchange_seconds(size: float, each: float, ranks: int, network: Network) -> float:
    """A small Python object of every rank on every rank: gathered, then each unpickled."""
    return half_seconds(size * ranks, ranks, network) + (ranks * each if ranks > 1 else 0.0)
