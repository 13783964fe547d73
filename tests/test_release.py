"""Every checkpoint of a run becomes a revision that others can use, continue and trust."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
import transformers
import yaml
from reference import fake_hub
from reference import flexbert as reference

from tessera.checkpoints import CheckpointError, history, load_model, read_checkpoint
from tessera.checkpoints.exporter import write_folder
from tessera.checkpoints.formats import composer
from tessera.checkpoints.release import hub, revisions
from tessera.checkpoints.release.model_card import About, revision_name
from tessera.checkpoints.release.revisions import release
from tessera.quantities import short_number

RUN_CONFIG = {
    "run_folder": "/secret/runs/phase1",
    "duration": "2000000000tok",
    "tokenizer": "/secret/tokenizer",
    "optimizer": {"name": "stable_adamw", "lr": 8e-4, "betas": [0.9, 0.98]},
    "schedule": {"name": "warmup_stable_decay", "warmup": "3000000tok", "decay": "0tok"},
    "batch": {"rows": 8, "microbatch_rows": 1},
    "logging": {"wandb": {"project": "p", "entity": "secret-team"}},
    "train_data": {
        "max_seq_len": 64,
        "row_tokens": 256,
        "masking": {"rate": 0.3},
        "sources": {
            "web": {"local": "/secret/web", "remote": "s3://secret/web", "weight": 3.0},
            "code": {"local": "/secret/code", "remote": None, "weight": 1.0},
        },
    },
}
STEPS = {40: 950_000, 80: 1_900_000_000}


def make_run(folder):
    """A run folder with two checkpoints, `latest`, and evaluations in its metrics."""
    base = read_checkpoint(reference.save(folder.parent / "base.pt"))
    for step, tokens in STEPS.items():
        weights = {name: tensor + step * 1e-4 for name, tensor in base.weights.items()}
        weights["decoder.weight"] = weights["model.embeddings.tok_embeddings.weight"]
        made = replace(
            base,
            weights=weights,
            run_config=RUN_CONFIG,
            progress={
                **base.progress,
                "steps": step,
                "tokens": tokens,
                "source_tokens": {"web": tokens - 1000, "code": 1000},
                "lr": 7e-4,
            },
            data={"fingerprint": "f", "lanes": [[step, 0, 3]]},
            max_seq_len=64,
        )
        composer.write(made, folder / "checkpoints" / f"step{step:08d}.pt")
    (folder / "checkpoints" / "latest").symlink_to("step00000080.pt")
    records = [
        {"kind": "step", "step": 1, "tokens": 5, "loss": 9.0},
        {"kind": "evaluation", "step": 40, "tokens": 9, "sources": {"web": {"loss": 4.5}}},
        {"kind": "evaluation", "step": 80, "tokens": 9, "sources": {"web": {"loss": 3.25}}},
    ]
    lines = "".join(json.dumps(record) + "\n" for record in records)
    (folder / "metrics.jsonl").write_text(lines + '{"kind": "st')
    return folder


FIRST, SECOND = "phase1-step000040-tokens950.0K", "phase1-step000080-tokens1.9B"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "phase1")


@pytest.fixture(scope="module")
def released(run, tmp_path_factory):
    out = tmp_path_factory.mktemp("release") / "out"
    assert release(run, out, license="apache-2.0") == out / "README.md"
    return out


def test_every_kept_checkpoint_is_a_revision(released):
    folders = sorted(path.name for path in released.iterdir() if path.is_dir())
    assert folders == [FIRST, SECOND]
    entries = json.loads((released / "index.json").read_text())
    assert [entry["revision"] for entry in entries] == [FIRST, SECOND]
    assert [entry["tokens"] for entry in entries] == [950_000, 1_900_000_000]
    assert [entry["validation_loss"] for entry in entries] == [{"web": 4.5}, {"web": 3.25}]
    index = (released / "README.md").read_text()
    assert FIRST in index and SECOND in index and "1,900,000,000" in index


@pytest.mark.parametrize(("revision", "step"), [(FIRST, 40), (SECOND, 80)])
def test_transformers_loads_a_revision_as_it_is(revision, step, released, run):
    theirs = transformers.AutoModelForMaskedLM.from_pretrained(released / revision).eval()
    ours = load_model(run / "checkpoints" / f"step{step:08d}.pt")
    document = torch.arange(50) % 160
    with torch.inference_mode():
        expected = ours(document, cu_seqlens=torch.tensor([0, 50]).int()).logits
        found = theirs(input_ids=document[None]).logits[0]
    assert float((found - expected).abs().max()) <= 5e-5


def test_a_revision_holds_all_that_training_continues_from(released, run):
    original = read_checkpoint(run / "checkpoints" / "step00000080.pt")
    found = read_checkpoint(released / SECOND)
    assert found.kind == "release"
    assert found.model_config == original.model_config
    for name, tensor in original.weights.items():
        assert torch.equal(found.weights[name], tensor), name
    assert found.optimizer_name == "StableAdamW"
    assert found.optimizer.keys() == original.optimizer.keys()
    for name, moment in original.optimizer.items():
        assert moment.keys() == found.optimizer[name].keys()
        for kind, value in moment.items():
            mine = found.optimizer[name][kind]
            assert mine is value or torch.equal(mine, value), (name, kind)
    assert found.hyperparameters == original.hyperparameters
    assert found.data == original.data
    assert found.learning_rate == 7e-4
    assert found.progress["tokens"] == 1_900_000_000
    assert found.max_seq_len == 64


def test_a_revision_is_for_all_to_read(released):
    modes = {path.name: path.stat().st_mode for path in (released / SECOND).rglob("*.*")}
    assert {mode & 0o777 for mode in modes.values()} == {modes["config.json"] & 0o777}, modes


def test_an_evaluation_of_another_step_is_not_a_revisions(run, tmp_path):
    earlier = shutil.copytree(run, tmp_path / "phase1", symlinks=True)
    metrics = earlier / "metrics.jsonl"
    metrics.write_text(metrics.read_text().replace('"step": 80', '"step": 79'))
    release(earlier, tmp_path / "out")
    assert "Not evaluated at this step." in (tmp_path / "out" / SECOND / "README.md").read_text()


def test_a_damaged_record_of_the_run_is_no_missing_evaluation(run, tmp_path):
    damaged = shutil.copytree(run, tmp_path / "damaged")
    metrics = damaged / "metrics.jsonl"
    metrics.write_text('{"kind": "st\n' + metrics.read_text())
    with pytest.raises(ValueError, match="metrics.jsonl, line 1: not JSON"):
        release(damaged, tmp_path / "out")


def test_nothing_in_a_revision_is_a_pickle_or_tells_a_place(released):
    for path in (released / SECOND).rglob("*"):
        if path.is_file():
            assert path.suffix in {".json", ".safetensors", ".md", ""}, path
            assert b"secret" not in path.read_bytes(), path


def test_the_digests_cover_every_file(released):
    folder = released / SECOND
    sums = dict(
        reversed(line.split("  ")) for line in (folder / "SHA256SUMS").read_text().splitlines()
    )
    files = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    assert set(sums) == files - {"SHA256SUMS"}
    for name, digest in sums.items():
        assert hashlib.sha256((folder / name).read_bytes()).hexdigest() == digest


def test_the_card_says_what_its_reader_needs(released):
    card = (released / SECOND / "README.md").read_text()
    head = yaml.safe_load(card.split("---")[1])
    assert head["license"] == "apache-2.0"
    assert head["pipeline_tag"] == "fill-mask"
    assert head["mask_token"] == "[MASK]"
    for fact in (
        "1,900,000,000 of 2000000000tok",
        "warmup_stable_decay",
        "stable_adamw",
        "| web | 75.0 % | 1,899,999,000 |",
        "| code | 25.0 % | 1,000 |",
        "lr: 0.0007",
        "| web | 3.25 |",
        "| torch, in training | 2.4.0 |",
        "transformers, at release",
        "[MASK]",
    ):
        assert fact in card, fact


def decayed_run(run, folder):
    """The run's last step in a decay, and a phase before it."""
    shutil.copytree(run, folder, symlinks=True)
    path = folder / "checkpoints" / "step00000080.pt"
    changed = read_checkpoint(path)
    path.unlink()
    (folder / "checkpoints" / "step00000040.pt").unlink()
    settings = {**RUN_CONFIG, "schedule": {"name": "one_minus_sqrt", "decay": "2000000000tok"}}
    before = {"phase": "phase1", "steps": 7, "tokens": 12_340, "lr": 8e-4, "decayed": False}
    progress = {**changed.progress, "lr": 1.8e-5, "max_lr": 8e-4, "phases_before": [before]}
    composer.write(replace(changed, run_config=settings, progress=progress), path)
    return folder


