"""Models judged by suites: which jobs there are, that none is done twice, and what failed."""

import csv
import json
import os
import re
import shutil
import signal
import time
from dataclasses import replace
from pathlib import Path

import pytest
from judging import (
    call,
    classification,
    entries,
    make_encoder,
    make_texts,
    start,
    write_rows,
    write_suite,
)
from reference import fake_slurm

from tessera.cli.main import main
from tessera.config import ConfigError, load
from tessera.evaluation.jobs.models import Model
from tessera.evaluation.jobs.plan import survey
from tessera.evaluation.jobs.records import Outcome, Records
from tessera.evaluation.results import write_results
from tessera.evaluation.suites import SuiteConfig, load_suite
from tessera.reporting import results_page
from tessera.reporting.results_page import write_results_page


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """An encoder and texts."""
    folder = tmp_path_factory.mktemp("judging")
    make_encoder(folder / "model")
    make_texts(folder / "texts")
    return folder


def model(name):
    return Model(name=name, source=name, folder=name, random=False, fingerprint=f"of {name}")


def finish(records, job, *, validation, test):
    outcome = Outcome(scores={"accuracy": test}, validation={"accuracy": validation}, split="test")
    about = {"seconds": 1.0, "command": "c", "versions": {"torch": "2"}, "finished": "now"}
    records.finish(job, outcome, about)


@pytest.fixture
def suite(tmp_path):
    """A task with a grid of four points, and one that starts from it."""
    first = classification(tmp_path)
    first["training"] = {"lr": [1e-5, 1e-4], "epochs": [1, 2]}
    then = classification(tmp_path, start="first")
    path = write_suite(tmp_path / "suite.yaml", {"then": then, "first": first}, [7, 8, 9])
    return load(SuiteConfig, path)


INPUTS = {"first": "x", "then": "y"}


def test_the_best_point_on_validation_runs_with_all_seeds_and_is_what_others_start_from(
    suite, tmp_path
):
    records = Records(out=tmp_path / "out")

    def look():
        return survey(suite, [model("a"), model("b")], INPUTS, {("b", "first"): "bad"}, records)

    then, first, other_then, other = look()
    assert [job.seed for job in first.waiting] == [7] * 4
    assert not then.waiting and then.is_blocked
    assert other.problem == "bad" and "first, which failed" in other_then.problem
    for number, job in enumerate(first.waiting):
        best = job.point == {"lr": 1e-4, "weight_decay": 1e-5, "epochs": 1}
        # The best on the test split is another one, which must not matter.
        finish(records, job, validation=0.9 if best else 0.5, test=0.1 if best else number)
        if best:
            chosen = job
    records.trained(chosen).mkdir(parents=True)
    then, first, *_ = look()
    assert [(job.seed, job.point) for job in first.waiting] == [
        (8, chosen.point),
        (9, chosen.point),
    ]
    assert then.is_blocked
    for job in first.waiting:
        finish(records, job, validation=0.8, test=0.3)
    then, first, *_ = look()
    assert first.is_complete and [job.seed for job in first.reported] == [7, 8, 9]
    assert {job.start for job in then.waiting} == {chosen.id} and len(then.waiting) == 3
    for job in then.waiting:
        records.fail(job, "broke")
    assert all(cell.is_complete for cell in look())


def test_random_weights_are_asked_with_every_seed_even_where_nothing_is_trained(tmp_path):
    probe = {"name": "linear_probe", "train": "a.jsonl", "validation": "b.jsonl"}
    suite = load(SuiteConfig, write_suite(tmp_path / "s.yaml", {"p": probe}, [7, 8]))
    drawn = replace(model("b"), random=True)
    cells = survey(suite, [model("a"), drawn], {"p": "x"}, {}, Records(out=tmp_path))
    assert [[job.seed for job in cell.waiting] for cell in cells] == [[7], [7, 8]]


def test_other_data_weights_or_settings_make_another_job(suite, tmp_path):
    def ids(inputs=INPUTS, name="a", weights="of a", **training):
        tasks = dict(suite.tasks)
        first = tasks["first"]
        plain = {**vars(first.training), **training}
        tasks["first"] = type(first)(**{**vars(first), "training": type(first.training)(**plain)})
        made = SuiteConfig(tasks=tasks, seeds=suite.seeds)
        asked = Model(name=name, source="s", folder="f", random=False, fingerprint=weights)
        cells = survey(made, [asked], inputs, {}, Records(out=tmp_path))
        return {job.id for job in cells[1].waiting}

    known = ids()
    assert ids() == known and len(known) == 4
    assert not ids(inputs={"first": "z", "then": "y"}) & known
    assert not ids(weights="others") & known
    assert not ids(batch=8) & known
    assert ids(lr=[1e-5, 1e-4, 1e-3]) > known, "points that were tried stay tried"


