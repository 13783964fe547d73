"""What every checkpoint becomes once read, whoever wrote it, and the checks it must pass."""

import logging
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor

from tessera.files import JsonObject
from tessera.model.config import ModelConfig
from tessera.model.modernbert import ModernBertForMaskedLM

EMBEDDING = "model.embeddings.tok_embeddings.weight"
DECODER = "decoder.weight"

CAUSAL = (
    "its last phase was causal (train_data.objective), and the model read here attends both ways, "
    "which these weights have not learned: train a masked phase from it (start_from) before it is "
    "used or judged"
)
"""What is to be known of the weights of a causal phase."""

log = logging.getLogger(__name__)

_FLOATS = {torch.float32, torch.bfloat16, torch.float16, torch.float64}


class CheckpointError(ValueError):
    """A checkpoint that cannot be used. The message names the file, the cause and the way out."""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A model, and as much of its training state as its file holds."""

    path: Path
    kind: Literal["tessera", "flexbert", "huggingface", "release", "weights"]
    """Who wrote it. `weights`: a bare dictionary of tensors, whose shape the caller named."""
    model_config: ModelConfig
    weights: dict[str, Tensor]
    """float32 on the CPU, by Hugging Face's names; `decoder.weight` is the embedding itself."""
    max_seq_len: int | None = None
    """Longest segment it was trained on, where the file says so."""
    tokenizer_files: dict[str, str] | None = None
    """The tokenizer's files, name to text."""
    optimizer_name: str | None = None
    """Class of the optimizer that left the state below, such as StableAdamW."""
    optimizer: dict[str, JsonObject] | None = None
    """Optimizer state by parameter name: `exp_avg`, `exp_avg_sq`..."""
    hyperparameters: list[JsonObject] = field(default_factory=list)
    """The optimizer's groups: `params` (names), `lr`, `weight_decay`, `max_lr`, `step`..."""
    run_config: JsonObject = field(default_factory=dict)
    """The resolved YAML of the run, if it was one of ours."""
    progress: JsonObject = field(default_factory=dict)
    """How far training was: `tokens`, `steps`, `lr`, `max_lr` and whatever else was recorded."""
    data: JsonObject | None = None
    """The loader's state, as JSON."""

    @property
    def causal(self) -> bool:
        """Whether its last phase was causal, so that the weights are for one that masks to follow.

        An export has no settings of its run, but what the run's progress says.
        """
        data = self.run_config.get("train_data")
        settings = data if isinstance(data, dict) else self.progress
        return settings.get("objective") == "causal"

    @property
    def learning_rate(self) -> float | None:
        """The rate it stopped at, with which an annealing run would continue."""
        found = self.progress.get("lr")
        if found is None and self.hyperparameters:
            found = self.hyperparameters[-1].get("lr")
        return None if found is None else float(found)


def build_model(checkpoint: Checkpoint) -> ModernBertForMaskedLM:
    """The checkpoint's model on the CPU in float32, in eval mode.

    It attends both ways; a warning says so if the weights were trained otherwise.
    """
    if checkpoint.causal:
        log.warning("%s: %s", checkpoint.path, CAUSAL)
    with torch.device("meta"):
        model = ModernBertForMaskedLM(checkpoint.model_config)
    model.load_state_dict(checkpoint.weights, assign=True)
    model.tie_weights()
    return model.eval()


def expected_shapes(config: ModelConfig) -> dict[str, torch.Size]:
    """Shape of every tensor of a model, by Hugging Face's names, the tied decoder included."""
    with torch.device("meta"):
        model = ModernBertForMaskedLM(config)
    return {name: tensor.shape for name, tensor in model.state_dict().items()}


def check_weights(where: object, config: ModelConfig, found: JsonObject) -> dict[str, Tensor]:
    """The model's tensors in float32, if they are exactly those of the configuration.

    Args:
        where: the file, for messages.
        config: what the model should look like.
        found: tensors by Hugging Face's names; the tied `decoder.weight` may be left out.

    Raises:
        CheckpointError: naming the first tensors that are missing, surplus, of another shape, of
            a type that is no floating-point number, or not finite.
    """
    layers = {int(m[1]) for m in map(re.compile(r"model\.layers\.(\d+)\.").match, found) if m}
    if len(layers) != config.num_hidden_layers:
        raise CheckpointError(
            f"{where}: its configuration says {config.num_hidden_layers} layers, its tensors "
            f"are of {len(layers)}; the configuration of another model?"
        )
    found = {DECODER: found.get(EMBEDDING), **found}
    shapes = expected_shapes(config)
    missing = [name for name in shapes if found.get(name) is None]
    surplus = [name for name in found if name not in shapes]
    if missing or surplus:
        raise CheckpointError(
            f"{where}: not the tensors of a ModernBERT with a masked-language-model head"
            + (f"; missing: {_some(missing)}" if missing else "")
            + (f"; unknown: {_some(surplus)}" if surplus else "")
        )
    weights = {
        name: check_tensor(where, name, found[name], shape).float()
        for name, shape in shapes.items()
    }
    if found[DECODER] is not found[EMBEDDING] and not torch.equal(
        weights[DECODER], weights[EMBEDDING]
    ):
        raise CheckpointError(
            f"{where}: {DECODER} differs from {EMBEDDING}; models whose decoder is not tied to "
            "the embedding are not supported"
        )
    weights[DECODER] = weights[EMBEDDING]
    return weights


def check_tensor(where: object, name: str, tensor: object, shape: torch.Size | None) -> Tensor:
    """The tensor itself, if it is what it claims to be: dense, all there, of `shape`, finite.

    Raises:
        CheckpointError: naming the file, the tensor and what is wrong with it.
    """
    if not isinstance(tensor, Tensor):
        raise CheckpointError(f"{where}: {name} is a {type(tensor).__name__}, not a tensor")
    if shape is not None and tensor.shape != shape:
        raise CheckpointError(
            f"{where}: {name} has the shape {list(tensor.shape)}; its configuration asks for "
            f"{list(shape)}"
        )
    if tensor.dtype not in _FLOATS:
        raise CheckpointError(
            f"{where}: {name} holds {str(tensor.dtype).removeprefix('torch.')}; expected float32, "
            "bfloat16, float16 or float64 (quantized models cannot be continued)"
        )
    if tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise CheckpointError(f"{where}: {name} is not a dense tensor in memory")
    if tensor.numel() * tensor.element_size() > tensor.untyped_storage().nbytes():
        raise CheckpointError(f"{where}: {name} claims more numbers than the file holds")
    if not torch.isfinite(tensor).all():
        raise CheckpointError(
            f"{where}: {name} holds NaN or infinity; training had diverged: use an earlier "
            "checkpoint"
        )
    return tensor


def _some(names: list[str], most: int = 4) -> str:
    shown = ", ".join(names[:most])
    return shown if len(names) <= most else f"{shown} and {len(names) - most} more"