def test_a_card_names_an_optimizer_that_is_not_the_recipes(run, tmp_path):
    """The rest follows the schedule too: at half the peak, half of its own."""
    folder, out = shutil.copytree(run, tmp_path / "phase1"), tmp_path / "out"
    for path in sorted((folder / "checkpoints").glob("step*.pt")):
        checkpoint = read_checkpoint(path)
        path.unlink()
        muon = {"name": "muon", "lr": 2 * checkpoint.learning_rate, "rest": {"lr": 0.004}}
        settings = {**checkpoint.run_config, "optimizer": muon}
        composer.write(replace(checkpoint, run_config=settings), path)
    release(folder, out, about=About())
    card = (out / SECOND / "README.md").read_text()
    assert "optimizer: {name: muon, lr: 0.0007, rest: {lr: 0.002}}" in card


def test_the_card_of_a_decayed_checkpoint_names_the_one_before_the_decay(run, tmp_path):
    folder, out = decayed_run(run, tmp_path / "phase3"), tmp_path / "out"
    starts = [{"after_step": 0, "ranks": 8, "device": "H100", "kind": "GPU", "versions": {}}]
    (folder / "machine.json").write_text(json.dumps({"starts": starts}))
    about = About(languages=["de"], example=("one [MASK] three", "two"), picture=b"png")
    release(folder, out, about=about)
    name = SECOND.replace("phase1", "phase3")
    card = (out / name / "README.md").read_text()
    for fact in (
        "whose learning rate has decayed, from 0.0008 to 1.8e-05",
        "start_from: path/to/phase1-step000007-tokens12.3K\noptimizer: {lr: 0.0008}",
        "1,900,012,340 (12,340 in phase1, and this one)",
        f'model="./{name}")\nfill("one [MASK] three")  # in the text: two',
        "language:\n- de",
        "(loss.png)",
        "8 x H100 (GPU)",
        "## Intended use",
        "## Limits",
        "No licence was chosen",
    ):
        assert fact in card, fact
    assert "lr: 1.8e-05" not in card, "nobody is to go on at the rate where a decay ended"
    assert (out / name / "loss.png").read_bytes() == b"png"
    assert json.loads((out / "index.json").read_text())[0]["decayed"] is True

    weights = (out / name / "model.safetensors").stat().st_ino
    release(folder, out, license="mit", about=about)
    card = (out / name / "README.md").read_text()
    assert "license: mit" in card and "No licence" not in card
    assert (out / name / "model.safetensors").stat().st_ino == weights
    for line in (out / name / "SHA256SUMS").read_text().splitlines():
        digest, _, file = line.partition("  ")
        assert hashlib.sha256((out / name / file).read_bytes()).hexdigest() == digest