def test_a_task_that_a_suite_brought_can_be_taken_away(suite, tmp_path):
    left = load(SuiteConfig, tmp_path / "suite.yaml", ["tasks.then=null", "seeds=[3]"])
    assert set(left.tasks) == {"first"} and left.tasks["first"] == suite.tasks["first"]


def test_a_folder_collects_what_was_asked_of_it(suite, tmp_path):
    records = Records(out=tmp_path)

    alone = SuiteConfig(tasks={"first": suite.tasks["first"]}, seeds=suite.seeds)

    def ask(name, value, inputs=INPUTS):
        def look():
            return survey(alone, [model(name)], inputs, {}, records)

        for job in look()[0].waiting:
            finish(records, job, validation=value, test=value)
        for job in look()[0].waiting:
            finish(records, job, validation=value, test=value + job.seed / 100)
        return write_results(tmp_path, look())

    ask("a", 0.5)
    both = {(e["model"], e["task"]): e for e in ask("b", 0.6)}
    assert {name for name, _ in both} == {"a", "b"}
    got = both["a", "first"]
    assert got["mean"] == pytest.approx((0.5 + 0.58 + 0.59) / 3)
    assert got["spread"] == pytest.approx(0.04932882862316248)  # of 0.5, 0.58, 0.59, n - 1
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["seeds"] for row in rows if row["task"] == "first"] == ["7 8 9"] * 2
    others = ask("b", 0.6, inputs={"first": "other data", "then": "y"})
    assert {e["model"] for e in others if e["task"] == "first"} == {"b"}, "another question now"


def test_the_page_needs_nothing_and_says_all(suite, tmp_path):
    records = Records(out=tmp_path)
    alone = {**suite.tasks, "then": replace(suite.tasks["first"], limit=5)}
    suite = SuiteConfig(tasks=alone, seeds=suite.seeds)
    models = [model("plain"), model("<b>bold")]
    broken = {(m.name, "then"): "no such file" for m in models}
    cells = survey(suite, models, INPUTS, broken, records)
    for cell in cells:
        for job in cell.waiting[:3]:
            finish(records, job, validation=0.5, test=0.5 if cell.model.name == "plain" else 0.625)
        for job in cell.waiting[3:]:
            records.fail(job, "broke <here>")
    cells = survey(suite, models, INPUTS, broken, records)
    for cell in cells:
        for job in cell.waiting:
            finish(records, job, validation=0.5, test=0.5 if cell.model.name == "plain" else 0.75)
    cells = survey(suite, models, INPUTS, broken, records)
    write_results_page(write_results(tmp_path, cells), tmp_path, "tessera evaluate")
    page = (tmp_path / "index.html").read_text()
    assert not re.search(r'(src|href)="(https?:|//)', page) and "<script" not in page
    assert "&lt;b&gt;bold" in page and "<b>bold" not in page
    assert "broke &lt;here&gt;" in page and "no such file" in page
    best = re.findall(r'<td class="best"><a [^>]*>([^<]*)</a>', page)
    assert best == ["70.8"], "0.625, 0.75, 0.75 beside 0.5, 0.5, 0.5"
    assert "<small>of 2 tasks" not in page, "only one task has numbers"
    assert "Without a finished job" in page and '<h2 id="task-then">' not in page
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / link).is_file(), link


