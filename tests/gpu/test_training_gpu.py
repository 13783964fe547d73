"""Whole runs on a GPU, in bfloat16 and compiled, beside the same run on a CPU in float32."""

import os
import time

import pytest
import torch

pytest.importorskip("composer")
pytest.importorskip("streaming")

import tiny_run

from tessera.checkpoints import load_model

pytestmark = pytest.mark.gpu

if not torch.cuda.is_available():
    pytest.skip("no CUDA device", allow_module_level=True)

SETTINGS = {
    "duration": "12_000tok",
    "checkpoints__interval": "5ba",
    # Heads of 32: what every attention backend takes.
    "model__hidden_size": 64,
    "model__intermediate_size": 96,
}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """The same phase on a CPU, on a GPU, and on a GPU killed on its way and started again."""
    folder = tmp_path_factory.mktemp("runs")
    corpus = tiny_run.make_corpus(folder / "corpus")

    def yaml_of(name):
        plain = tiny_run.settings(corpus, folder / name, **SETTINGS)
        return tiny_run.write_yaml(folder / f"{name}.yaml", plain)

    for name in ("gpu", "killed"):
        process = tiny_run.start(yaml_of(name))
        if name == "killed":
            _wait_for_steps(folder / name, 12, process)
            process.kill()
            process.communicate()
            assert len(tiny_run.metrics(folder / name)) < len(tiny_run.metrics(folder / "gpu"))
            process = tiny_run.start(yaml_of(name))
        text, _ = process.communicate()
        assert process.returncode == 0, text
        assert ("resumes from" in text) == (name == "killed")
        assert "GPU" in text

    hidden = os.environ.get("CUDA_VISIBLE_DEVICES")
    os.environ["CUDA_VISIBLE_DEVICES"] = ""
    try:
        process = tiny_run.start(yaml_of("cpu"))
        text, _ = process.communicate()
        assert process.returncode == 0, text
    finally:
        del os.environ["CUDA_VISIBLE_DEVICES"]
        if hidden is not None:
            os.environ["CUDA_VISIBLE_DEVICES"] = hidden
    return folder


def _wait_for_steps(run_folder, steps, process):
    path = run_folder / "metrics.jsonl"
    while process.poll() is None and not (
        path.exists() and len(path.read_text().splitlines()) >= steps
    ):
        time.sleep(0.01)


@pytest.mark.parametrize("name", ["gpu", "killed"])
def test_a_gpu_trains_on_what_a_cpu_does_to_the_same_losses(runs, name):
    ours, expected = tiny_run.metrics(runs / name), tiny_run.metrics(runs / "cpu")
    for key in ("step", "tokens", "lr", "digest", "masked_tokens", "source_tokens"):
        assert [step[key] for step in ours] == [step[key] for step in expected]
    for a, b in zip(ours, expected, strict=True):
        assert a["loss"] == pytest.approx(b["loss"], rel=0.02)
        assert a["skipped"] is None
        assert a["mfu"] > 0
    assert expected[-1]["loss"] < 0.9 * expected[0]["loss"]


def test_no_layer_is_compiled_again_while_documents_change(runs):
    compiled = [step["graphs_compiled"] for step in tiny_run.metrics(runs / "gpu")]
    assert compiled[0] > 0
    assert compiled[-1] == compiled[2]


def test_a_checkpoint_of_a_gpu_is_read_on_a_cpu(runs):
    models = [load_model(runs / name) for name in ("gpu", "cpu")]
    ids = torch.arange(5, 69)
    ends = torch.tensor([0, 64], dtype=torch.int32)
    with torch.no_grad():
        ours, expected = (model(ids, cu_seqlens=ends).logits for model in models)
    assert (ours - expected).abs().mean() < 0.1 * expected.std()
