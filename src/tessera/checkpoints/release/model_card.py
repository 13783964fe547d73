"""What a released revision says about itself: its model card, and the index of all revisions."""

import json
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

import yaml

from tessera.checkpoints import history
from tessera.checkpoints.checkpoint import Checkpoint
from tessera.checkpoints.release.evaluations import Result, model_index
from tessera.files import JsonObject
from tessera.quantities import short_number

_PACKAGES = ("tessera", "torch", "transformers", "mosaicml", "mosaicml-streaming", "torch-optimi")
_YES_NO: Mapping[Any, str] = {True: "yes", False: "no"}
_INTENDED = (
    "Filling masks, and as a pretrained encoder: to be fine-tuned for classification, tagging, "
    "retrieval or similarity of texts like those under Data. It generates no text, and is no "
    "embedding model before it is trained as one."
)
_TAGS: dict[str, Any] = {
    "pipeline_tag": "fill-mask",
    "tags": ["modernbert", "fill-mask", "masked-lm"],
}
_CAUSAL_TAGS: dict[str, Any] = {"tags": ["modernbert"]}
_NOT_TO_USE = (
    "## Use\n\nNot as it is. Its last phase was causal: each token was predicted from those before "
    "it. `transformers` reads these weights as a ModernBERT, which attends both ways; that is not "
    "what they have learned: do not fill masks with them, nor fine-tune them. Train a masked phase "
    "that starts here, and use what comes of it."
)
_LIMITS = (
    "It repeats what its texts say and leave out, false and unfair statements among it. Texts of "
    "other languages and kinds, and documents longer than its longest training segment, are read "
    "worse. It was judged by the numbers here alone: try it on your own task before relying on it."
)


@dataclass(frozen=True, kw_only=True)
class About:
    """What is said on a card, and not known from the checkpoint."""

    languages: Sequence[str] = ()
    """Codes, such as en."""
    example: tuple[str, str] | None = None
    """A text of a validation split with a mask, and what stood there."""
    picture: bytes | None = None
    """A PNG of the loss; the card shows loss.png beside it."""
    machines: Sequence[JsonObject] = ()
    """What the run ran on: the entries of its machine.json."""
    before_decay: str | None = None
    """The revision from which the decay set out, if this one has decayed."""
    rate_before: float | None = None
    """The learning rate that one stopped at."""
    results: Sequence[Result] = ()
    """Of tasks the weights were judged by."""


def revision_name(phase: str, progress: Mapping[str, Any]) -> str:
    """Name of a revision, fit for a git branch: `phase1-step004000-tokens18.9B`."""
    plain = "".join(c if c.isalnum() or c in "._" else "-" for c in phase).strip("-.") or "model"
    tokens = short_number(progress["tokens"], decimals=1).upper()
    return f"{plain}-step{int(progress['steps']):06d}-tokens{tokens}"


def model_card(
    checkpoint: Checkpoint,
    *,
    name: str,
    repository: str | None,
    license: str | None,
    scores: Mapping[str, Mapping[str, Any]],
    mask_token: str,
    about: About | None = None,
) -> str:
    """The README.md of one revision, in Hugging Face's form.

    Args:
        checkpoint: the model and how it was trained.
        name: of the revision.
        repository: it is to be pushed to, `org/name`, if that is known.
        license: an identifier such as apache-2.0; None writes that none was chosen.
        scores: validation scores by source, each with `loss` and perhaps `accuracy`.
        mask_token: for the example.
        about: what a checkpoint does not know.
    """
    about = about or About()
    head: dict[str, Any] = {
        **({"license": license} if license else {}),
        **({"language": list(about.languages)} if about.languages else {}),
        "library_name": "transformers",
        **(_CAUSAL_TAGS if checkpoint.causal else _TAGS | {"mask_token": mask_token}),
    }
    if index := model_index(name, about.results):
        head["model-index"] = index
    settings, progress = checkpoint.run_config, checkpoint.progress
    sections = [
        f"# {name}\n\n{_what_it_is(checkpoint, about)}",
        *(
            [_NOT_TO_USE]
            if checkpoint.causal
            else [
                _usage(name, repository, mask_token, about),
                "## Intended use\n\n" + _INTENDED,
            ]
        ),
        "## Language\n\n" + _language(about),
        "## Model\n\n" + _table(_model_facts(checkpoint)),
        "## Where training stands\n\n" + _table(_position(checkpoint)),
        _continuation(checkpoint, name, about),
        *(
            ["## Loss\n\n![Training and validation loss over tokens](loss.png)"]
            * bool(about.picture)
        ),
        "## Recipe\n\n" + (_recipe(settings) or "Not recorded in the checkpoint."),
        "## Data\n\n" + (_mixture(settings, progress) or "Not recorded in the checkpoint."),
        "## Evaluation\n\n" + _evaluation(scores, about.results, checkpoint.causal),
        "## Limits\n\n" + _LIMITS,
        *(["## Hardware\n\n" + _hardware(about.machines)] * bool(about.machines)),
        "## Versions\n\n" + _table(_versions(progress)),
        "## Licence\n\n" + (license or "No licence was chosen: ask the authors before using it."),
        "## Files\n\n`SHA256SUMS` lists the digest of every file (`sha256sum -c SHA256SUMS`). "
        "`restart/` holds the optimizer's moments (safetensors) and the position in the data "
        "(JSON); nothing here is a pickle.",
    ]
    front = yaml.safe_dump(head, sort_keys=False)
    return f"---\n{front}---\n\n" + "\n\n".join(sections) + "\n"


