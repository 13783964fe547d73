"""GPUs by name, as their makers describe them."""

from dataclasses import dataclass

from tessera.config import ConfigError


@dataclass(frozen=True, kw_only=True)
class Gpu:
    """What of a GPU decides whether a run fits, and how long it takes."""

    title: str
    memory_mib: int
    """As `nvidia-smi` shows it, a little less than the name says or a little more."""
    bf16_flops: float
    """Dense bfloat16 operations per second with float32 sums, by the data sheet."""
    memory_bandwidth: float
    """Bytes per second between the GPU and its memory, by the data sheet."""
    multiprocessors: int


GPUS = {
    "a100-40": Gpu(
        title="A100 40 GB",
        memory_mib=40_960,
        bf16_flops=312e12,
        memory_bandwidth=1.555e12,
        multiprocessors=108,
    ),
    "a100-80": Gpu(
        title="A100 80 GB",
        memory_mib=81_920,
        bf16_flops=312e12,
        memory_bandwidth=2.039e12,
        multiprocessors=108,
    ),
    "h100": Gpu(
        title="H100 SXM 80 GB",
        memory_mib=81_559,
        bf16_flops=989e12,
        memory_bandwidth=3.35e12,
        multiprocessors=132,
    ),
    "h200": Gpu(
        title="H200 SXM 141 GB",
        memory_mib=143_771,
        bf16_flops=989e12,
        memory_bandwidth=4.8e12,
        multiprocessors=132,
    ),
    "b200": Gpu(
        title="B200 180 GB",
        memory_mib=183_359,
        bf16_flops=2250e12,
        memory_bandwidth=7.7e12,
        multiprocessors=148,
    ),
    "l40s": Gpu(
        title="L40S 48 GB",
        memory_mib=46_068,
        bf16_flops=362e12,
        memory_bandwidth=864e9,
        multiprocessors=142,
    ),
    "4090": Gpu(
        title="RTX 4090 24 GB",
        memory_mib=24_564,
        bf16_flops=165e12,
        memory_bandwidth=1.008e12,
        multiprocessors=128,
    ),
}


def gpu_of(name: str) -> Gpu:
    """A GPU by its short name.

    Raises:
        ConfigError: naming those there are.
    """
    if name.lower() not in GPUS:
        raise ConfigError(f"--gpu {name}: unknown; one of {', '.join(GPUS)}")
    return GPUS[name.lower()]
