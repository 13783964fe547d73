"""Floating-point operations per second that a device can do at most, measured."""

import time

import torch
from torch import Tensor


@torch.no_grad()
def matmul_rate(device: torch.device, dtype: torch.dtype, *, seconds: float) -> float:
    """Operations per second of a large matrix product, the best of tries for `seconds`.

    The best, for other work on the machine only ever makes one slower.
    """
    size, products = (8192, 4) if device.type == "cuda" else (1024, 1)
    a, b = (torch.randn(size, size, device=device, dtype=dtype) for _ in "ab")
    _seconds_of(a, b, products)
    took: list[float] = []
    while not took or sum(took) < seconds:
        took.append(_seconds_of(a, b, products))
    return products * 2.0 * size**3 / min(took)


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
