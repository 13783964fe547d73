"""Graphs for serving: they give what transformers gives, or are not left behind."""

import json

import numpy as np
import pytest
import safetensors.torch
import torch
from judging import job, make_encoder

from tessera.checkpoints import CheckpointError, graphs, load_model
from tessera.cli.main import main
from tessera.evaluation.tasks import efficiency

for needed in ("onnx", "onnxruntime", "openvino"):
    pytest.importorskip(needed)

LENGTHS = [30, 1, 77]


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    # Weights this large make attention sharp: a graph that masks wrongly would show.
    return make_encoder(tmp_path_factory.mktemp("encoder"), weights=0.3)


def batch():
    real = torch.arange(max(LENGTHS)) < torch.tensor(LENGTHS)[:, None]
    ids = torch.randint(5, 250, real.shape, generator=torch.Generator().manual_seed(9))
    return ids.masked_fill(~real, 3), real


def theirs(auto, folder):
    ids, real = batch()
    model = auto.from_pretrained(folder, attn_implementation="sdpa").eval()
    with torch.inference_mode():
        return model(input_ids=ids, attention_mask=real.long())


def served(file):
    ids, real = batch()
    return graphs.session(file, threads=1)(ids.numpy(), real.long().numpy())


def test_each_graph_gives_what_transformers_gives(encoder, tmp_path, capsys):
    from transformers import AutoModelForMaskedLM

    out = tmp_path / "out"
    command = ["export", str(encoder), "--out", str(out), "--onnx", "--int8", "--openvino"]
    assert main(command) == 0
    said = capsys.readouterr().out
    assert f"{out}/onnx/model.onnx: logits" in said and "cosine 1.000000" in said
    expected = theirs(AutoModelForMaskedLM, encoder).logits.numpy()
    real = batch()[1].numpy()
    assert np.abs(expected).max() > 1
    for kind in ("onnx", "openvino"):
        found = served(out / graphs.PLACES[kind])
        assert np.abs(found - expected)[real].max() < 1e-4, kind
    eight = served(out / graphs.PLACES["int8"])
    difference = np.abs(eight - expected)[real]
    assert difference.max() > 1e-3, "its weights have fewer bits"
    assert np.corrcoef(eight[real].ravel(), expected[real].ravel())[0, 1] > 0.95
    assert load_model(out).config.hidden_size == 32, "the folder is still a model"
    assert main([*command[:-2], "--encoder-only"]) == 0, "an earlier export is replaced"
    assert not (out / "openvino").exists()
    (out / "notes.txt").write_text("mine")
    assert main(command) == 2
    assert "left alone" in capsys.readouterr().err


def test_a_fine_tuned_head_and_the_encoder_alone(encoder, tmp_path):
    from transformers import AutoModel, AutoModelForSequenceClassification

    torch.manual_seed(4)
    tuned = AutoModelForSequenceClassification.from_pretrained(encoder, num_labels=3)
    tuned.save_pretrained(tmp_path / "tuned")
    (tmp_path / "tuned" / "training_args.bin").write_bytes(b"a Trainer's")
    [graph] = graphs.export_with_graphs(tmp_path / "tuned", tmp_path / "a", ["onnx"])
    assert graph.output == "logits"
    expected = theirs(AutoModelForSequenceClassification, tmp_path / "tuned").logits.numpy()
    assert expected.shape == (3, 3)
    assert np.abs(served(graph.file) - expected).max() < 1e-4
    assert not (tmp_path / "a" / "training_args.bin").exists()

    [graph] = graphs.export_with_graphs(encoder, tmp_path / "b", ["onnx"], encoder_only=True)
    hidden = theirs(AutoModel, encoder).last_hidden_state.numpy()
    assert np.abs(served(graph.file) - hidden)[batch()[1].numpy()].max() < 1e-4


