"""Rotation by position: against complex numbers, and against its defining property."""

import torch

from tessera.model.attention.packing import positions_in_documents
from tessera.model.rope import rotary, rotate


def complex_rotation(x: torch.Tensor, positions: torch.Tensor, theta: float) -> torch.Tensor:
    """Multiply channel pairs (i, i + D/2), as complex numbers, by exp(i * position * frequency)."""
    half = x.size(-1) // 2
    pairs = torch.complex(x[..., :half].double(), x[..., half:].double())
    frequencies = theta ** (-torch.arange(half).double() / half)
    angles = positions.double()[:, None] * frequencies
    turned = pairs * torch.polar(torch.ones_like(angles), angles).unsqueeze(1)
    return torch.cat([turned.real, turned.imag], dim=-1)


def qkv(tokens: int, channels: int, dtype=torch.float32, seed: int = 0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(tokens, 3, 2, channels, generator=generator).to(dtype)


def test_rotation_equals_complex_multiplication():
    x, positions = qkv(50, 16), torch.arange(50) * 7
    q, k, v = rotate(x, rotary(positions, 16, 10_000.0))
    for turned, plain in ((q, x[:, 0]), (k, x[:, 1])):
        exact = complex_rotation(plain, positions, 10_000.0)
        torch.testing.assert_close(turned.double(), exact, atol=1e-4, rtol=0)
    assert torch.equal(v, x[:, 2])


def test_products_of_queries_and_keys_depend_on_their_distance_alone():
    x = qkv(1, 32).expand(2, -1, -1, -1)

    def product(i: int, j: int) -> float:
        q, k, _ = rotate(x, rotary(torch.tensor([i, j]), 32, 160_000.0))
        return float((q[0] * k[1]).sum())

    assert abs(product(5, 9) - product(1005, 1009)) < 1e-3
    assert abs(product(5, 9) - product(5, 10)) > 1e-3


def test_the_gradient_is_the_rotation_backwards():
    x = qkv(9, 8, torch.float64).requires_grad_()
    cos, sin = (part.double() for part in rotary(torch.arange(9), 8, 100.0))
    upstream = qkv(9, 8, torch.float64, seed=1)
    (gradient,) = torch.autograd.grad(rotate(x, (cos, sin)), x, upstream.unbind(1))
    for part in range(2):
        back = complex_rotation(upstream[:, part], -torch.arange(9), 100.0)
        torch.testing.assert_close(gradient[:, part], back, atol=1e-5, rtol=0)
    assert torch.equal(gradient[:, 2], upstream[:, 2])


def test_half_precision_is_rotated_in_float32():
    x, positions = qkv(4096, 64, torch.bfloat16), torch.arange(4096)
    turned = rotate(x, rotary(positions, 64, 160_000.0))[0]
    assert turned.dtype == torch.bfloat16
    expected = complex_rotation(x[:, 0], positions, 160_000.0)
    torch.testing.assert_close(turned.double(), expected, atol=2e-3, rtol=2**-8)


def test_positions_begin_again_with_every_document():
    cu_seqlens = torch.tensor([0, 3, 3, 4, 9, 9, 9], dtype=torch.int32)
    assert positions_in_documents(cu_seqlens, 9).tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