def test_what_an_earlier_command_left_is_said_to_be_so(suite, tmp_path):
    records = Records(out=tmp_path)
    tasks = {name: suite.tasks["first"] for name in ("one", "two")}
    whole = SuiteConfig(tasks=tasks, seeds=[7])
    narrowed = SuiteConfig(tasks={"one": tasks["one"]}, seeds=[7])
    inputs = {"one": "x", "two": "y"}
    models = [model("a"), model("b"), model("c")]

    def write(suite, models, problems=()):
        cells = survey(suite, models, inputs, dict(problems), records)
        return cells, write_results(tmp_path, cells)

    cells, _ = write(whole, models)
    for cell in cells:
        for job in cell.waiting:
            if cell.model.name == "c":
                records.fail(job, "broke")
            elif (cell.model.name, cell.task_name) != ("b", "two"):
                finish(records, job, validation=0.5, test=0.5)
    write(whole, models)
    shutil.rmtree(tmp_path / "failed")  # as each command begins
    _, found = write(narrowed, [model("a")])
    earlier = {(entry["model"], entry["task"]) for entry in found if entry["earlier"]}
    assert earlier == {("a", "two"), ("b", "one"), ("b", "two"), ("c", "one"), ("c", "two")}
    write_results_page(found, tmp_path, "tessera evaluate")
    page = (tmp_path / "index.html").read_text()
    assert (
        "As an earlier command left them, and not asked by this one: a on two; b, c on one, two. "
        "1 of these is not finished: ask again." in page
    )
    assert "still to come" not in page and ">not finished</a>" in page
    assert "<b>c</b>, one, two: broke (in an earlier command)" in page
    for link in re.findall(r'href="([^"#]+)"', page):
        assert (tmp_path / link).is_file(), link
    rows = list(csv.DictReader((tmp_path / "results.csv").open()))
    assert [row["earlier"] for row in rows] == ["False"] + ["True"] * 5
    _, again = write(whole, models)
    assert not any(entry["earlier"] for entry in again)


@pytest.mark.parametrize("is_the_models", [True, False])
def test_a_model_or_file_that_fails_now_takes_no_earlier_number_away(
    suite, tmp_path, is_the_models
):
    records = Records(out=tmp_path)
    alone = SuiteConfig(tasks={"first": suite.tasks["first"]}, seeds=[7])
    cells = survey(alone, [model("a")], INPUTS, {}, records)
    for job in cells[0].waiting:
        finish(records, job, validation=0.5, test=0.5)
    write_results(tmp_path, survey(alone, [model("a")], INPUTS, {}, records))
    now = {("b", "first"): "is not there"}
    known = INPUTS if is_the_models else {}
    found = write_results(tmp_path, survey(alone, [model("b")], known, now, records))
    assert [(entry["model"], entry["mean"]) for entry in found] == [("b", None), ("a", 0.5)]


def test_a_star_is_for_the_best_and_whoever_is_within_a_spread_of_it():
    def entry(name, mean, spread, lower=False):
        return {"model": name, "mean": mean, "spread": spread, "lower_is_better": lower}

    three = [entry("a", 0.7, 0.02), entry("b", 0.69, 0.005), entry("c", 0.5, None)]
    assert results_page._best(three) == {"a", "b"}
    assert results_page._best([entry("a", 0.7, None), entry("b", 0.69, 0.005)]) == {"a"}
    assert results_page._best([entry("a", 0.7, 0.1), entry("b", 0.69, 0.1)]) == set()
    assert results_page._best([entry("a", 2.0, None, True), entry("b", 1.9, None, True)]) == {"b"}
    assert results_page._best([entry("a", 2.0, None), entry("b", None, None)]) == set()


def test_the_page_tells_a_models_fault_once_and_stars_no_tie(suite, tmp_path):
    alone = SuiteConfig(tasks={name: suite.tasks["first"] for name in ("one", "two")}, seeds=[7])
    records = Records(out=tmp_path)
    models = [model("broken"), model("a"), model("b")]
    broken = {("broken", name): "no tokenizer" for name in alone.tasks}

    def look():
        return survey(alone, models, {name: name for name in alone.tasks}, broken, records)

    for job in (job for cell in look() for job in cell.waiting):
        finish(records, job, validation=0.5, test=0.5)
    write_results_page(write_results(tmp_path, look()), tmp_path, "tessera evaluate")
    page = (tmp_path / "index.html").read_text()
    assert "<b>broken</b>, one, two: no tokenizer" in page
    assert 'class="best"' not in page and "50.0" in page


# ---- real jobs


@pytest.fixture
def needs_eval():
    pytest.importorskip("accelerate")
    pytest.importorskip("sklearn")