def test_an_export_knows_that_its_rate_has_decayed(run, tmp_path):
    path = decayed_run(run, tmp_path / "phase3") / "checkpoints" / "step00000080.pt"
    made = read_checkpoint(path)
    told = {key: made.run_config[key] for key in ("duration", "schedule")}
    (tmp_path / "model").mkdir()
    write_folder(replace(made, progress={**made.progress, **told}), tmp_path / "model")
    read = read_checkpoint(tmp_path / "model")
    assert not read.run_config and history.decayed(read) is True


def test_a_folder_of_revisions_is_told_to_hold_models(released):
    with pytest.raises(CheckpointError, match=f"name one of the models in it: {FIRST}, {SECOND}"):
        read_checkpoint(released)


def test_a_checkpoint_on_the_plateau_is_no_decayed_one(released):
    card = (released / SECOND / "README.md").read_text()
    assert "Its learning rate has not decayed" in card and "lr: 0.0007" in card
    assert "| tokens of all phases | 1,900,000,000 |" in card


@pytest.mark.parametrize(
    ("before", "named"),
    [
        ({}, "both-step000040-tokens950.0K"),
        ({"tokens": 1_000_000_100, "step_tokens": 200}, "both-step000040-tokens1.0B"),
    ],
)
def test_the_plateaus_last_checkpoint_is_named_where_one_run_has_both(run, tmp_path, before, named):
    """Also if it is the one kept where the decay begins: inside its step, made at the peak."""
    folder = tmp_path / "both"
    shutil.copytree(run, folder, symlinks=True)
    settings = {**RUN_CONFIG, "schedule": {**RUN_CONFIG["schedule"], "decay": "1000000000tok"}}
    for step in STEPS:
        path = folder / "checkpoints" / f"step{step:08d}.pt"
        read = read_checkpoint(path)
        path.unlink()
        composer.write(replace(read, run_config=settings), path)
    lines = [{"kind": "step", "step": s, "tokens": n, "lr": 8e-4} for s, n in STEPS.items()]
    lines[0] |= before
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    release(folder, tmp_path / "out")
    cards = [path.read_text() for path in sorted((tmp_path / "out").glob("*/README.md"))]
    assert "has not decayed" in cards[0]
    assert f"start_from: path/to/{named}" in cards[1]