def index_card(
    entries: Sequence[Mapping[str, Any]], *, repository: str | None, license: str | None
) -> str:
    """The README.md above all revisions: one line each, in the order of training."""
    head = {
        **({"license": license} if license else {}),
        "library_name": "transformers",
        **_TAGS,
    }
    rows = [
        [
            f"`{entry['revision']}`",
            f"{entry['steps']:,}",
            f"{entry['tokens']:,}",
            _number(entry.get("lr")),
            ", ".join(f"{s} {_number(v)}" for s, v in entry.get("validation_loss", {}).items()),
        ]
        for entry in entries
    ]
    titles = ["revision", "steps", "tokens of the phase", "learning rate", "validation loss"]
    if any("objective" in entry for entry in entries):
        titles.append("objective")
        for row, entry in zip(rows, entries, strict=True):
            row.append(entry.get("objective", "masked"))
    if any("decayed" in entry for entry in entries):
        titles.append("decayed")
        for row, entry in zip(rows, entries, strict=True):
            row.append(_YES_NO.get(entry.get("decayed"), "not recorded"))
    newest = entries[-1]["revision"] if entries else ""
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# {repository or 'Checkpoints of a pretraining run'}\n\n"
        "Every checkpoint of a pretraining run, each a revision (a branch of the repository, a "
        f"folder of the local release). The newest is `{newest}`.\n\n{_grid(titles, rows)}\n\n"
        f"{_causal_revisions(entries)}"
        "```python\nfrom transformers import AutoModelForMaskedLM\n"
        f"model = AutoModelForMaskedLM.from_pretrained({_named(newest, repository)})\n```\n\n"
        "Training continues from any of them: download the revision and name its folder as "
        "`start_from`. From one that has decayed it is better not to: its card names another.\n"
    )


def _causal_revisions(entries: Sequence[Mapping[str, Any]]) -> str:
    if not any(entry.get("objective") == "causal" for entry in entries):
        return ""
    return (
        "Revisions whose objective is causal are not to be used as they are: their losses are of "
        "next tokens, and a masked phase has to follow before they are encoders.\n\n"
    )


def _named(name: str, repository: str | None, keyword: str = "") -> str:
    """The revision as an argument: of its repository, or its folder in a local release."""
    if repository is None:
        return f'{keyword}"./{name}"'
    return f'{keyword}"{repository}", revision="{name}"'


def _usage(name: str, repository: str | None, mask_token: str, about: About) -> str:
    text, answer = about.example or (f"Paris is the {mask_token} of France.", None)
    shown = json.dumps(text, ensure_ascii=False)
    said = f"  # in the text: {answer}" if answer is not None else ""
    source = "" if answer is None else "\n\nThe text is of a validation split, unseen in training."
    beside = "\n\nRun it beside the folder of this revision, or name that folder's path."
    where = "" if repository else beside
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'fill = pipeline("fill-mask", {_named(name, repository, "model=")})\n'
        f"fill({shown}){said}\n```{source}{where}"
    )


def _what_it_is(checkpoint: Checkpoint, about: About) -> str:
    fallen = history.decayed(checkpoint)
    if checkpoint.causal:
        return (
            "The weights of a ModernBERT after a causal phase, with the state to continue its "
            "training from here. **They are no encoder yet: a masked phase has to follow.**"
        )
    said = "A ModernBERT encoder, with the state to continue its training from here."
    if fallen is None:
        return said
    if not fallen:
        return said + " Its learning rate has not decayed: it is meant to be trained on."
    rate, peak = checkpoint.learning_rate, checkpoint.progress.get("max_lr")
    fell = f", from {_number(peak)} to {_number(rate)}" if rate is not None and peak else ""
    return (
        f"A ModernBERT encoder whose learning rate has decayed{fell}: it is meant to be used, or "
        f"fine-tuned. {_before(about)}"
    )


