"""The chunked loss is the cross-entropy, and never holds the logits of more than a chunk."""

import pytest
import torch
from torch.nn.functional import cross_entropy
from torch.utils.flop_counter import FlopCounterMode

from tessera.batch import IGNORED
from tessera.model.loss import masked_loss


def problem(tokens=37, hidden=24, vocabulary=50, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(tokens, hidden, generator=generator).to(dtype).requires_grad_()
    weight = (0.3 * torch.randn(vocabulary, hidden, generator=generator)).to(dtype)
    bias = torch.randn(vocabulary, generator=generator).to(dtype).requires_grad_()
    labels = torch.randint(0, vocabulary, (tokens,), generator=generator)
    labels[::5] = IGNORED
    return x, weight.requires_grad_(), bias, labels


def reference(x, weight, bias, labels, z_loss=0.0):
    logits = x.double() @ weight.double().t() + bias.double()
    squared = logits.logsumexp(1)[labels != IGNORED].square().sum()
    return cross_entropy(logits, labels, reduction="sum") + z_loss * squared


@pytest.mark.parametrize("chunk_logits", [1, 50, 50 * 7, 50 * 37, 10**9])
@pytest.mark.parametrize("z_loss", [0.0, 1e-2])
def test_loss_and_gradients_equal_the_plain_ones(chunk_logits, z_loss):
    inputs = problem()
    expected = reference(*inputs, z_loss)
    loss = masked_loss(*inputs, z_loss=z_loss, chunk_logits=chunk_logits)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-6, atol=1e-6)

    ours = torch.autograd.grad(loss * 0.37, inputs[:3])
    plain = torch.autograd.grad(expected * 0.37, inputs[:3])
    for a, b in zip(ours, plain, strict=True):
        assert b.abs().max() > 1e-3
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-5)


def test_gradients_of_a_tied_weight_add_up():
    x, weight, bias, labels = problem()
    ids = torch.arange(37) % 50

    def gradient(loss):
        return torch.autograd.grad(loss(weight[ids] * 1.7, weight, bias, labels), weight)[0]

    torch.testing.assert_close(gradient(masked_loss), gradient(reference), rtol=1e-4, atol=1e-5)


def test_ignored_tokens_have_no_gradient():
    x, weight, bias, labels = problem()
    masked_loss(x, weight, bias, labels).backward()
    assert not x.grad[labels == IGNORED].any()
    assert x.grad[labels != IGNORED].any(dim=1).all()


@pytest.mark.parametrize("labels", [torch.full((6,), IGNORED), torch.zeros(0, dtype=torch.long)])
def test_nothing_to_predict_is_no_loss(labels):
    x, weight, bias, _ = problem(tokens=len(labels))
    loss = masked_loss(x, weight, bias, labels)
    loss.backward()
    assert loss == 0
    assert not weight.grad.any()


def test_without_gradients_it_is_the_same_number():
    inputs = problem()
    with torch.no_grad():
        loss = masked_loss(*inputs)
        with FlopCounterMode(display=False) as counter:
            masked_loss(*inputs)
    assert loss == masked_loss(*inputs).detach()
    assert counter.get_total_flops() == 2 * 37 * 24 * 50, "one product, and no gradients"


def test_under_autocast_the_loss_is_summed_in_float32():
    x, weight, bias, labels = problem(tokens=400, vocabulary=300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = masked_loss(x, weight, bias, labels, chunk_logits=300 * 64)
    expected = reference(x, weight, bias, labels)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), expected, rtol=1e-3, atol=0)
    ours = torch.autograd.grad(loss, (x, weight, bias))
    plain = torch.autograd.grad(expected, (x, weight, bias))
    for a, b in zip(ours, plain, strict=True):
        assert a.dtype == torch.float32
        torch.testing.assert_close(a, b, rtol=0.05, atol=0.02 * b.abs().max().item())


def test_logits_of_a_large_vocabulary_are_never_held_at_once():
    """The largest tensor made on the way is a chunk, not (M, V)."""
    tokens, vocabulary, chunk = 512, 4096, 2**16
    x, weight, bias, labels = problem(tokens=tokens, vocabulary=vocabulary, hidden=8)
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            nonlocal largest
            out = function(*args, **(kwargs or {}))
            for tensor in out if isinstance(out, tuple | list) else [out]:
                if isinstance(tensor, torch.Tensor):
                    largest = max(largest, tensor.numel())
            return out

    with Watch():
        masked_loss(x, weight, bias, labels, chunk_logits=chunk).backward()
    assert chunk // 2 < largest <= chunk < tokens * vocabulary