def test_a_licence_is_asked_for(run, tmp_path, capsys):
    from tessera.cli.main import main

    arguments = ["release", str(run), "--out", str(tmp_path / "out")]
    assert main([*arguments, "--license", "my own"]) == 2
    assert "--license my own: expected an identifier" in capsys.readouterr().err
    assert main([*arguments, "--language", "Deutsch"]) == 2
    assert main(arguments) == 0
    assert "no licence was named" in capsys.readouterr().err
    assert main([*arguments, "--license", "Apache-2.0"]) == 0
    assert "no licence" not in capsys.readouterr().err
    assert "license: apache-2.0" in (tmp_path / "out" / SECOND / "README.md").read_text()


def test_a_restart_state_of_other_weights_is_refused(released, tmp_path):
    shutil.copytree(released / SECOND, tmp_path / "mixed")
    shutil.copy(released / FIRST / "model.safetensors", tmp_path / "mixed")
    with pytest.raises(CheckpointError, match="other weights"):
        read_checkpoint(tmp_path / "mixed")


def test_a_release_that_was_interrupted_is_continued(run, tmp_path, monkeypatch):
    out = tmp_path / "out"
    verify, calls = revisions.verify, []

    def verify_once(checkpoint, folder):
        calls.append(folder)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return verify(checkpoint, folder)

    monkeypatch.setattr(revisions, "verify", verify_once)
    with pytest.raises(KeyboardInterrupt):
        release(run, out)
    assert [path.name for path in out.iterdir()] == [FIRST]
    before = (out / FIRST / "model.safetensors").stat().st_ino
    release(run, out)
    assert len(calls) == 3, "the first revision was made again"
    assert (out / FIRST / "model.safetensors").stat().st_ino == before
    assert (out / SECOND / "SHA256SUMS").exists()
    release(run, out)
    assert len(calls) == 3


def test_phases_share_one_release(run, released, tmp_path):
    out = tmp_path / "out"
    shutil.copytree(released, out)
    shutil.copytree(run, tmp_path / "phase2", symlinks=True)
    path = tmp_path / "phase2" / "checkpoints" / "step00000080.pt"
    changed = read_checkpoint(path)
    path.unlink()
    composer.write(replace(changed, progress={**changed.progress, "lr": 1e-4}), path)
    (tmp_path / "phase2" / "checkpoints" / "step00000040.pt").unlink()
    release(tmp_path / "phase2", out)
    entries = json.loads((out / "index.json").read_text())
    names = [FIRST, SECOND, SECOND.replace("phase1", "phase2")]
    assert [entry["revision"] for entry in entries] == names


