import json
import os
import sys
import time

import pytest
import tiny_run

from tessera.quantities import Duration
from tessera.training.console import ProgressLines
from tessera.training.loggers import METRICS_FILE, MetricsFile, flat
from tessera.training.shutdown import TrainingStopped

RUN = {
    "duration": "3_000tok",
    "evaluation__interval": "3ba",
    "checkpoints__interval": "2ba",
    "batch__warmup": {"initial_rows": 2, "increment_rows": 2, "over": "1_000tok"},
}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return tiny_run.make_corpus(tmp_path_factory.mktemp("corpus"), documents=60)


@pytest.fixture(scope="module")
def run(corpus, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    assert tiny_run.train(tiny_run.settings(corpus, folder, **RUN)) == 0
    return folder


def test_every_step_has_one_line_that_says_everything(run):
    records = tiny_run.metrics(run)
    assert [record["step"] for record in records] == list(range(1, len(records) + 1))
    tokens = rows = documents = 0
    for record in records:
        tokens += record["step_tokens"]
        documents += record["documents"]
        assert (record["tokens"], record["total_documents"]) == (tokens, documents)
        assert record["first_row"] == rows
        rows += record["rows"]
        assert sum(record["source_tokens"].values()) == record["step_tokens"]
        assert record["source_epochs"].keys() == record["epochs_read"].keys() == {"web", "code"}
        for source, furthest in record["source_epochs"].items():
            assert 0 <= record["epochs_read"][source] <= furthest + 1
        assert record["packing_fill"] == record["step_tokens"] / (record["rows"] * 128)
        assert record["mask_rate"] == record["masked_tokens"] / record["step_tokens"]
        assert 0.2 < record["mask_rate"] < 0.4
        assert len(record["digest"]) == 64
        assert record["grad_norm"] > 0 and record["loss"] > 0
        assert record["loader_wait_seconds"] < record["step_seconds"]
        assert 0 < record["mfu"] < 1
        assert record["tokens_per_second"] == pytest.approx(
            record["step_tokens"] / record["step_seconds"]
        )
    assert tokens >= 3000 > tokens - records[-1]["step_tokens"]
    assert {record["rows"] for record in records} == {2, 4}


def test_the_gradient_norm_is_over_all_parameters(corpus, tmp_path):
    import torch

    plain = tiny_run.settings(
        corpus, tmp_path / "run", duration="1ba", schedule={"name": "constant"}
    )
    tiny_run.train(plain)
    moments = tiny_run.read(tmp_path / "run")["optimizers"]["StableAdamW"]["state"]
    # The first moment after one step of StableAdamW is the gradient.
    squares = sum(float(m["exp_avg"].double().square().sum()) for m in moments.values())
    assert tiny_run.metrics(tmp_path / "run")[0]["grad_norm"] == pytest.approx(squares**0.5)
    assert any(m["exp_avg"].ndim == 1 for m in moments.values()), "norms and biases count too"
    assert torch.is_tensor(next(iter(moments.values()))["exp_avg"])


def test_evaluations_come_at_intervals_and_at_the_end(run):
    evaluations = tiny_run.metrics(run, "evaluation")
    last = tiny_run.metrics(run)[-1]["step"]
    assert [e["step"] for e in evaluations] == [*range(3, last, 3), last]
    for evaluation in evaluations:
        assert evaluation["sources"].keys() == {"web", "code"} and evaluation["seconds"] > 0
        for score in evaluation["sources"].values():
            assert 0 < score["tokens"] <= 1000 and 0 < score["masked_tokens"] < 200
            assert 0 <= score["accuracy"] <= 1


def test_evaluation_is_the_mean_over_the_same_masked_tokens_each_time(corpus, run, tmp_path):
    from tessera.checkpoints import load_model
    from tessera.config import decode
    from tessera.data.validation import validation_batches
    from tessera.evaluation.masked_lm import score
    from tessera.tokenizer import load_tokenizer
    from tessera.training.config import RunConfig

    config = decode(RunConfig, tiny_run.settings(corpus, run, **RUN), "test")
    tokenizer = load_tokenizer(config.tokenizer)
    model = load_model(run)
    for source, found in tiny_run.metrics(run, "evaluation")[-1]["sources"].items():
        batches = validation_batches(
            config.train_data,
            source,
            tokenizer,
            vocab_size=256,
            masking_rate=0.15,
            max_tokens=1000,
            seed=config.seed,
        )
        expected = score(model, batches, tokenizer.special_ids.tolist())
        assert found["loss"] == pytest.approx(expected.loss, rel=1e-5)
        assert found["accuracy"] == pytest.approx(expected.accuracy)
        assert found["masked_tokens"] == expected.masked_tokens
    counts = [
        [(s["masked_tokens"], s["tokens"]) for s in e["sources"].values()]
        for e in tiny_run.metrics(run, "evaluation")
    ]
    assert all(count == counts[0] for count in counts)


def lines_of(folder):
    return (folder / METRICS_FILE).read_bytes()


def test_a_continued_file_has_each_step_once(tmp_path):
    file = MetricsFile(tmp_path, after_step=0)
    for step in range(1, 6):
        file.write({"kind": "step", "step": step})
        if step == 3:
            file.write({"kind": "evaluation", "step": step})
    file.close()
    with (tmp_path / METRICS_FILE).open("ab") as torn:
        torn.write(b'{"kind": "step", "st')
    file = MetricsFile(tmp_path, after_step=3)
    file.write({"kind": "step", "step": 4})
    file.close()
    records = [json.loads(line) for line in lines_of(tmp_path).splitlines()]
    assert [(r["kind"], r["step"]) for r in records] == [
        ("step", 1),
        ("step", 2),
        ("step", 3),
        ("evaluation", 3),
        ("step", 4),
    ]


def test_a_damaged_line_costs_itself_alone_and_what_is_lacking_is_said(tmp_path, capsys):
    file = MetricsFile(tmp_path, after_step=0)
    for step in range(1, 7):
        file.write({"kind": "step", "step": step})
    file.close()
    lines = lines_of(tmp_path).splitlines(keepends=True)
    lines[1] = lines[1].replace(b'"step"', b'"st\xffep')
    (tmp_path / METRICS_FILE).write_bytes(b"".join(lines))
    MetricsFile(tmp_path, after_step=5).close()
    assert lines_of(tmp_path) == b"".join(lines[:5])
    assert "no whole record of 1 of the 5 steps" in "".join(capsys.readouterr())
    (tmp_path / METRICS_FILE).write_bytes(lines[0])
    MetricsFile(tmp_path, after_step=5).close()
    assert "no whole record of 4 of the 5 steps" in "".join(capsys.readouterr())


def test_a_phase_begun_anew_does_not_keep_another_runs_lines(tmp_path):
    (tmp_path / METRICS_FILE).write_text('{"kind": "step", "step": 1}\n')
    MetricsFile(tmp_path, after_step=0).close()
    assert lines_of(tmp_path) == b""


def test_numbers_that_json_does_not_know_are_refused(tmp_path):
    with pytest.raises(ValueError):
        MetricsFile(tmp_path, after_step=0).write({"kind": "step", "loss": float("nan")})
    assert lines_of(tmp_path) == b""


def test_a_line_that_does_not_fit_stops_the_run_and_leaves_no_part_of_itself(tmp_path, monkeypatch):
    file = MetricsFile(tmp_path, after_step=0)
    file.write({"kind": "step", "step": 1})
    before = lines_of(tmp_path)
    write = os.write
    monkeypatch.setattr(os, "write", lambda handle, data: write(handle, data[:7]))
    with pytest.raises(TrainingStopped, match="metrics.jsonl cannot be written .*No space left"):
        file.write({"kind": "step", "step": 2})
    assert lines_of(tmp_path) == before


def step_record(**changes):
    record = {
        "kind": "step",
        "step": 7,
        "tokens": 1_500_000,
        "loss": 2.5,
        "lr": 1e-3,
        "step_tokens": 1000,
        "step_seconds": 0.5,
        "tokens_per_second": 2000.0,
        "documents": 10,
        "total_documents": 70,
    }
    return {**record, **changes}


def test_the_progress_line_says_how_much_is_done_and_left(capsys):
    progress = ProgressLines(
        "base-phase1", Duration(2_000_000, "tok"), every_seconds=0.0, done=1_499_000
    )
    progress(step_record())
    assert capsys.readouterr().out == (
        "base-phase1  1.5M of 2M tok (75%)  step 7  loss 2.5000  lr 1.00e-03  2k tok/s  "
        "4 min 10 s left\n"
    )


def test_progress_lines_come_at_intervals_and_at_the_end(capsys):
    progress = ProgressLines("run", Duration(10, "ba"), every_seconds=1000.0)
    for step in range(1, 11):
        progress(step_record(step=step))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines] == ["1", "10"]