@pytest.mark.slow
def test_killed_jobs_are_done_again_and_finished_ones_are_not(place, tmp_path, needs_eval):
    task = classification(place / "texts")
    write_suite(tmp_path / "s.yaml", {"parity": task}, [1, 2, 3])
    arguments = ["evaluate", f"m={place / 'model'}", "--suite", "s.yaml", "--device", "cpu"]
    process = start(*arguments, cwd=tmp_path)
    records = tmp_path / "results" / "records"
    deadline = time.monotonic() + 240
    while not list(records.glob("*.json")) and time.monotonic() < deadline:
        time.sleep(0.02)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    before = {file.name: file.stat().st_mtime_ns for file in records.glob("*.json")}
    assert 0 < len(before) < 3, "killed too late to prove anything"
    assert not list(records.glob("*.writing"))
    status, said = call(*arguments, cwd=tmp_path)
    assert status == 0, said
    after = {file.name: file.stat().st_mtime_ns for file in records.glob("*.json")}
    assert len(after) == 3 and before.items() <= after.items()
    (entry,) = entries(tmp_path / "results").values()
    assert entry["state"] == "done" and [run["seed"] for run in entry["runs"]] == [1, 2, 3]
    record = json.loads((tmp_path / "results" / entry["runs"][0]["record"]).read_text())
    assert record["command"].startswith("tessera evaluate m=")
    assert {"torch", "transformers", "python"} <= set(record["versions"])


@pytest.mark.slow
def test_a_command_that_is_ended_says_so_and_leaves_a_page_of_what_is_finished(
    place, tmp_path, needs_eval
):
    task = classification(place / "texts")
    write_suite(tmp_path / "s.yaml", {"parity": task}, [1, 2, 3])
    arguments = ["evaluate", f"m={place / 'model'}", "--suite", "s.yaml", "--device", "cpu"]
    process = start(*arguments, cwd=tmp_path)
    page = tmp_path / "results" / "results.json"
    deadline = time.monotonic() + 240
    while time.monotonic() < deadline:
        if page.is_file() and any(entry["runs"] for entry in entries(page.parent).values()):
            break
        time.sleep(0.02)
    process.terminate()
    said = "".join(filter(None, process.communicate(timeout=60)))
    assert process.returncode == 130
    assert "stopped; the same command does what is not finished" in said
    assert "Traceback" not in said
    (entry,) = entries(page.parent).values()
    assert 0 < len(entry["runs"]) < 3


@pytest.mark.slow
def test_slurm_does_the_same_jobs(place, tmp_path, needs_eval):
    pytest.importorskip("datatrove")
    write_suite(tmp_path / "s.yaml", {"parity": classification(place / "texts")}, [1])
    environment = fake_slurm.install(tmp_path / "slurm")
    arguments = ["evaluate", f"m={place / 'model'}", "--suite", "s.yaml", "executor.tasks=1"]
    arguments += ["executor.poll_seconds=0.5", "--executor", "slurm", "--device", "cpu"]
    status, said = call(*arguments, cwd=tmp_path, **environment)
    assert status == 0, said
    (entry,) = entries(tmp_path / "results").values()
    assert entry["state"] == "done"
    assert list((tmp_path / "results" / "logs").glob("*/launch_script.slurm"))