def test_what_cannot_be_released_is_refused(run, tmp_path):
    with pytest.raises(CheckpointError, match="no run folder"):
        release(tmp_path, tmp_path / "out")
    (tmp_path / "empty" / "checkpoints").mkdir(parents=True)
    with pytest.raises(CheckpointError, match="no checkpoint"):
        release(tmp_path / "empty", tmp_path / "out")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "notes.txt").write_text("x")
    with pytest.raises(CheckpointError, match="other things"):
        release(run, tmp_path / "mine")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tokens", "name"),
    [
        (950, "950"),
        (12_340, "12.3K"),
        (999_949, "999.9K"),
        (999_990, "1.0M"),
        (18_874_368_000, "18.9B"),
        (1.719e12, "1.7T"),
    ],
)
def test_counts_are_short(tokens, name):
    assert short_number(tokens, decimals=1).upper() == name


def test_a_revisions_name_is_fit_for_a_branch():
    name = revision_name("my run/phase 1~", {"steps": 4000, "tokens": 18_900_000_000})
    assert name == "my-run-phase-1-step004000-tokens18.9B"


@pytest.fixture
def fake(monkeypatch):
    import huggingface_hub

    monkeypatch.setenv("HF_TOKEN", "hf_fake")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_DISABLE_XET", True)
    with fake_hub.running() as running:
        monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", running.url)
        yield running


def folder_as_bytes(folder):
    files = [path for path in folder.rglob("*") if path.is_file()]
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in files}


def test_a_push_makes_a_branch_of_every_revision(run, released, fake):
    release(run, released, push="org/name", license="apache-2.0")
    branches = fake.branches["org/name"]
    assert set(branches) == {"main", FIRST, SECOND}
    for revision in (FIRST, SECOND):
        assert branches[revision] == folder_as_bytes(released / revision)
    main = branches["main"]
    assert main["README.md"] == (released / "README.md").read_bytes()
    assert main["model.safetensors"] == (released / SECOND / "model.safetensors").read_bytes()
    assert b'"org/name"' in main["README.md"]


def test_a_push_that_fails_says_how_far_it_came_and_continues(released, fake):
    fake.failures["commit/" + SECOND] = [400]
    with pytest.raises(CheckpointError, match=r"1 of 2 revisions are pushed.*continues") as caught:
        hub.push(released, [FIRST, SECOND], "org/name", first_pause_seconds=0.01)
    assert SECOND in str(caught.value)
    assert fake.branches["org/name"][FIRST] == folder_as_bytes(released / FIRST)
    uploaded = fake.uploaded_bytes

    hub.push(released, [FIRST, SECOND], "org/name", first_pause_seconds=0.01)
    assert [branch for branch, _ in fake.commits] == [FIRST, SECOND, "main"]
    assert fake.branches["org/name"][SECOND] == folder_as_bytes(released / SECOND)
    assert fake.uploaded_bytes == uploaded, "what the Hub had was uploaded again"


@pytest.mark.parametrize("failure", [503, 0], ids=["an error of the server", "a cut connection"])
def test_a_push_outlasts_failures_that_pass(failure, released, fake):
    fake.failures["commit/" + FIRST] = [failure, failure]
    fake.failures["repos/create"] = [failure]
    hub.push(released, [FIRST], "org/name", first_pause_seconds=0.01)
    assert fake.branches["org/name"][FIRST] == folder_as_bytes(released / FIRST)


def test_a_push_without_permission_is_refused_at_once(released, fake):
    fake.failures["repos/create"] = [403] * 2
    with pytest.raises(CheckpointError, match="could not create it"):
        hub.push(released, [FIRST], "org/name", first_pause_seconds=60)
    assert fake.failures["repos/create"] == [403], "it was tried again"


@pytest.mark.slow
def test_a_pushed_revision_is_imported_by_its_id(released, fake, tmp_path):
    hub.push(released, [FIRST, SECOND], "org/name", first_pause_seconds=0.01)
    code = (
        "from tessera.checkpoints.importer import import_checkpoint\n"
        f"import_checkpoint('org/name@{FIRST}', {str(tmp_path / 'out.pt')!r})\n"
    )
    environment = {
        **os.environ,
        "HF_ENDPOINT": fake.url,
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_DISABLE_XET": "1",
    }
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    found, original = read_checkpoint(tmp_path / "out.pt"), read_checkpoint(released / FIRST)
    assert torch.equal(found.weights["decoder.bias"], original.weights["decoder.bias"])
    assert found.optimizer is not None


