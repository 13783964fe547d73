"""What a released revision says about itself: its model card, and the index of all revisions."""

import platform
from collections.abc import Mapping, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import PurePosixPath
from typing import Any

import yaml

from tessera.checkpoints.checkpoint import Checkpoint
from tessera.quantities import short_number

_PACKAGES = ("tessera", "torch", "transformers", "mosaicml", "mosaicml-streaming", "torch-optimi")
_UNNAMED = "ORG/NAME"


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
) -> str:
    """The README.md of one revision, in Hugging Face's form.

    Args:
        checkpoint: the model and how it was trained.
        name: of the revision.
        repository: it is to be pushed to, `org/name`, if that is known.
        license: an identifier such as apache-2.0; None writes that none was chosen.
        scores: validation scores by source, each with `loss` and perhaps `accuracy`.
        mask_token: for the example.
    """
    head = {
        **({"license": license} if license else {}),
        "library_name": "transformers",
        "pipeline_tag": "fill-mask",
        "tags": ["modernbert", "fill-mask", "masked-lm"],
        "mask_token": mask_token,
    }
    settings, progress = checkpoint.run_config, checkpoint.progress
    sections = [
        f"# {name}\n\nA ModernBERT encoder, with the state to continue its training from here.",
        _usage(name, repository, mask_token),
        "## Model\n\n" + _table(_model_facts(checkpoint)),
        "## Where training stands\n\n" + _table(_position(checkpoint)),
        _continuation(checkpoint, name),
        "## Recipe\n\n" + (_recipe(settings) or "Not recorded in the checkpoint."),
        "## Data\n\n" + (_mixture(settings, progress) or "Not recorded in the checkpoint."),
        "## Evaluation\n\n" + (_scores(scores) or "Not evaluated at this step."),
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
        "pipeline_tag": "fill-mask",
        "tags": ["modernbert", "fill-mask", "masked-lm"],
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
    newest = entries[-1]["revision"] if entries else ""
    return (
        f"---\n{yaml.safe_dump(head, sort_keys=False)}---\n\n"
        f"# {repository or 'Checkpoints of a pretraining run'}\n\n"
        "Every checkpoint of a pretraining run, each a revision (a branch of the repository, a "
        f"folder of the local release). The newest is `{newest}`.\n\n{_grid(titles, rows)}\n\n"
        "```python\nfrom transformers import AutoModelForMaskedLM\n"
        f'model = AutoModelForMaskedLM.from_pretrained("{repository or _UNNAMED}", '
        f'revision="{newest}")\n```\n\n'
        "Training continues from any of them: download the revision and name its folder as "
        "`start_from`.\n"
    )


def _usage(name: str, repository: str | None, mask_token: str) -> str:
    return (
        "## Use\n\n```python\nfrom transformers import pipeline\n\n"
        f'fill = pipeline("fill-mask", model="{repository or _UNNAMED}", revision="{name}")\n'
        f'fill("Paris is the {mask_token} of France.")\n```'
    )


def _model_facts(checkpoint: Checkpoint) -> dict[str, Any]:
    config = checkpoint.model_config
    parameters = sum(
        tensor.numel() for key, tensor in checkpoint.weights.items() if key != "decoder.weight"
    )
    every = config.global_attn_every_n_layers
    return {
        "parameters": f"{parameters:,}",
        "layers": config.num_hidden_layers,
        "hidden size": config.hidden_size,
        "attention heads": config.num_attention_heads,
        "vocabulary": f"{config.vocab_size:,}",
        "attention": f"global in 1 of {every} layers, a window of {config.local_attention} tokens "
        "in the others",
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
    if checkpoint.optimizer_name:
        facts["optimizer state"] = checkpoint.optimizer_name
    return facts


def _continuation(checkpoint: Checkpoint, name: str) -> str:
    rate = checkpoint.learning_rate
    lines = [f"start_from: {PurePosixPath('path/to', name)}"]
    if rate:
        lines.append(f"optimizer: {{lr: {rate:g}}}  # the rate it stopped at")
    return (
        "## To continue from here\n\nWith the learning rate it stopped at, and a decay to zero for "
        "an annealing run:\n\n```yaml\n" + "\n".join(lines) + "\n```"
    )


def _recipe(settings: Mapping[str, Any]) -> str:
    facts: dict[str, Any] = {
        key: _settings(settings.get(key))
        for key in ("duration", "optimizer", "schedule", "batch", "seed")
        if settings.get(key) is not None
    }
    data = settings.get("train_data")
    if isinstance(data, Mapping):
        for key in ("max_seq_len", "row_tokens", "masking"):
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


def _scores(scores: Mapping[str, Mapping[str, Any]]) -> str:
    rows = [
        [source, _number(score.get("loss")), _number(score.get("accuracy"))]
        for source, score in scores.items()
    ]
    titles = ["source", "masked-LM loss (nats)", "accuracy"]
    return _grid(titles, rows) if rows else ""


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


def _table(facts: Mapping[str, Any]) -> str:
    return _grid(["", ""], [[key, str(value)] for key, value in facts.items()])


def _grid(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [titles, ["---"] * len(titles), *rows]
    return "\n".join(
        "| " + " | ".join(c.replace("|", "\\|") for c in line) + " |" for line in lines
    )
