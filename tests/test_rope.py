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


def test_rotation_equals_complex_multiplication():
    x = torch.randn(50, 3, 16, generator=torch.Generator().manual_seed(0))
    positions = torch.arange(50) * 7
    turned = rotate(x, rotary(positions, 16, 10_000.0))
    torch.testing.assert_close(
        turned.double(), complex_rotation(x, positions, 10_000.0), atol=1e-4, rtol=0
    )


def test_products_of_queries_and_keys_depend_on_their_distance_alone():
    q, k = torch.randn(2, 1, 1, 32, generator=torch.Generator().manual_seed(1))

    def product(i: int, j: int) -> float:
        turn = rotary(torch.tensor([i, j]), 32, 160_000.0)
        turned = rotate(torch.cat([q, k]), turn)
        return float((turned[0] * turned[1]).sum())

    assert abs(product(5, 9) - product(1005, 1009)) < 1e-3
    assert abs(product(5, 9) - product(5, 10)) > 1e-3


def test_the_gradient_is_the_rotation_backwards():
    x = torch.randn(9, 2, 8, dtype=torch.float64, requires_grad=True)
    turn = tuple(part.double() for part in rotary(torch.arange(9), 8, 100.0))
    upstream = torch.randn(9, 2, 8)
    (gradient,) = torch.autograd.grad(rotate(x, turn), x, upstream.double())
    back = complex_rotation(upstream, -torch.arange(9), 100.0)
    torch.testing.assert_close(gradient, back, atol=1e-5, rtol=0)


def test_half_precision_is_rotated_in_float32():
    x = torch.randn(4096, 1, 64, generator=torch.Generator().manual_seed(2)).bfloat16()
    positions = torch.arange(4096)
    turned = rotate(x, rotary(positions, 64, 160_000.0))
    assert turned.dtype == torch.bfloat16
    expected = complex_rotation(x, positions, 160_000.0)
    torch.testing.assert_close(turned.double(), expected, atol=2e-3, rtol=2**-8)


def test_positions_begin_again_with_every_document():
    cu_seqlens = torch.tensor([0, 3, 3, 4, 9, 9, 9], dtype=torch.int32)
    assert positions_in_documents(cu_seqlens, 9).tolist() == [0, 1, 2, 0, 0, 1, 2, 3, 4]
