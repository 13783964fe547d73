"""Every kept checkpoint of a run as a revision to publish.

A revision is a folder: the Hugging Face export, a model card, the state to restart from, and the
digests of all of it. It appears whole, by a rename, so a release that was interrupted is continued
by running it again.
"""

import json
import logging
import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import asdict, replace
from hashlib import sha256 as hashed
from pathlib import Path

from tessera.checkpoints import history
from tessera.checkpoints.checkpoint import Checkpoint, CheckpointError
from tessera.checkpoints.exporter import verify, write_folder
from tessera.checkpoints.formats import restart_state
from tessera.checkpoints.reader import read_checkpoint
from tessera.checkpoints.release import hub, model_card
from tessera.checkpoints.release.evaluations import Result, read_results
from tessera.checkpoints.release.model_card import About
from tessera.checkpoints.safe_files import load_json, sha256
from tessera.files import JsonObject, as_json, json_lines, write_whole
from tessera.tokenizer import special_tokens

INDEX = "index.json"
SUMS = "SHA256SUMS"

_log = logging.getLogger(__name__)


def release(
    run_folder: str | Path,
    out: str | Path,
    *,
    push: str | None = None,
    license: str | None = None,
    about: About | None = None,
    results: str | Path | None = None,
) -> Path:
    """Make a revision of every checkpoint of a run, and an index of all revisions in `out`.

    Revisions already there are kept; several runs (the phases of a chain) may share one `out`.

    Args:
        run_folder: with its `checkpoints` and `metrics.jsonl`.
        out: folder of the release; revisions become folders in it.
        push: also push to this Hugging Face repository (`org/name`), one branch a revision.
        license: named on the cards; None says that none was chosen.
        about: what else the cards say; what the run folder knows is added.
        results: folder of `tessera evaluate --out`: what it says of these weights goes on their
            cards, and on those of revisions that are there already.

    Returns:
        The index, `out/README.md`.

    Raises:
        CheckpointError: the run has no checkpoint, one is unreadable or fails its verification,
            or pushing failed; what is finished stays, and the same call continues.
    """
    run_folder, out = Path(run_folder), Path(out)
    checkpoints = _checkpoints(run_folder)
    about = about or About()
    if results is not None:
        about = replace(about, results=read_results(Path(results)))
    _check_target(out)
    out.mkdir(parents=True, exist_ok=True)
    known = {entry["source"]["sha256"]: entry for entry in _entries(out)}
    for path in checkpoints:
        digest = sha256(path)
        if digest in known:
            entry = known[digest]
            if results is not None or _says_otherwise(entry, push, license):
                _write_card(run_folder, path, out / entry["revision"], entry, push, license, about)
                _log.info("%s: its card is written anew", entry["revision"])
            _log.info("%s: already released as %s", path, known[digest]["revision"])
            continue
        source = {"file": path.name, "sha256": digest}
        try:
            name = _release_one(run_folder, path, out, source, push, license, about)
        except CheckpointError:
            if not any(out.iterdir()):  # nothing was released: the folder was made for nothing
                out.rmdir()
            raise
        _log.info("%s: released as %s", path, name)
    index = write_index(out, repository=push, license=license)
    if push is not None:
        hub.push(out, [entry["revision"] for entry in _entries(out)], push)
    return index


def write_index(out: Path, *, repository: str | None, license: str | None) -> Path:
    """Write `index.json` and a README.md with one line per revision in `out`."""
    entries = _entries(out)
    write_whole(out / INDEX, (json.dumps(entries, indent=2) + "\n").encode())
    card = model_card.index_card(entries, repository=repository, license=license)
    write_whole(out / "README.md", card.encode())
    return out / "README.md"


