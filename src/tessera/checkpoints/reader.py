"""One door for every kind of checkpoint: ours, FlexBERT's, Hugging Face's, a release's."""

from pathlib import Path
from typing import Any

from tessera import fetch
from tessera.checkpoints.checkpoint import Checkpoint, CheckpointError, build_model, check_weights
from tessera.checkpoints.formats import composer, flexbert, huggingface, restart_state
from tessera.checkpoints.safe_files import load_pickled_tensors, load_safetensors
from tessera.model.config import ModelConfig
from tessera.model.modernbert import ModernBertForMaskedLM

_NAMED = 3
"""Models of a folder that are named where it is none itself."""


def read_checkpoint(path: str | Path, *, model_config: ModelConfig | None = None) -> Checkpoint:
    """Read a checkpoint, whatever wrote it, without running anything that is in it.

    Args:
        path: a run folder or its `checkpoints` folder (the newest one), a training checkpoint,
            an imported or a FlexBERT `.pt` file, a Hugging Face folder, a released revision, or a
            file of bare weights, for which `model_config` is needed.
        model_config: the model's shape, for files that do not say; checked against those that do.

    Raises:
        CheckpointError: there is nothing readable at `path`; the message says why.
    """
    found = locate(fetch.local(path))
    if not found.is_dir():
        checkpoint = _read_file(found, model_config)
    elif restart_state.is_release(found):
        checkpoint = restart_state.read(found)
    else:
        checkpoint = huggingface.read_folder(found)
    if model_config is not None:
        _check_same_model(checkpoint, model_config)
    return checkpoint


def load_model(path: str | Path) -> ModernBertForMaskedLM:
    """The model of a checkpoint of any kind, on the CPU in float32, in eval mode.

    Raises:
        CheckpointError: there is no readable checkpoint at `path`.
    """
    return build_model(read_checkpoint(path))


def locate(path: Path) -> Path:
    """The file or model folder that a path means: a run folder means its newest checkpoint.

    Raises:
        CheckpointError: there is none.
    """
    if not path.exists():
        raise CheckpointError(f"{path}: there is no such file or folder")
    if not path.is_dir() or (path / "config.json").is_file():
        return path
    for folder in (path / "checkpoints", path):
        if (folder / "latest").is_file():
            return (folder / "latest").resolve()
        numbered = sorted(folder.glob("step*.pt")) if folder.is_dir() else []
        if numbered:
            return numbered[-1]
    if (path / "state.json").is_file() and (path.parent / "config.json").is_file():
        raise CheckpointError(
            f"{path}: is the training state of a released revision, and is read with the model "
            f"beside it; name the folder around both, {path.parent}"
        )
    models = sorted(folder.parent.name for folder in path.glob("*/config.json"))
    hint = f"; name one of the models in it: {', '.join(models[:_NAMED])}" if models else ""
    hint += f" and {len(models) - _NAMED} more" * (len(models) > _NAMED)
    raise CheckpointError(
        f"{path}: a folder with neither a Hugging Face model (config.json) nor checkpoints "
        f"(checkpoints/latest){hint}"
    )


def _read_file(path: Path, model_config: ModelConfig | None) -> Checkpoint:
    if path.stat().st_size == 0:
        raise CheckpointError(f"{path}: the file is empty")
    if path.suffix == ".safetensors":
        return _read_bare(path, dict(load_safetensors(path)), model_config)
    contents = load_pickled_tensors(path)
    if not isinstance(contents, dict):
        raise CheckpointError(f"{path}: holds a {type(contents).__name__}, not a checkpoint")
    state = contents.get("state")
    if not isinstance(state, dict) or not isinstance(state.get("model"), dict):
        return _read_bare(path, contents, model_config)
    if any(not isinstance(name, str) for name in state["model"]):
        raise CheckpointError(f"{path}: its weights have no names")
    if composer.own_record(state) is not None:
        return composer.read_state(path, state)
    if flexbert.is_flexbert(state):
        return flexbert.read_state(path, state, model_config)
    raise CheckpointError(
        f"{path}: a Composer checkpoint of some other model; FlexBERT's and this project's are read"
    )


def _read_bare(
    path: Path, contents: dict[str, Any], model_config: ModelConfig | None
) -> Checkpoint:
    """Weights alone, by FlexBERT's names or Hugging Face's."""
    names = [name for name in contents if isinstance(name, str)]
    if len(names) != len(contents) or not any("tok_embeddings" in name for name in names):
        raise CheckpointError(f"{path}: holds no checkpoint of a ModernBERT")
    if model_config is None:
        raise CheckpointError(
            f"{path}: bare weights, which do not say what model they are of; give the YAML of the "
            "model (--model)"
        )
    foreign = any("encoder.layers." in name for name in names)
    found = {flexbert.rename(name) if foreign else name: contents[name] for name in names}
    return Checkpoint(
        path=path,
        kind="weights",
        model_config=model_config,
        weights=check_weights(path, model_config, found),
    )


def _check_same_model(checkpoint: Checkpoint, wanted: ModelConfig) -> None:
    for key, value in vars(wanted).items():
        found = getattr(checkpoint.model_config, key)
        trained = key not in {"initializer_range", "initializer_cutoff_factor"}
        if (
            found != value
            and trained
            and key not in {"attention_output_dropout", "decoder_bias_init"}
        ):
            raise CheckpointError(
                f"{checkpoint.path}: its {key} is {found}, the model's YAML says {value}"
            )