def _before(about: About) -> str:
    if about.before_decay is None:
        return "Further pretraining had better start from a checkpoint before the decay."
    return f"It comes from the checkpoint `{about.before_decay}`, from before the decay."


def _language(about: About) -> str:
    if about.languages:
        return ", ".join(about.languages) + "."
    return "Not stated by the authors: that of the sources under Data."


def _hardware(machines: Sequence[JsonObject]) -> str:
    rows = []
    for machine in machines:
        ranks, kind = machine.get("ranks", 1), machine.get("kind", "")
        packages = machine.get("versions")
        packages = packages if isinstance(packages, Mapping) else {}
        named = ", ".join(f"{name} {v}" for name, v in packages.items() if v)
        rows.append(
            [
                str(machine.get("after_step", 0)),
                f"{ranks} x {machine.get('device')} ({kind})",
                named,
            ]
        )
    return _grid(["from step", "device", "versions"], rows)


def _model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.model_config
    parameters = sum(
        tensor.numel() for key, tensor in checkpoint.weights.items() if key != "decoder.weight"
    )
    everywhere = sum(map(config.is_global, range(config.num_hidden_layers)))
    return {
        "parameters": f"{parameters:,}",
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "vocabulary": f"{config.vocab_size:,}",
        "attention": f"global in {everywhere} of {config.num_hidden_layers} layers, a window of "
        f"{config.local_attention} tokens in the others",
        "RoPE theta, global / local": f"{config.global_rope_theta:g} / {config.local_rope_theta:g}",
        "longest training segment": checkpoint.max_seq_len or "not recorded",
    }


def _position(checkpoint: Checkpoint) -> dict[str, Any]:
    settings, progress = checkpoint.run_config, checkpoint.progress
    tokens = progress.get("tokens", 0)
    facts = {
        "steps of this phase": f"{progress.get('steps', 0):,}",
        "tokens of this phase": f"{tokens:,} of {settings.get('duration', 'an unknown length')}",
        "schedule": _settings(settings.get("schedule")) or "not recorded",
        "learning rate": _number(checkpoint.learning_rate),
    }
    if history.is_known(checkpoint):
        before = history.phases_before(checkpoint)
        counts = [phase.get("tokens") for phase in before]
        known = [count for count in counts if isinstance(count, int)]
        facts["tokens of all phases"] = f"{sum(known) + tokens:,}" + (
            f" ({', '.join(_phase(phase) for phase in before)}, and this one)" if before else ""
        )
        if len(known) < len(counts):
            facts["tokens of all phases"] += ", and those of what does not record them"
    else:
        facts["tokens of all phases"] = "not recorded"
    if checkpoint.optimizer_name:
        facts["optimizer state"] = checkpoint.optimizer_name
    return facts


def _phase(phase: Mapping[str, Any]) -> str:
    tokens = phase.get("tokens")
    count = f"{tokens:,}" if isinstance(tokens, int) else "an unknown number"
    causal = " causal ones" * (phase.get("objective") == "causal")
    return f"{count}{causal} in {phase.get('phase')}"


def _continuation(checkpoint: Checkpoint, name: str, about: About) -> str:
    if history.decayed(checkpoint):
        return _continuation_before(checkpoint, about)
    rate = checkpoint.learning_rate
    lines = [f"start_from: {PurePosixPath('path/to', name)}"]
    if rate:
        lines.append(f"optimizer: {_optimizer(checkpoint, rate)}  # the rate it stopped at")
    return (
        "## To continue from here\n\nWith the learning rate it stopped at, and a decay to zero for "
        "an annealing run:\n\n```yaml\n" + "\n".join(lines) + "\n```"
    )


def _continuation_before(checkpoint: Checkpoint, about: About) -> str:
    rate = _number(checkpoint.learning_rate)
    said = (
        f"## To continue\n\nNot from here: the learning rate has decayed to {rate}, and going on "
        "at that teaches little, while a higher one undoes the decay. "
    )
    if about.before_decay is None:
        return said + "Start from a checkpoint before the decay."
    lines = [f"start_from: {PurePosixPath('path/to', about.before_decay)}"]
    if about.rate_before is not None:
        optimizer = _optimizer(checkpoint, about.rate_before)
        lines.append(f"optimizer: {optimizer}  # the rate that one stopped at")
    return (
        f"{said}Start from `{about.before_decay}`, the last checkpoint before it:\n\n```yaml\n"
        + "\n".join(lines)
        + "\n```"
    )