def test_records_become_paths_with_numbers():
    evaluation = {"kind": "evaluation", "step": 3, "sources": {"web": {"loss": 1.5}}}
    assert flat(evaluation) == [("evaluation/step", 3.0), ("evaluation/web/loss", 1.5)]
    step = {"kind": "step", "step": 1, "loss": None, "source_tokens": {"web": 5}, "digest": "ab"}
    assert flat(step) == [("train/step", 1.0), ("train/source_tokens/web", 5.0)]


def test_tensorboard_gets_the_same_numbers(corpus, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    folder = tmp_path / "run"
    tiny_run.train(tiny_run.settings(corpus, folder, duration="3ba", logging__tensorboard=True))
    events = accumulator.EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    losses = [(event.step, event.value) for event in events.Scalars("train/loss")]
    assert losses == [
        (r["step"], pytest.approx(r["loss"], rel=1e-6)) for r in tiny_run.metrics(folder)
    ]


class FakeRun:
    def __init__(self):
        self.logged = []

    def define_metric(self, name, **settings):
        pass

    def log(self, numbers):
        self.logged.append(numbers)
        if len(self.logged) == 2:
            raise ConnectionError("the service is gone")

    def finish(self):
        pass


def test_a_requeued_run_continues_its_wandb_run_and_trouble_does_not_stop_it(
    corpus, tmp_path, monkeypatch, capsys
):
    import wandb

    begun, runs = [], []

    def init(**settings):
        begun.append(settings)
        runs.append(FakeRun())
        return runs[-1]

    monkeypatch.setattr(wandb, "init", init)
    folder = tmp_path / "run"
    chosen = {"logging__wandb": {"project": "p", "mode": "offline"}}
    for steps in (3, 5):
        plain = tiny_run.settings(
            corpus,
            folder,
            duration=f"{steps}ba",
            schedule={"name": "constant"},
            **chosen,
        )
        assert tiny_run.train(plain) == 0
    assert begun[0]["id"] == begun[1]["id"] and begun[0]["resume"] == "allow"
    assert runs[0].logged[0]["train/loss"] == tiny_run.metrics(folder)[0]["loss"]
    assert "W&B failed (the service is gone); metrics.jsonl goes on" in capsys.readouterr().err
    assert len(tiny_run.metrics(folder)) == 5


def test_a_wandb_that_cannot_even_begin_does_not_stop_training(
    corpus, tmp_path, monkeypatch, capsys
):
    monkeypatch.setitem(sys.modules, "wandb", None)
    plain = tiny_run.settings(
        corpus, tmp_path / "run", duration="2ba", logging__wandb={"project": "p"}
    )
    assert tiny_run.train(plain) == 0
    assert "W&B cannot be used" in capsys.readouterr().err


@pytest.mark.slow
def test_wandb_works_offline(corpus, tmp_path):
    folder = tmp_path / "run"
    chosen = {"logging__wandb": {"project": "p", "mode": "offline"}}
    for steps in (3, 5):
        plain = tiny_run.settings(corpus, folder, duration=f"{steps}ba", **chosen)
        assert tiny_run.train(plain) == 0
        time.sleep(1.1)  # the folders are told apart by the second they were made in
    (run_id,) = (folder / "wandb_id").read_text().split()
    left = list((folder / "wandb").glob(f"offline-run-*-{run_id}/run-{run_id}.wandb"))
    assert len(left) == 2, "of the same run, one for each start"
    assert os.environ["WANDB_FINISH_TIMEOUT"], "a service out of reach is not waited for"


@pytest.mark.parametrize(
    ("variables", "expected"),
    [
        ({}, {"mode": "offline", "project": "p", "name": "named", "dir": "run"}),
        ({"WANDB_MODE": "online"}, {"mode": "online", "project": "p"}),
        ({"WANDB_MODE": "dryrun"}, {"mode": "offline"}),
        (
            dict.fromkeys(("WANDB_PROJECT", "WANDB_NAME", "WANDB_DIR", "WANDB_RUN_ID"), "other"),
            {"mode": "offline", "project": None, "name": None, "dir": None, "id": None},
        ),
    ],
)
def test_variables_of_wandb_go_before_the_yaml(tmp_path, monkeypatch, variables, expected):
    """What is left out, wandb takes from its variables."""
    import wandb

    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.loggers import open_loggers

    for name in ("MODE", "PROJECT", "ENTITY", "RUN_GROUP", "TAGS", "NAME", "DIR", "RUN_ID"):
        monkeypatch.delenv(f"WANDB_{name}", raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "run").mkdir()
    begun = []
    monkeypatch.setattr(wandb, "init", lambda **settings: begun.append(settings) or FakeRun())
    chosen = {"project": "p", "mode": "offline"}
    plain = tiny_run.settings(tmp_path, "run", run_name="named", logging__wandb=chosen)
    open_loggers(decode(RunConfig, plain, "test"), after_step=0)
    (settings,) = begun
    assert {name: settings.get(name) for name in expected} == expected


@pytest.mark.parametrize("variable", [("WANDB_MODE", "disabled"), ("WANDB_DISABLED", "true")])
def test_a_disabled_wandb_is_not_imported(tmp_path, monkeypatch, capsys, variable):
    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.loggers import open_loggers

    monkeypatch.setenv(*variable)
    monkeypatch.setitem(sys.modules, "wandb", None)
    plain = tiny_run.settings(tmp_path, tmp_path / "run", logging__wandb={})
    assert open_loggers(decode(RunConfig, plain, "test"), after_step=0) == []
    said = capsys.readouterr()
    assert "W&B is disabled" in said.out and not said.err


def test_tensorboard_goes_where_its_variable_says(tmp_path, monkeypatch):
    pytest.importorskip("tensorboard")
    from tessera.config import decode
    from tessera.training.config import RunConfig
    from tessera.training.loggers import open_loggers

    monkeypatch.setenv("TENSORBOARD_LOGGING_DIR", str(tmp_path / "boards"))
    plain = tiny_run.settings(tmp_path, tmp_path / "run", run_name="r", logging__tensorboard=True)
    (logger,) = open_loggers(decode(RunConfig, plain, "test"), after_step=0)
    logger.close()
    assert list((tmp_path / "boards" / "r").glob("events*"))


def test_a_log_that_is_no_terminal_gets_few_lines(monkeypatch, capsys):
    now = [0.0]
    monkeypatch.setattr("tessera.training.console.time.monotonic", lambda: now[0])
    for terminal, expected in ((True, 13), (False, 3)):
        monkeypatch.setattr(sys.stdout, "isatty", lambda terminal=terminal: terminal)
        progress = ProgressLines("run", Duration(1000, "ba"), every_seconds=10.0)
        for step in range(1, 122):
            now[0] += 1.0
            progress(step_record(step=step))
        assert len(capsys.readouterr().out.splitlines()) == expected


def test_the_first_rate_of_a_warm_up_is_nothing_to_a_reader(capsys):
    progress = ProgressLines("run", Duration(10, "ba"), every_seconds=0.0)
    progress(step_record(lr=1.5e-13, max_lr=1.5e-3))
    assert "lr 0  " in capsys.readouterr().out


def test_a_bar_is_lines_where_nobody_watches(monkeypatch):
    import io

    from tessera.data.preparation import progress_bar

    monkeypatch.setattr(progress_bar, "LOG_SECONDS", 0.0)
    log = io.StringIO()
    with progress_bar.progress_bar(1000, "tokenizing", log) as bar:
        for _ in range(4):
            bar.update(250)
    assert "\r" not in log.getvalue() and "|" not in log.getvalue()
    assert log.getvalue().splitlines()[-1].startswith("tokenizing: 1.00k of 1.00k")


def test_no_step_uses_more_than_all_of_a_device(corpus, tmp_path, monkeypatch):
    monkeypatch.setattr("tessera.training.trainer.matmul_rate", lambda *_, **__: 1.0)
    more = {"duration": "4ba", "evaluation__at_end": False}
    assert tiny_run.train(tiny_run.settings(corpus, tmp_path / "run", **more)) == 0
    used = [record["mfu"] for record in tiny_run.metrics(tmp_path / "run")]
    assert used[0] == 1 and all(0 < share <= 1 for share in used)


def test_the_rate_that_utilisation_is_measured_against_stays_with_the_run(
    corpus, tmp_path, monkeypatch
):
    """A start in a bad moment changes nothing of the run, nor of its next phase."""
    measured = []

    def busy(*_, **__):
        measured.append(1e9 if measured else 4e12)
        return measured[-1]

    monkeypatch.setattr("tessera.training.trainer.matmul_rate", busy)
    more = {"evaluation__at_end": False}
    first = tmp_path / "first"
    for steps in (2, 4):
        assert tiny_run.train(tiny_run.settings(corpus, first, duration=f"{steps}ba", **more)) == 0
    (machine,) = json.loads((first / "machine.json").read_text())["starts"]
    assert measured == [4e12] and machine["matmul_flops_per_second"] == 4e12
    assert machine["versions"]["torch"] and machine["device"] and machine["ranks"] == 1

    plain = tiny_run.settings(corpus, tmp_path / "next", duration="1ba", **more)
    assert tiny_run.train(plain | {"start_from": str(first)}) == 0
    (machine,) = json.loads((tmp_path / "next" / "machine.json").read_text())["starts"]
    assert measured == [4e12, 1e9] and machine["matmul_flops_per_second"] == 4e12


@pytest.mark.parametrize(
    "content", [b"{torn", b"{}", b"[1]", b'{"starts": [{"matmul_flops_per_second": 1e999}]}']
)
def test_a_damaged_note_of_the_machine_is_written_anew(corpus, tmp_path, content):
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "machine.json").write_bytes(content)
    more = {"duration": "1ba", "evaluation__at_end": False}
    assert tiny_run.train(tiny_run.settings(corpus, folder, **more)) == 0
    assert json.loads((folder / "machine.json").read_text())["starts"][-1]["ranks"] == 1