def _release_one(
    run_folder: Path,
    path: Path,
    out: Path,
    source: JsonObject,
    repository: str | None,
    license: str | None,
    about: About,
) -> str:
    checkpoint = read_checkpoint(path)
    missing = [key for key in ("steps", "tokens") if key not in checkpoint.progress]
    if missing:
        raise CheckpointError(f"{checkpoint.path}: does not record its {' and '.join(missing)}")
    name = model_card.revision_name(run_folder.resolve().name, checkpoint.progress)
    if (out / name).exists():
        raise CheckpointError(
            f"{out / name}: was released from another file than {checkpoint.path}; remove that "
            "folder to release it anew, or choose another --out"
        )
    scores = _scores(run_folder / "metrics.jsonl", checkpoint.progress["steps"])
    temporary = Path(tempfile.mkdtemp(prefix=f".{name}.releasing-", dir=out))
    try:
        write_folder(checkpoint, temporary)
        difference = verify(checkpoint, temporary)
        source = {**source, "largest_logit_difference": difference}
        restart_state.write(checkpoint, temporary, source=source)
        losses = {key: score["loss"] for key, score in scores.items() if "loss" in score}
        entry = {
            "revision": name,
            "steps": checkpoint.progress["steps"],
            "tokens": checkpoint.progress["tokens"],
            "lr": checkpoint.learning_rate,
            "validation_loss": losses,
            "decayed": history.decayed(checkpoint),
            **({"objective": "causal"} if checkpoint.causal else {}),
            "source": source,
        }
        _write_card(
            run_folder, path, temporary, entry, repository, license, about, checkpoint=checkpoint
        )
        temporary.chmod(0o755)
        os.rename(temporary, out / name)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return name


def _says_otherwise(entry: JsonObject, repository: str | None, license: str | None) -> bool:
    """Whether a card names another repository or licence than is asked for, if one is."""
    return (repository is not None and entry.get("repository") != repository) or (
        license is not None and entry.get("license") != license
    )


def _write_card(
    run_folder: Path,
    path: Path,
    folder: Path,
    entry: JsonObject,
    repository: str | None,
    license: str | None,
    about: About,
    *,
    checkpoint: Checkpoint | None = None,
) -> None:
    """Write a revision's card and picture, its entry, and the digests of all its files."""
    checkpoint = checkpoint or read_checkpoint(path)
    repository = repository or entry.get("repository")
    license = license or entry.get("license")
    found = _results_of(about.results, entry, folder)
    about = replace(about, machines=_machines(run_folder, checkpoint), results=found)
    if history.decayed(checkpoint):
        name, rate = _before_decay(run_folder, checkpoint)
        about = replace(about, before_decay=name, rate_before=rate)
    text = model_card.model_card(
        checkpoint,
        name=entry["revision"],
        repository=repository,
        license=license,
        scores=_scores(run_folder / "metrics.jsonl", checkpoint.progress["steps"]),
        mask_token=special_tokens(checkpoint.tokenizer_files or {})["mask_token"],
        about=about,
    )
    write_whole(folder / "README.md", text.encode())
    if about.picture is not None:
        write_whole(folder / "loss.png", about.picture)
    entry = entry | {"repository": repository, "license": license}
    if found:
        entry["results"] = [asdict(result) for result in found]
    write_whole(folder / "revision.json", as_json(entry).encode())
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    sums = [f"{sha256(file)}  {file.relative_to(folder).as_posix()}\n" for file in files]
    write_whole(folder / SUMS, "".join(sums).encode())


def _results_of(results: Sequence[Result], entry: JsonObject, folder: Path) -> list[Result]:
    """The results that are of a revision's weights, and those that its card had before."""
    exported = [folder / "config.json", *sorted(folder.glob("*.safetensors"))]
    own = {_fingerprint([entry["source"]["sha256"]]), _fingerprint(map(sha256, exported))}
    new = [result for result in results if result.fingerprint in own]
    if results and not new:
        _log.warning("%s: the results hold nothing about these weights", entry["revision"])
    before = [Result(**content) for content in entry.get("results", [])]
    return list({result.task: result for result in [*before, *new]}.values())