@pytest.mark.slow
def test_what_sentence_transformers_pools_is_the_encoder_alone(encoder, tmp_path):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    sentence_transformers.SentenceTransformer(str(encoder)).save(str(tmp_path / "st"))
    [graph] = graphs.export_with_graphs(tmp_path / "st", tmp_path / "out", ["openvino"])
    assert graph.output == "last_hidden_state"
    assert (tmp_path / "out" / "modules.json").is_file()
    assert not (tmp_path / "out" / "onnx").exists(), "nobody asked for it"


def test_a_graph_of_other_weights_is_refused(encoder, tmp_path, monkeypatch):
    trace = graphs._trace

    def wrong(model, *arguments, **keywords):
        # Much less than a wrong window does.
        with torch.no_grad():
            model.get_input_embeddings().weight[:, 0] += 0.01
        trace(model, *arguments, **keywords)

    monkeypatch.setattr(graphs, "_trace", wrong)
    with pytest.raises(CheckpointError, match="differs from transformers by .* refused"):
        graphs.export_with_graphs(encoder, tmp_path / "out", ["onnx"])
    assert list(tmp_path.iterdir()) == []


def test_eight_bits_that_ruin_a_model_are_refused(encoder, tmp_path, monkeypatch):
    monkeypatch.setattr(graphs, "LEAST_AGREEMENT", 1.1)
    with pytest.raises(CheckpointError, match="serve it without --int8"):
        graphs.export_with_graphs(encoder, tmp_path / "out", ["int8"])
    assert list(tmp_path.iterdir()) == []


def test_weights_that_are_not_numbers_are_refused(encoder, tmp_path, capsys):
    make_encoder(tmp_path / "nan")
    weights = safetensors.torch.load_file(tmp_path / "nan" / "model.safetensors")
    weights["model.final_norm.weight"][0] = float("nan")
    safetensors.torch.save_file(weights, tmp_path / "nan" / "model.safetensors", {"format": "pt"})
    assert main(["export", str(tmp_path / "nan"), "--out", str(tmp_path / "o"), "--onnx"]) == 2
    said = capsys.readouterr().err
    assert f"{tmp_path}/nan: its weights hold NaN or infinity, first in model.final_norm" in said
    assert not (tmp_path / "o").exists()


def test_a_decoder_is_refused_and_a_missing_tokenizer_is_said(tmp_path, capsys, caplog):
    folder = make_encoder(tmp_path / "model")
    (folder / "tokenizer.json").unlink()
    command = ["export", str(folder), "--out", str(tmp_path / "o"), "--onnx"]
    assert main(command) == 0
    assert "holds no tokenizer; whoever serves" in caplog.text
    config = json.loads((folder / "config.json").read_text())
    config["architectures"] = ["LlamaForCausalLM"]
    (folder / "config.json").write_text(json.dumps(config))
    assert main(command) == 2
    assert f"{folder}: is a decoder (LlamaForCausalLM)" in capsys.readouterr().err


def test_options_that_say_nothing_are_refused(encoder, tmp_path, capsys, monkeypatch):
    command = ["export", str(encoder), "--out", str(tmp_path / "o")]
    assert main([*command, "--encoder-only"]) == 2
    assert "add --onnx, --int8 or --openvino" in capsys.readouterr().err
    monkeypatch.setattr(graphs, "find_spec", lambda name: None)
    assert main([*command, "--int8"]) == 2
    assert "--int8: onnx, onnxruntime not installed" in capsys.readouterr().err
    assert not (tmp_path / "o").exists()


def test_graphs_in_a_folder_are_timed_beside_the_rest(encoder, tmp_path):
    graphs.export_with_graphs(encoder, tmp_path / "m", ["int8"], encoder_only=True)
    graphs.export_with_graphs(encoder, tmp_path / "n", ["onnx"])
    plain = {"name": "efficiency", "documents": 2, "short": 32, "long": 40, "runs": 1}
    [table] = efficiency.run(job(tmp_path / "m", plain), "cpu", tmp_path, None).tables
    assert "variable short (around 16), padded (int8)" in [row[0] for row in table.rows]
    [table] = efficiency.run(job(tmp_path / "n", plain), "cpu", tmp_path, None).tables
    assert "fixed long (40), padded (onnx, with its head)" in [row[0] for row in table.rows]