@pytest.mark.slow
def test_what_fails_is_named_and_the_others_finish(
    place, tmp_path, needs_eval, capsys, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    good = classification(place / "texts")
    odd = tmp_path / "odd.jsonl"
    write_rows(odd, [{"text": "w1", "label": "third"}])
    tasks = {
        "good": good,
        "absent": {**good, "train": str(tmp_path / "nowhere.jsonl")},
        "column": {**good, "label": "labell"},
        "unknown": {**good, "validation": str(odd)},
    }
    write_suite(tmp_path / "s.yaml", tasks, [1])
    bare = shutil.copytree(place / "model", tmp_path / "bare")
    (bare / "tokenizer.json").unlink()
    decoder = shutil.copytree(place / "model", tmp_path / "decoder")
    config = json.loads((decoder / "config.json").read_text())
    config["architectures"] = ["GPT2LMHeadModel"]
    (decoder / "config.json").write_text(json.dumps(config))
    models = [f"m={place / 'model'}", "bare", "decoder"]
    assert main(["evaluate", *models, "--suite", "s.yaml", "--device", "cpu"]) == 2
    said = capsys.readouterr().err
    assert "of the jobs, 11 could not begin; the page says" in said and "Traceback" not in said
    found = entries(Path("results"))
    assert found["m", "good"]["state"] == "done"
    assert found["m", "absent"]["message"].endswith("nowhere.jsonl: there is no such file")
    assert "has no column 'labell'; row 0 has text, label" in found["m", "column"]["message"]
    unknown = found["m", "unknown"]["message"]
    assert "row 0, column 'label' is 'third', a label that train has not" in unknown
    assert "train.jsonl has even, odd" in unknown
    assert "holds no tokenizer" in found["bare", "good"]["message"]
    assert "is a decoder (GPT2LMHeadModel)" in found["decoder", "good"]["message"]


@pytest.mark.slow
def test_finetune_keeps_the_model_whose_score_it_says(
    place, tmp_path, needs_eval, capsys, monkeypatch
):
    import torch
    from sklearn.metrics import accuracy_score, f1_score
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    monkeypatch.chdir(tmp_path)
    task = classification(place / "texts", metrics=["accuracy", "macro_f1"])
    write_suite(tmp_path / "s.yaml", {"parity": task}, [5])
    arguments = ["finetune", f"m={place / 'model'}", "--task", "s.yaml/parity", "--device", "cpu"]
    assert main(arguments) == 0
    folder = capsys.readouterr().out.split()[-1]
    tokenizer = AutoTokenizer.from_pretrained(folder)
    classifier = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    rows = [json.loads(line) for line in (place / "texts" / "test.jsonl").read_text().splitlines()]
    with torch.inference_mode():
        guesses = [
            classifier.config.id2label[
                int(classifier(**tokenizer(row["text"], return_tensors="pt")).logits.argmax())
            ]
            for row in rows
        ]
    truth = [row["label"] for row in rows]
    (entry,) = entries(Path("results")).values()
    assert entry["mean"] == pytest.approx(accuracy_score(truth, guesses))
    assert entry["scores"]["macro_f1"] == pytest.approx(f1_score(truth, guesses, average="macro"))
    assert entry["mean"] > 0.6, "it learned nothing, so this says little"


# ---- mistakes


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({"train": None}, "tasks.t.train: expected text"),
        ({"metrics": ["acuracy"]}, "did you mean 'accuracy'?"),
        ({"name": "clasification"}, "tasks.t.name: unknown 'clasification'; did you mean"),
        ({"start": "elsewhere"}, "tasks.t.start: there is no task 'elsewhere'"),
        ({"training": {"lr": []}}, "tasks.t.training.lr: is empty"),
        ({"max_tokens": 2}, "tasks.t.max_tokens: must be at least 8"),
    ],
)
def test_a_wrong_key_of_a_suite_is_named(place, tmp_path, capsys, change, says):
    suite = write_suite(tmp_path / "s.yaml", {"t": classification(tmp_path, **change)})
    assert main(["evaluate", str(place / "model"), "--suite", str(suite)]) == 2
    assert says in capsys.readouterr().err


def test_all_that_is_wrong_with_a_suite_is_told_at_once(place, tmp_path, capsys):
    gone = {name: str(tmp_path / f"{name}.jsonl") for name in ("train", "validation", "test")}
    tasks = {
        "a": {"name": "classification", **gone, "start": "nobody"},
        "b": {"name": "classification", **gone, "max_tokens": 2, "start": "c"},
        "c": {"name": "clasification", **gone},
    }
    suite = write_suite(tmp_path / "s.yaml", tasks, [3, 3])
    assert main(["evaluate", str(place / "model"), "--suite", str(suite)]) == 2
    first, *told = capsys.readouterr().err.strip().splitlines()
    assert first.endswith(f"{suite}: 10 problems")
    files = {
        f"tasks.{task}.{key}: {where}: there is no such file"
        for task in "ab"
        for key, where in gone.items()
    }
    assert files <= {line.strip() for line in told}
    rest = [line for line in told if line.strip() not in files]
    assert sum("tasks.b.max_tokens: must be" in line for line in rest) == 1
    assert sum("tasks.c.name: unknown 'clasification'" in line for line in rest) == 1
    assert sum("seeds: must be different" in line for line in rest) == 1
    assert sum("there is no task 'nobody'" in line for line in rest) == 1 and len(rest) == 4
    told_by_finetune = ["finetune", str(place / "model"), "--task", f"{suite}/b"]
    assert main(told_by_finetune) == 2
    assert "no such file" not in capsys.readouterr().err, "of tasks that are not asked"


