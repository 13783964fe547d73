"""Options that the published recipe has not: usable to the end, and honest where the end is."""

import pytest
import torch
from tiny_run import make_corpus, settings, train, write_yaml

from tessera.checkpoints import load_model, read_checkpoint
from tessera.cli.main import main


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return make_corpus(tmp_path_factory.mktemp("corpus"))


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    """A run with normed queries and keys, and spans; checkpoints after two and four batches."""
    folder = tmp_path_factory.mktemp("runs") / "normed"
    options = {"model__qk_norm": True, "train_data__masking__spans": True}
    plain = settings(corpus, folder, duration="4ba", checkpoints__interval="2ba", **options)
    plain["checkpoints"]["keep"] = 2
    assert train(plain) == 0
    return folder, plain


def test_normed_queries_and_keys_are_trained_read_and_merged(run, tmp_path, capsys):
    folder, _ = run
    trained = read_checkpoint(folder)
    gain = trained.weights["model.layers.1.attn.q_norm.weight"]
    assert trained.model_config.qk_norm and gain.shape == (16,) and (gain != 1).any()
    first, last = folder / "checkpoints/step00000002.pt", folder / "checkpoints/step00000004.pt"
    merged = tmp_path / "merged.pt"
    assert main(["merge", str(first), str(last), "--out", str(merged)]) == 0
    name = "model.layers.0.attn.k_norm.weight"
    parts = [read_checkpoint(path).weights[name] for path in (first, last)]
    torch.testing.assert_close(read_checkpoint(merged).weights[name], sum(parts) / 2)
    assert main(["import", str(folder), "--out", str(tmp_path / "start.pt")]) == 0
    model = load_model(tmp_path / "start.pt")
    ids = torch.arange(5, 40)
    logits = model(ids, cu_seqlens=torch.tensor([0, 35], dtype=torch.int32)).logits
    assert model.config.qk_norm and logits.isfinite().all()


@pytest.mark.parametrize("command", ["export", "export --onnx", "release"])
def test_what_transformers_has_no_place_for_is_refused_by_key(run, tmp_path, capsys, command):
    folder, _ = run
    out = tmp_path / "out"
    name, *graphs = command.split()
    if graphs:
        pytest.importorskip("onnxruntime")
    assert main([name, str(folder), "--out", str(out), *graphs]) == 2
    said = capsys.readouterr().err
    assert said.count("model.qk_norm: true has weights") == 1 and "Traceback" not in said
    assert "train with model.qk_norm=false" in said
    assert not out.exists()


def test_check_says_at_once_what_cannot_be_exported(corpus, tmp_path, capsys):
    plain = settings(corpus, tmp_path / "run", model__qk_norm=True)
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 0
    said = capsys.readouterr().out
    assert "model.qk_norm: true has weights" in said
    assert "such a model cannot be exported to transformers" in said
    plain["model"]["qk_norm"] = False
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 0
    assert "cannot be exported" not in capsys.readouterr().out


def test_a_phase_goes_on_with_the_norms_it_starts_from(run, corpus, tmp_path, capsys):
    folder, _ = run
    plain = settings(corpus, tmp_path / "next", start_from=str(folder))
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 2
    assert "model.qk_norm: False here, True in" in capsys.readouterr().err
    plain = replace_model(plain, qk_norm=True)
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 0
    tiles = settings(corpus, tmp_path / "large", initial_weights={"tile": str(folder)})
    assert main(["check", str(write_yaml(tmp_path / "b.yaml", tiles))]) == 2
    assert "qk_norm is true in the source and false in the target" in capsys.readouterr().err


def replace_model(plain, **changes):
    return {**plain, "model": {**plain["model"], **changes}}


def test_masks_by_spans_are_not_changed_unasked_in_the_middle_of_a_run(run, tmp_path, capsys):
    _, plain = run
    plain = {**plain, "duration": "6ba"}
    plain["train_data"] = {**plain["train_data"], "masking": {"spans": False}}
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 2
    said = capsys.readouterr()
    assert "train_data.masking.spans: was True, now False; masks differ" in said.err
    plain["train_data"] = {**plain["train_data"], "masking": {"spans": True}}
    assert main(["check", str(write_yaml(tmp_path / "a.yaml", plain))]) == 0
    assert "30% by spans in training, 15% in evaluation" in capsys.readouterr().out