def _optimizer(checkpoint: Checkpoint, rate: float) -> str:
    """The section of a YAML for this rate; it names the optimizer where it is not the recipe's."""
    settings = checkpoint.run_config.get("optimizer")
    settings = settings if isinstance(settings, Mapping) else {}
    name, peak, rest = (settings.get(key) for key in ("name", "lr", "rest"))
    inner = [f"name: {name}"] if name not in (None, "stable_adamw") else []
    inner.append(f"lr: {rate:g}")
    if isinstance(rest, Mapping) and peak and rest.get("lr"):
        inner.append(f"rest: {{lr: {rest['lr'] * rate / peak:g}}}")
    return f"{{{', '.join(inner)}}}"


def _recipe(settings: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {
        key: _settings(settings.get(key))
        for key in ("duration", "optimizer", "schedule", "batch", "seed")
        if settings.get(key) is not None
    }
    data = settings.get("train_data")
    if isinstance(data, Mapping):
        causal = data.get("objective") == "causal"
        for key in ("max_seq_len", "row_tokens", "objective" if causal else "masking"):
            if data.get(key) is not None:
                facts[key] = _settings(data[key])
    return _table(facts) if facts else ""


def _mixture(settings: Mapping[str, Any], progress: Mapping[str, Any]) -> str:
    data = settings.get("train_data")
    sources = data.get("sources") if isinstance(data, Mapping) else None
    if not isinstance(sources, Mapping):
        return ""
    weights = {
        str(name): float(source.get("weight", 1.0))
        for name, source in sources.items()
        if isinstance(source, Mapping)
    }
    total = sum(weights.values()) or 1.0
    read = progress.get("source_tokens")
    rows = [
        [name, f"{100 * weight / total:.1f} %"]
        + ([f"{read.get(name, 0):,}"] if isinstance(read, Mapping) else [])
        for name, weight in weights.items()
    ]
    titles = ["source", "share of tokens"] + (["tokens read"] if isinstance(read, Mapping) else [])
    return _grid(titles, rows)


def _scores(scores: Mapping[str, Mapping[str, Any]], causal: bool) -> str:
    rows = [
        [source, _number(score.get("loss")), _percent(score.get("accuracy"))]
        for source, score in scores.items()
    ]
    kind = "next-token loss" if causal else "masked-LM loss"
    titles = ["source", f"{kind} (nats)", "accuracy"]
    return _grid(titles, rows) if rows else ""


def _evaluation(
    scores: Mapping[str, Mapping[str, Any]], results: Sequence[Result], causal: bool
) -> str:
    parts = [_scores(scores, causal) or "Not evaluated at this step."]
    if results:
        rows = [
            [
                result.task,
                result.metric.replace("_", " "),
                _number(result.mean),
                "" if result.spread is None else _number(result.spread),
                str(result.seeds),
                result.dataset or result.split,
            ]
            for result in results
        ]
        titles = ["task", "metric", "mean", "standard deviation", "seeds", "scored on"]
        parts.append("Judged by `tessera evaluate`:\n\n" + _grid(titles, rows))
    return "\n\n".join(parts)


def _versions(progress: Mapping[str, Any]) -> dict[str, str]:
    trained = progress.get("trained_with")
    found = (
        {f"{name}, in training": str(value) for name, value in trained.items()}
        if isinstance(trained, Mapping)
        else {}
    )
    found["python, at release"] = platform.python_version()
    for package in _PACKAGES:
        try:
            found[f"{package}, at release"] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _settings(value: Any) -> str:
    if isinstance(value, Mapping):
        shown = [f"{k} {_settings(v)}" for k, v in value.items() if v is not None and k != "name"]
        name = value.get("name")
        return (f"{name}: " if name else "") + ", ".join(shown)
    if isinstance(value, (list, tuple)):
        return "(" + ", ".join(_settings(item) for item in value) + ")"
    return str(value)


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, (int, float)) else "not recorded"


def _percent(value: Any) -> str:
    return f"{value:.1%}" if isinstance(value, (int, float)) else "not recorded"


def _table(facts: Mapping[str, Any]) -> str:
    return _grid(["", ""], [[key, str(value)] for key, value in facts.items()])


def _grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