def judged(model, out, **scores):
    """A results folder as `tessera evaluate` leaves it, with a task of a known score."""
    from tessera.evaluation.jobs.models import resolve
    from tessera.evaluation.jobs.plan import survey
    from tessera.evaluation.jobs.records import Outcome, Records
    from tessera.evaluation.results import write_results
    from tessera.evaluation.suites import SuiteConfig
    from tessera.evaluation.tasks.config import Classification

    hub = "hf://datasets/nyu-mll/glue"
    tasks = {
        name: Classification(
            name="classification", train=f"{hub}/{name}/train", validation=f"{hub}/{name}/dev"
        )
        for name in scores
    }
    suite = SuiteConfig(tasks=tasks, seeds=[1, 2])
    records = Records(out=out)

    def look():
        return survey(suite, resolve([str(model)], out), dict.fromkeys(tasks, "x"), {}, records)

    about = {"seconds": 1.0, "command": "c", "versions": {}, "finished": "now"}
    while waiting := [job for cell in look() for job in cell.waiting]:
        for job in waiting:
            score = {"accuracy": scores[job.task_name] + job.seed / 100}
            records.finish(job, Outcome(scores=score, validation=score, split="validation"), about)
    write_results(out, look())
    return out


def front_matter(card):
    return yaml.safe_load(card.read_text().split("---")[1])


@pytest.mark.parametrize("what", ["the run", "the checkpoint", "the revision"])
def test_what_evaluation_found_is_on_the_cards_of_the_weights_it_judged(
    what, run, tmp_path, caplog
):
    out = tmp_path / "out"
    release(run, out)
    before = {name: (out / name / "README.md").read_text() for name in (FIRST, SECOND)}
    named = {
        "the run": run,
        "the checkpoint": run / "checkpoints" / "step00000080.pt",
        "the revision": out / SECOND,
    }
    results = judged(named[what], tmp_path / "results", cola=0.5, sst2=0.25)
    release(run, out, results=results)
    assert (out / FIRST / "README.md").read_text() == before[FIRST], "it was not judged"
    assert f"{FIRST}: the results hold nothing about these weights" in caplog.text
    card = out / SECOND / "README.md"
    assert "| cola | accuracy | 0.515 | 0.007071 | 2 |" in card.read_text()
    (index,) = front_matter(card)["model-index"]
    assert index["name"] == SECOND and len(index["results"]) == 2
    (first,) = [r for r in index["results"] if r["dataset"]["name"] == "cola"]
    assert first["dataset"]["type"] == "nyu-mll/glue" and first["dataset"]["split"] == "dev"
    (metric,) = first["metrics"]
    assert metric == {"type": "accuracy", "value": 0.515, "name": "accuracy of cola"}
    for revision in (FIRST, SECOND):
        done = subprocess.run(
            ["sha256sum", "-c", "--quiet", "SHA256SUMS"], cwd=out / revision, capture_output=True
        )
        assert done.returncode == 0, done
    again = tmp_path / "again"
    if what != "the revision":
        release(run, again, results=results)
        assert (again / SECOND / "README.md").read_text() == card.read_text()


def test_a_folder_without_results_is_refused_before_anything_is_written(run, tmp_path):
    with pytest.raises(CheckpointError, match="holds no results.json"):
        release(run, tmp_path / "out", results=tmp_path)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("tokens", "lr", "fallen"), [(6900, 0.01, False), (7040, 0.01, False), (7546, 0.006, True)]
)
def test_a_step_that_ends_beyond_the_boundary_was_made_before_the_decay(tokens, lr, fallen):
    """Runs pin the first checkpoint at or past it: the one to start again from."""
    schedule = {"name": "warmup_stable_decay", "warmup": "1_000tok", "decay": "1_000tok"}
    known = SimpleNamespace(
        run_config={"duration": "8_000tok", "schedule": schedule},
        progress={"tokens": tokens, "lr": lr, "max_lr": 0.01},
    )
    assert history.decayed(known) is fallen
