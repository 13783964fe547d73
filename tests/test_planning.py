"""What `tessera check` foretells, held against what torch and the loader really do."""

import numpy as np
import pytest
import tiny_run
import torch
from tiny_run import make_corpus, settings

from tessera.config import decode
from tessera.data.loader import Loader
from tessera.data.sources.source import open_source
from tessera.data.supply import readings
from tessera.model.config import ModelConfig
from tessera.model.dropout import dropout_keys
from tessera.model.flops import training_flops
from tessera.model.modernbert import ModernBertForMaskedLM
from tessera.planning.cost import work_of
from tessera.planning.gpus import GPUS
from tessera.planning.memory import activation_bytes, largest_microbatch, memory_of
from tessera.tokenizer import load_tokenizer
from tessera.training.config import RunConfig


def bytes_kept_by_autograd(config, slots, masked, *, halved, checkpointed=False):
    """Of distinct storages that are no weights, counted as autograd saves them."""
    model = ModernBertForMaskedLM(config)
    model.initialize(0)
    model.train()
    model.checkpoint_layers(checkpointed)
    weights = {p.untyped_storage().data_ptr() for p in model.parameters()}
    shapes = {tuple(p.shape) for p in model.parameters()}
    shapes |= {shape[::-1] for shape in shapes}
    kept = {}

    def keep(tensor):
        if tensor.untyped_storage().data_ptr() not in weights and tuple(tensor.shape) not in shapes:
            kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    ids = torch.randint(0, config.vocab_size, (slots,))
    with (
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
        torch.autocast("cpu", torch.bfloat16, enabled=halved),
    ):
        model(
            ids,
            cu_seqlens=torch.arange(0, slots + 1, 50, dtype=torch.int32),
            max_seqlen=50,
            masked_positions=torch.arange(masked),
            masked_labels=ids[:masked],
            dropout_keys=dropout_keys(1, torch.arange(slots // 50), 50),
        )
    return sum(tensor.untyped_storage().nbytes() for tensor in kept.values())


@pytest.mark.parametrize("halved", [True, False])
@pytest.mark.parametrize(
    ("hidden", "inner", "layers", "masked", "qk_norm"),
    [(64, 96, 4, 120, False), (96, 48, 5, 200, True), (96, 48, 5, 200, False)]
    + [(32, 160, 3, 60, False)],
)
def test_activations_by_formula_are_those_that_autograd_keeps(
    halved, hidden, inner, layers, masked, qk_norm
):
    config = ModelConfig(
        vocab_size=512,
        hidden_size=hidden,
        intermediate_size=inner,
        num_hidden_layers=layers,
        num_attention_heads=4,
        local_attention=16,
        qk_norm=qk_norm,
    )
    kept = bytes_kept_by_autograd(config, 400, masked, halved=halved)
    counted = activation_bytes(config, 400, masked, halved=halved, compiled=False)
    assert counted == pytest.approx(kept, rel=0.015)


@pytest.mark.parametrize(
    ("name", "rows", "gib"), [("phase1.yaml", 12, 53), ("large/phase1.yaml", 6, 57)]
)
def test_a_compiled_step_is_as_large_as_it_was_on_an_h100(name, rows, gib):
    from tessera.config import load

    config = load(RunConfig, tiny_run.REPOSITORY / "yamls" / name)  # benchmarks/README.md
    memory = memory_of(config, 1, microbatch_rows=rows)
    assert (memory.total - memory.overhead) / 2**30 == pytest.approx(gib, rel=0.05)


def test_the_largest_microbatch_fits_and_the_next_does_not():
    from tessera.config import load

    config = load(RunConfig, tiny_run.REPOSITORY / "yamls" / "phase1.yaml")
    for gpu in GPUS.values():
        rows = largest_microbatch(config, 8, gpu)
        limit = gpu.memory_mib * 2**20
        assert memory_of(config, 8, microbatch_rows=rows).total <= limit
        fewer_microbatches = -(-72 // (-(-72 // rows) - 1))
        assert memory_of(config, 8, microbatch_rows=fewer_microbatches).total > limit
    small = decode(
        RunConfig,
        {**_plain(config), "train_data": {**_plain(config)["train_data"], "row_tokens": 2**22}},
        "test",
    )
    assert largest_microbatch(small, 8, GPUS["4090"]) is None


def _plain(config):
    from tessera.config import to_plain

    return to_plain(config)


@pytest.mark.parametrize("objective", ["masked", "causal"])
@pytest.mark.parametrize("long_documents", ["split", "truncate"])
def test_operations_foretold_are_those_of_the_rows_that_are_read(
    tmp_path, long_documents, objective
):
    corpus = make_corpus(tmp_path / "corpus", documents=60)
    data = {"max_seq_len": 48, "row_tokens": 256, "lanes": 1, "long_documents": long_documents}
    data["objective"] = objective
    plain = settings(corpus, tmp_path / "run")
    plain["train_data"] |= data
    config = decode(RunConfig, plain, "test")
    tokenizer = load_tokenizer(corpus / "tokenizer")
    sources = config.train_data.sources
    opened = {n: open_source(n, s, s.split, None) for n, s in sources.items()}
    frame = tokenizer.cls_id, tokenizer.sep_id
    read = readings(config.train_data, config.batch, config.duration, frame, opened)
    work = work_of(config, read)

    loader = Loader(config.train_data, config.batch, tokenizer, vocab_size=256, seed=1)
    tokens = flops = masked = 0
    for step, _, _, rows in loader.steps():
        for row in rows:
            lengths = torch.from_numpy(np.diff(row.ends[: row.documents], prepend=0))
            predicted, causal = len(row.positions), objective == "causal"
            flops += training_flops(config.model, lengths, predicted, causal=causal)
            tokens, masked = tokens + row.tokens, masked + len(row.positions)
        if step == 100:
            break
    loader.close()
    assert work.from_lengths and work.tokens == 8000
    assert work.flops_per_token == pytest.approx(flops / tokens, rel=0.01)
