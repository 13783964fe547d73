"""FlexBERT: the published ModernBERT training checkpoints, as Composer wrote them.

One file holds everything: weights, optimizer moments by parameter name, the model's configuration
and the tokenizer (under `integrations.huggingface`).
"""

import json
from pathlib import Path
from typing import Any

from tessera.checkpoints.checkpoint import Checkpoint, CheckpointError, check_weights
from tessera.checkpoints.formats.composer import optimizer_state, progress_of
from tessera.checkpoints.formats.huggingface_config import build_config
from tessera.files import JsonObject
from tessera.model.config import ModelConfig
from tessera.tokenizer import TOKENIZER_FILES

_FIXED: dict[str, tuple[Any, ...]] = {
    "attention_layer": ("rope",),
    "bert_layer": ("prenorm",),
    "embedding_layer": ("sans_pos",),
    "mlp_layer": ("glu",),
    "normalization": ("layernorm",),
    "initial_attention_layer": (None, "rope"),
    "initial_bert_layer": (None, "prenorm"),
    "initial_mlp_layer": (None, "glu"),
    "embed_norm": (True,),
    "final_norm": (True,),
    "skip_first_prenorm": (True,),
    "attn_qkv_bias": (False,),
    "attn_out_bias": (False,),
    "mlp_in_bias": (False,),
    "mlp_out_bias": (False,),
    "head_pred_bias": (False,),
    "head_pred_norm": (True,),
    "decoder_bias": (True,),
    "hidden_act": ("gelu",),
    "head_pred_act": ("gelu",),
    "rotary_emb_interleaved": (False,),
    "rotary_emb_scale_base": (None,),
    "pad_logits": (False,),
}
"""Options of FlexBERT with the values that make it ModernBERT. Absent ones have these."""

_UNSUPPORTED_DROPOUT = (
    *("attention_probs_dropout_prob", "embed_dropout_prob", "mlp_dropout_prob"),
    "head_pred_dropout",
)


def rename(name: str) -> str:
    """Hugging Face's name of a FlexBERT parameter, with or without Composer's `model.` before it.

    `model.bert.encoder.layers.3.mlp.Wi.weight` becomes `model.layers.3.mlp.Wi.weight`.
    """
    name = name.removeprefix("model.")
    if name.startswith("bert."):
        name = "model." + name.removeprefix("bert.").removeprefix("encoder.")
    return name


def is_flexbert(state: JsonObject) -> bool:
    """Whether a Composer checkpoint's `state` is of a FlexBERT model."""
    names = state.get("model")
    return isinstance(names, dict) and any(
        isinstance(name, str) and rename(name) != name.removeprefix("model.") for name in names
    )


def read_state(
    path: Path, state: JsonObject, model_config: ModelConfig | None = None
) -> Checkpoint:
    """Read the `state` of a FlexBERT checkpoint.

    Args:
        path: the file, for messages.
        state: what its zip holds under `state`.
        model_config: the model, for a file without a configuration of its own.

    Raises:
        CheckpointError: it is a variant of FlexBERT that is not ModernBERT, or is damaged.
    """
    hub = _dict(_dict(state.get("integrations")).get("huggingface"))
    content = _dict(_dict(_dict(hub.get("model")).get("config")).get("content"))
    if content:
        config = read_config(path, content)
    elif model_config is not None:
        config = model_config
    else:
        raise CheckpointError(
            f"{path}: holds weights but no configuration of their model; give the YAML of the "
            "model (--model)"
        )
    weights = check_weights(path, config, {rename(k): v for k, v in state["model"].items()})
    name, moments, groups = optimizer_state(path, state, weights, rename)
    return Checkpoint(
        path=path,
        kind="flexbert",
        model_config=config,
        weights=weights,
        max_seq_len=_trained_length(config) if content else None,
        tokenizer_files=_tokenizer_files(_dict(hub.get("tokenizer"))),
        optimizer_name=name,
        optimizer=moments,
        hyperparameters=groups,
        progress=progress_of(state, groups),
    )


def read_config(where: object, content: JsonObject) -> ModelConfig:
    """Our configuration of the FlexBERT configuration that a checkpoint embeds.

    Raises:
        CheckpointError: naming an option with a value that ModernBERT does not have.
    """
    for key, allowed in _FIXED.items():
        value = content.get(key, allowed[0])
        if value not in allowed or type(value) not in {type(v) for v in allowed}:
            raise CheckpointError(
                f"{where}: FlexBERT's {key} is {value!r}; only {allowed[-1]!r} can be read"
            )
    norm = _dict(content.get("norm_kwargs"))
    if norm.get("bias", False):
        raise CheckpointError(f"{where}: FlexBERT's norm_kwargs.bias is true; only false is read")
    dropping = [key for key in _UNSUPPORTED_DROPOUT if content.get(key)]
    if dropping:
        raise CheckpointError(
            f"{where}: FlexBERT's {', '.join(dropping)} is not 0; only attn_out_dropout_prob "
            "can drop anything in this model"
        )
    for key in ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers"):
        if key not in content:
            raise CheckpointError(f"{where}: FlexBERT's {key} is missing")
    window, every = content.get("sliding_window", -1), content.get("global_attn_every_n_layers", -1)
    if window == -1:
        window, every = ModelConfig().local_attention, 1
    global_theta = content.get("rotary_emb_base", 10_000.0)
    local_theta = content.get("local_attn_rotary_emb_base", -1)
    config = build_config(
        where,
        {
            "vocab_size": content["vocab_size"],
            "hidden_size": content["hidden_size"],
            "intermediate_size": content["intermediate_size"],
            "num_hidden_layers": content["num_hidden_layers"],
            "num_attention_heads": content.get("num_attention_heads"),
            "local_attention": window,
            "global_attn_every_n_layers": every,
            "global_rope_theta": global_theta,
            "local_rope_theta": global_theta if local_theta in (-1, None) else local_theta,
            "norm_eps": norm.get("eps", 1e-5),
            "attention_output_dropout": content.get("attn_out_dropout_prob", 0.0),
            "initializer_range": content.get("init_std", 0.02),
            "initializer_cutoff_factor": content.get("init_cutoff_factor", 2.0),
            "decoder_bias_init": "uniform",
        },
    )
    for key in ("rotary_emb_dim", "local_attn_rotary_emb_dim"):
        if content.get(key) not in (None, config.head_size):
            raise CheckpointError(
                f"{where}: FlexBERT's {key} is {content[key]}; only whole heads "
                f"({config.head_size}) can be turned"
            )
    return config


def _tokenizer_files(stored: JsonObject) -> dict[str, str] | None:
    files = {}
    for name in TOKENIZER_FILES:
        content = _dict(stored.get(name)).get("content")
        if isinstance(content, dict):
            files[name] = json.dumps(content, ensure_ascii=False)
    return files or None


def _trained_length(config: ModelConfig) -> int:
    """Segment length of the published phase: the file does not say, but its rotary theta does."""
    return 8192 if config.global_rope_theta > 10_000 else 1024


def _dict(value: object) -> JsonObject:
    return value if isinstance(value, dict) else {}