def _fingerprint(digests: Iterable[str]) -> str:
    """What evaluation calls weights: see `tessera.evaluation.jobs.models`, which tests hold to."""
    return hashed(f"False {''.join(digests)}".encode()).hexdigest()[:16]


def _machines(run_folder: Path, checkpoint: Checkpoint) -> list[JsonObject]:
    """What the run ran on up to a checkpoint."""
    path = run_folder / "machine.json"
    if not path.is_file():
        return []
    starts = load_json(path).get("starts")
    found = [start for start in starts if isinstance(start, dict)] if starts else []
    steps = checkpoint.progress["steps"]
    return [m for m in found if isinstance(m.get("after_step"), int) and m["after_step"] < steps]


def _before_decay(run_folder: Path, checkpoint: Checkpoint) -> tuple[str | None, float | None]:
    """The last checkpoint before the decay, by its revision's name, and the rate it stopped at.

    Of this run if it has a plateau and a checkpoint there is kept, else of the phase before.
    """
    begin = history.decay_begin(checkpoint.run_config)
    names = (re.fullmatch(r"step(\d+)", path.stem) for path in _checkpoints(run_folder))
    steps = {int(name[1]) for name in names if name}
    found = None
    counted = {"tokens": "tokens", "steps": "step", "documents": "total_documents"}
    of_step = {"tokens": "step_tokens", "documents": "documents"}
    metrics = run_folder / "metrics.jsonl"
    if begin is not None and begin.value > 0 and metrics.is_file():
        for _, record in json_lines(metrics, []):
            done = record.get(counted[begin.counted])
            if record.get("kind") == "step" and record.get("step") in steps and done is not None:
                # A step is made at the rate of where it begins.
                own = 1 if begin.unit == "ba" else record.get(of_step[begin.counted]) or 0
                found = record if done - own <= begin.value else found
    if found is not None:
        known = {"steps": found["step"], "tokens": found["tokens"]}
        return model_card.revision_name(run_folder.resolve().name, known), found.get("lr")
    for phase in reversed(history.phases_before(checkpoint)):
        if not phase.get("decayed") and {"steps", "tokens"} <= phase.keys():
            return model_card.revision_name(str(phase["phase"]), phase), phase.get("lr")
    return None, None


def _checkpoints(run_folder: Path) -> list[Path]:
    folder = run_folder / "checkpoints"
    if not folder.is_dir():
        raise CheckpointError(f"{run_folder}: no run folder (it has no checkpoints)")
    found = sorted(p for p in folder.glob("*.pt") if p.is_file() and not p.is_symlink())
    if not found:
        raise CheckpointError(f"{folder}: holds no checkpoint (step*.pt) to release")
    return found


def _check_target(out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise CheckpointError(f"{out}: is no folder; choose another place for the release")
    if out.is_dir() and any(out.iterdir()) and not _entries(out) and not _only_leftovers(out):
        raise CheckpointError(f"{out}: holds other things; choose a new or empty folder")


def _only_leftovers(out: Path) -> bool:
    return all(path.name.startswith(".") and ".releasing-" in path.name for path in out.iterdir())


def _entries(out: Path) -> list[JsonObject]:
    """The finished revisions in `out`: in the order of their phases' names, then of steps."""
    paths = out.glob("*/revision.json") if out.is_dir() else ()
    entries = [load_json(path) for path in paths if not path.parent.name.startswith(".")]
    return sorted(entries, key=lambda entry: (entry["revision"].rsplit("-step")[0], entry["steps"]))


def _scores(metrics: Path, steps: int) -> dict[str, JsonObject]:
    """Validation scores by source, if there was an evaluation after this very step."""
    scores: dict[str, JsonObject] = {}
    if not metrics.is_file():
        return scores
    notes: list[str] = []
    for _, record in json_lines(metrics, notes):
        if record["kind"] == "evaluation" and record["step"] == steps:
            scores = record["sources"]
    for note in notes:
        _log.warning("%s: %s", metrics.parent, note)
    return scores