def test_bad_labels_are_told_before_any_job_by_file_row_and_column(
    place, tmp_path, capsys, monkeypatch
):
    from tessera.evaluation.jobs import running

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(running, "_check_installed", lambda suite: None)
    monkeypatch.setattr(running, "_run", lambda *_: pytest.fail("a job began"))
    texts = [{"text": "x", "label": label} for label in ("even", "odd", "even")]
    write_rows(tmp_path / "train.jsonl", texts)
    strange = [{**texts[0], "label": label} for label in ("even", "third", "fourth")]
    write_rows(tmp_path / "strange.jsonl", strange)
    (tmp_path / "empty.csv").write_text("text,label\nx,even\nx,\n")
    write_rows(tmp_path / "lost.jsonl", [*texts, {"text": "x"}])
    write_rows(tmp_path / "rated.jsonl", [{"text": "x", "label": v} for v in (1, "much")])
    words = [{"words": ["a", "b"], "labels": ["O", "X"]}, {"words": ["a"], "labels": ["O", "X"]}]
    write_rows(tmp_path / "words.jsonl", words)

    def task(name="classification", **splits):
        return {"name": name, "train": "train.jsonl", "validation": "train.jsonl", **splits}

    tasks = {
        "strange": task(validation="strange.jsonl", test="empty.csv"),
        "lost": task(train="lost.jsonl"),
        "rated": task("regression", train="rated.jsonl", validation="rated.jsonl"),
        "words": task("token_classification", train="words.jsonl", validation="words.jsonl"),
        "probe": task("linear_probe", validation="strange.jsonl"),
        "one": task(train="strange.jsonl", validation="strange.jsonl", limit=1),
        "three": task(train="strange.jsonl", validation="strange.jsonl", metrics=["f1"]),
    }
    suite = str(write_suite(tmp_path / "s.yaml", tasks))
    assert main(["evaluate", f"m={place / 'model'}", "--suite", suite, "--device", "cpu"]) == 2
    assert "7 could not begin" in capsys.readouterr().err
    said = {task: entry["message"] for (_, task), entry in entries(Path("results")).items()}
    fix = "train.jsonl has even, odd: mend the row, or add rows of this label to train"
    strange = (
        f"strange.jsonl: row 1, column 'label' is 'third', a label that train has not; {fix} "
        "(and 1 rows more of this file likewise)"
    )
    assert said == {
        "strange": f"{strange}; empty.csv: row 1, column 'label' is empty: give the row a label, "
        "or remove it",
        "lost": "lost.jsonl: has no column 'label'; row 3 has text",
        "rated": "rated.jsonl: row 1, column 'label' is 'much', where a number is needed: mend it",
        "words": "words.jsonl: row 1, column 'labels': 1 words, but 2 labels: one label for each "
        "word",
        "probe": strange,
        "one": "strange.jsonl: column 'label' has only the label 'even'; two are needed",
        "three": "strange.jsonl: has 3 classes, and f1 is of two, the later of which is sought; "
        "write metrics: [macro_f1]",
    }


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (["--suite", "glu"], "there is no such suite"),
        (["--suite", "mlm", "--workers", "0"], "--workers must be at least 1"),
        (["--suite", "mlm", "--fill", "x"], "one at a time"),
    ],
)
def test_a_wrong_option_is_named(place, capsys, arguments, says):
    assert main(["evaluate", str(place / "model"), *arguments]) == 2
    assert says in capsys.readouterr().err


def test_models_must_be_there_and_have_names_of_their_own(place, tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    suite = str(write_suite(tmp_path / "s.yaml", {"t": classification(place / "texts")}))
    assert main(["evaluate", "some-org/some-model", "--suite", suite]) == 2
    assert "hf download some-org/some-model" in capsys.readouterr().err
    assert main(["evaluate", f"a={place / 'model'}", f"a={place}", "--suite", suite]) == 2
    assert main(["evaluate", *[str(place / "model")] * 2, "--suite", suite]) == 2
    assert "two models are called" in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("task", "says"),
    [
        ("parity", "is written SUITE/TASK"),
        ("efficiency/speed", "nothing is trained for it"),
        ("efficiency/sped", "has no task 'sped'; it has speed"),
    ],
)
def test_a_task_that_cannot_be_trained_is_refused(place, capsys, task, says):
    assert main(["finetune", str(place / "model"), "--task", task]) == 2
    assert says in capsys.readouterr().err


@pytest.mark.parametrize("suite", ["glue", "yamls/evaluation/glue.yaml"])
def test_a_task_that_is_not_there_cannot_be_taken_away(suite, monkeypatch):
    monkeypatch.chdir(Path(__file__).parents[1])
    with pytest.raises(ConfigError, match=r"tasks.rtee: is not there .*; there are mnli, qqp"):
        load_suite(suite, ["tasks.rtee=null"])
    assert "rte" not in load_suite(suite, ["tasks.rte=null"]).tasks
