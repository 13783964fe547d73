"""One masked token, one vote: the gradient does not depend on how a batch is cut."""

import math

import pytest
import tiny_run
import torch

from tessera.batch import IGNORED
from tessera.tokenizer import load_tokenizer

ONE_STEP = {
    "duration": "1ba",
    "checkpoints__interval": "1ba",
    "batch__rows": 8,
    "schedule": {"name": "constant"},
    "evaluation__at_end": False,
    "model__attention_output_dropout": 0.1,
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


def gradients(folder):
    """The gradient of the first step: with StableAdamW its first moment, then, is that itself."""
    moments = tiny_run.read(folder, 1)["optimizers"]["StableAdamW"]["state"]
    return {
        name.removeprefix("model."): moment["exp_avg"].clone() for name, moment in moments.items()
    }


def direct(plain):
    """Gradients of sum / count over one big batch, and of the mean of its rows' means."""
    from tessera.config import decode
    from tessera.data.loader import Loader
    from tessera.model.dropout import dropout_keys
    from tessera.model.modernbert import ModernBertForMaskedLM
    from tessera.training.config import RunConfig

    config = decode(RunConfig, plain, "test")
    loader = Loader(
        config.train_data,
        config.batch,
        load_tokenizer(config.tokenizer),
        vocab_size=config.model.vocab_size,
        seed=config.seed,
    )
    (batch,) = next(iter(loader)).microbatches
    model = ModernBertForMaskedLM(config.model)
    model.initialize(config.seed)
    model.train()
    output = model(
        batch.input_ids,
        cu_seqlens=batch.cu_seqlens,
        max_seqlen=batch.max_seqlen,
        labels=batch.labels(),
        dropout_keys=dropout_keys(config.seed, batch.rows, batch.row_tokens),
    )
    (output.loss_sum / output.masked_tokens).backward()
    rows = (batch.labels() != IGNORED).view(batch.rows.numel(), -1).sum(1)
    return {n: p.grad for n, p in model.named_parameters()}, rows


def close(one, other, tolerance=2e-6):
    assert one.keys() == other.keys()
    scale = max(float(g.abs().max()) for g in one.values())
    worst = max(float((one[name] - other[name]).abs().max()) for name in one)
    return worst < tolerance * scale


def test_the_gradient_is_that_of_one_big_batch_however_it_is_cut(corpus, tmp_path):
    whole = tiny_run.settings(corpus, tmp_path / "8", **ONE_STEP, batch__microbatch_rows=8)
    expected, masked_per_row = direct(whole)
    assert masked_per_row.max() > 1.3 * masked_per_row.min(), "rows too alike to tell votes apart"
    for size in (8, 3, 2, 1):
        folder = tmp_path / str(size)
        plain = tiny_run.settings(corpus, folder, **ONE_STEP, batch__microbatch_rows=size)
        assert tiny_run.train(plain) == 0
        assert close(gradients(folder), expected), f"microbatches of {size} rows"
        assert tiny_run.metrics(folder)[0]["masked_tokens"] == int(masked_per_row.sum())


def test_microbatches_without_a_masked_token_do_no_harm(corpus, tmp_path):
    sparse = {**ONE_STEP, "train_data__masking": {"rate": 0.004}}
    whole = tiny_run.settings(corpus, tmp_path / "8", **sparse, batch__microbatch_rows=8)
    expected, masked_per_row = direct(whole)
    assert (masked_per_row == 0).any() and masked_per_row.any()
    assert tiny_run.train({**whole, "batch": {"rows": 8, "microbatch_rows": 1}}) == 0
    assert close(gradients(tmp_path / "8"), expected)


def test_a_batch_without_a_masked_token_does_no_harm(corpus, tmp_path):
    nothing = {**ONE_STEP, "duration": "3ba", "train_data__masking": {"rate": 1e-5}}
    assert tiny_run.train(tiny_run.settings(corpus, tmp_path / "run", **nothing)) == 0
    records = tiny_run.metrics(tmp_path / "run")
    assert [record["masked_tokens"] for record in records] == [0, 0, 0]
    assert [record["loss"] for record in records] == [None, None, None]
    assert all(torch.isfinite(w).all() for w in tiny_run.read(tmp_path / "run")["model"].values())


@pytest.mark.slow
@pytest.mark.parametrize("ranks", [2, 4])
def test_the_gradient_is_the_same_over_processes(ranks, corpus, tmp_path):
    whole = tiny_run.settings(corpus, tmp_path / "one", **ONE_STEP, batch__microbatch_rows=8)
    expected, _ = direct(whole)
    folder = tmp_path / "many"
    plain = tiny_run.settings(corpus, folder, **ONE_STEP, batch__microbatch_rows=1)
    process = tiny_run.start(tiny_run.write_yaml(tmp_path / "run.yaml", plain), ranks=ranks)
    output, _ = process.communicate(timeout=600)
    assert process.returncode == 0, output
    assert close(gradients(folder), expected)


def test_the_loss_in_the_metrics_is_the_mean_over_masked_tokens(corpus, tmp_path):
    records = {}
    for size in (8, 1):
        folder = tmp_path / str(size)
        plain = tiny_run.settings(corpus, folder, **ONE_STEP, batch__microbatch_rows=size)
        tiny_run.train(plain)
        records[size] = tiny_run.metrics(folder)[0]
    assert records[1]["loss"] == pytest.approx(records[8]["loss"], rel=1e-6)
    assert records[1]["grad_norm"] == pytest.approx(records[8]["grad_norm"], rel=1e-5)


def test_gradients_are_synchronised_once_a_step():
    from composer.trainer.trainer import _get_ddp_sync_strategy

    assert _get_ddp_sync_strategy(None, False).name == "SINGLE_AUTO_SYNC"
    source = (tiny_run.REPOSITORY / "src/tessera/training/trainer.py").read_text()
    assert "ddp_sync_strategy" not in source, "Composer's default is what was just shown"


def test_the_z_loss_of_a_yaml_is_trained_on(corpus, tmp_path):
    """Before the first step all logits are near 0, and log(sum(exp(0))) over 256 is log(256)."""
    loss = {}
    for z_loss in (0.0, 0.1):
        folder = tmp_path / str(z_loss)
        tiny_run.train(tiny_run.settings(corpus, folder, **ONE_STEP, z_loss=z_loss))
        loss[z_loss] = tiny_run.metrics(folder)[0]["loss"]
    assert loss[0.1] - loss[0.0] == pytest.approx(0.1 * math.log(256) ** 2, rel=0.01)
