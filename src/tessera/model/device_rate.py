"""Floating-point operations per second that a device can do at most, measured."""

import time
from itertools import cycle

import torch
from torch import Tensor

_SIZES = {"cuda": ((4096, 16), (8192, 4)), "cpu": ((512, 4), (1024, 1), (2048, 1))}
"""Rows of square matrices, and how many products of them are timed at once."""


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float) -> float:
    """Operations per second of matrix products of several sizes, the best of tries for `seconds`.

    The best, for other work on the machine only ever makes one slower; every size at least once.
    """
    sizes = _SIZES["cuda" if device.type == "cuda" else "cpu"]
    pairs = [
        ([torch.randn(size, size, device=device, dtype=dtype) for _ in "ab"], products)
        for size, products in sizes
    ]
    for (a, b), _ in pairs:
        _seconds_of(a, b, 1)
    best = spent = 0.0
    for number, ((a, b), products) in enumerate(cycle(pairs), 1):
        took = _seconds_of(a, b, products)
        best = max(best, products * 2.0 * len(a) ** 3 / took)
        spent += took
        if number >= len(pairs) and spent >= seconds:
            return best
    raise AssertionError("there are sizes to try")


def _seconds_of(a: Tensor, b: Tensor, products: int) -> float:
    _wait_for(a)
    begin = time.perf_counter()
    for _ in range(products):
        torch.mm(a, b)
    _wait_for(a)
    return time.perf_counter() - begin


def _wait_for(a: Tensor) -> None:
    if a.is_cuda:
        torch.cuda.synchronize(a.device)
