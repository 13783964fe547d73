"""Compiled layers are the same layers, whole, and compiled once whatever the documents."""

import pytest
import torch

from tessera.batch import IGNORED
from tessera.model.compilation import compile_modules, graph_breaks, graphs_compiled
from tessera.model.config import ModelConfig
from tessera.model.dropout import dropout_keys
from tessera.model.modernbert import ModernBertForMaskedLM

CONFIG = ModelConfig(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=24,
    num_hidden_layers=5,
    global_attn_every_n_layers=2,
    num_attention_heads=2,
    local_attention=8,
)
TOKENS = 128


def model_in_training() -> ModernBertForMaskedLM:
    model = ModernBertForMaskedLM(CONFIG).train()
    model.initialize(0)
    return model


def step(model: ModernBertForMaskedLM, row: int, tokens: int = TOKENS) -> list[torch.Tensor]:
    """Loss and gradients of a row whose documents, masks and dropout are its own."""
    generator = torch.Generator().manual_seed(row)
    cuts = torch.randperm(tokens - 1, generator=generator)[: row * row].sort().values + 1
    cu_seqlens = torch.tensor([0, *cuts.tolist(), tokens], dtype=torch.int32)
    ids = torch.randint(0, 96, (tokens,), generator=generator)
    positions = torch.randperm(tokens, generator=generator)[:40].sort().values
    labels = ids[positions].clone()
    labels[35 + row % 5 :] = IGNORED
    out = model(
        ids,
        cu_seqlens=cu_seqlens,
        max_seqlen=tokens,
        masked_positions=positions,
        masked_labels=labels,
        dropout_keys=dropout_keys(1, torch.tensor([row]), tokens),
    )
    gradients = torch.autograd.grad(out.loss_sum, list(model.parameters()))
    return [out.loss_sum.detach(), *gradients]


def test_compiled_layers_are_whole_and_compiled_once_whatever_the_documents():
    model = model_in_training()
    rows = [3, 0, 1, 9, 2, 11]  # rows of 10, 1, 2, 82, 5 and 122 documents
    expected = [step(model, row) for row in rows]

    breaks = graph_breaks()
    compile_modules([*model.model.layers, model.head], backend="aot_eager")
    before = graphs_compiled()
    first = step(model, rows[0])
    after_warm_up = graphs_compiled()
    rest = [step(model, row) for row in rows[1:]]

    assert 0 < after_warm_up - before <= 5, "first, global, local and last layer, and the head"
    assert graphs_compiled() == after_warm_up
    assert graph_breaks() == breaks
    for ours, theirs in zip([first, *rest], expected, strict=True):
        for a, b in zip(ours, theirs, strict=True):
            largest = max(1.0, b.abs().max().item())
            torch.testing.assert_close(a, b, atol=1e-4 * largest, rtol=1e-4)

    step(model, 0, tokens=TOKENS // 2)
    assert graphs_compiled() > after_warm_up, "the counter must notice another shape"


@pytest.mark.slow
def test_layers_compiled_for_this_machine_give_the_same_gradients():
    model = model_in_training()
    expected = step(model, 1)
    model.compile_layers()
    try:
        compiled = step(model, 1)
    except torch._dynamo.exc.BackendCompilerFailed as error:
        pytest.skip(f"no compiler on this machine: {error}")
    for a, b in zip(compiled, expected, strict=True):
        torch.testing.assert_close(a, b, atol=1e-4, rtol=1e-4)
