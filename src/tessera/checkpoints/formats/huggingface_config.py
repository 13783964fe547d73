"""The config.json of transformers' ModernBERT, in both spellings: read, and written.

Version 5 writes `rope_parameters` and `layer_types` where version 4 had `global_rope_theta`,
`local_rope_theta` and `global_attn_every_n_layers`. Both are read, and both are written, so that a
folder written under either loads in the other.
"""

import logging
import math
from typing import Any

from tessera.checkpoints.checkpoint import CheckpointError
from tessera.files import JsonObject
from tessera.model.config import ModelConfig

_REQUIRED = (
    *("vocab_size", "hidden_size", "intermediate_size"),
    *("num_hidden_layers", "num_attention_heads"),
)
_FIXED = {
    "attention_bias": False,
    "mlp_bias": False,
    "norm_bias": False,
    "classifier_bias": False,
    "decoder_bias": True,
    "tie_word_embeddings": True,
    "hidden_activation": "gelu",
    "classifier_activation": "gelu",
}
"""What this model always is; transformers' own defaults are the same."""


_DROPOUTS = ("attention_dropout", "embedding_dropout", "mlp_dropout")

_log = logging.getLogger(__name__)

LARGEST_SIZE = 2**28
"""No size in a configuration is larger; the product of any two still counts in 64 bits."""


def read_config(where: object, config: JsonObject) -> ModelConfig:
    """Our configuration of a config.json, in the spelling of transformers 4 or 5.

    Raises:
        CheckpointError: it is of another architecture, or of a variant this model does not have;
            the message names the key.
    """
    if config.get("model_type") != "modernbert":
        raise CheckpointError(
            f"{where}: model_type is '{config.get('model_type')}'; only modernbert can be read"
        )
    for key in _REQUIRED:
        if key not in config:
            raise CheckpointError(f"{where}: {key} is missing")
    for key, only in _FIXED.items():
        if config.get(key, only) != only:
            raise CheckpointError(
                f"{where}: {key} is {config[key]!r}; this model only has {only!r}"
            )
    dropping = [key for key in _DROPOUTS if config.get(key)]
    if dropping:
        _log.warning("%s: %s is ignored: this model does not drop there", where, dropping)
    global_theta, local_theta = _thetas(where, config)
    return build_config(
        where,
        {
            **{key: config[key] for key in _REQUIRED},
            "local_attention": config.get("local_attention", 128),
            "global_attn_every_n_layers": _global_every(where, config),
            "global_rope_theta": global_theta,
            "local_rope_theta": local_theta,
            "norm_eps": config.get("norm_eps", 1e-5),
            "initializer_range": config.get("initializer_range", 0.02),
            "initializer_cutoff_factor": config.get("initializer_cutoff_factor", 2.0),
        },
    )


def build_config(where: object, fields: JsonObject) -> ModelConfig:
    """A ModelConfig of numbers that a file gave, each checked to be what it should be.

    Raises:
        CheckpointError: naming the file and the field.
    """
    defaults = ModelConfig()
    checked: JsonObject = {}
    for key, value in fields.items():
        wanted = type(getattr(defaults, key))
        if wanted is float and isinstance(value, int) and not isinstance(value, bool):
            value = float(value)
        if type(value) is not wanted or (wanted is float and not math.isfinite(value)):
            raise CheckpointError(
                f"{where}: {key} should be {'a number' if wanted is float else wanted.__name__}; "
                f"it is {str(value)[:40]!r}"
            )
        if wanted is int and value > LARGEST_SIZE:
            raise CheckpointError(f"{where}: {key} claims {value}, more than any model has")
        checked[key] = value
    try:
        return ModelConfig(**checked)
    except ValueError as error:
        raise CheckpointError(f"{where}: {'; '.join(str(error).splitlines())}") from error


def _thetas(where: object, config: JsonObject) -> tuple[Any, Any]:
    """Bases of the rotary wavelengths, of global and of local layers."""
    global_theta = config.get("global_rope_theta", 160_000.0)
    local_theta = config.get("local_rope_theta", 10_000.0)
    if local_theta is None:
        local_theta = global_theta
    rope = config.get("rope_parameters") or {}
    if not isinstance(rope, dict) or config.get("rope_scaling"):
        raise CheckpointError(
            f"{where}: rope_scaling is not supported: only plain rotary positions"
        )
    if set(rope) - {"full_attention", "sliding_attention"}:
        raise CheckpointError(
            f"{where}: rope_parameters should name full_attention and sliding_attention, and "
            f"nothing else; it has {', '.join(sorted(map(str, rope)))}"
        )
    thetas = []
    for kind, key, theta in (
        ("full_attention", "global_rope_theta", global_theta),
        ("sliding_attention", "local_rope_theta", local_theta),
    ):
        settings = rope.get(kind) or {}
        if not isinstance(settings, dict) or settings.get("rope_type", "default") != "default":
            raise CheckpointError(f"{where}: rope_parameters.{kind} is no plain rotary position")
        newer = settings.get("rope_theta", theta)
        if config.get(key) is not None and newer != theta:
            raise CheckpointError(
                f"{where}: {key} is {theta}, but rope_parameters.{kind}.rope_theta {newer}; "
                "transformers 4 would use the one, version 5 the other. Make them equal"
            )
        thetas.append(newer)
    return thetas[0], thetas[1]


def _global_every(where: object, config: JsonObject) -> Any:
    """Every how many layers attention is global, from the number or from the list of layers."""
    every = config.get("global_attn_every_n_layers", 3)
    kinds = config.get("layer_types")
    if kinds is None:
        return every
    if not isinstance(kinds, list) or len(kinds) != config["num_hidden_layers"]:
        raise CheckpointError(f"{where}: layer_types does not name each layer's kind of attention")
    if "global_attn_every_n_layers" not in config:
        seconds = [i for i, kind in enumerate(kinds) if i and kind == "full_attention"]
        every = seconds[0] if seconds else max(len(kinds), 1)
    if kinds != layer_types(len(kinds), every):
        raise CheckpointError(
            f"{where}: layer_types is not a global layer followed by a fixed number of local ones"
            + (
                f", as global_attn_every_n_layers {every} says"
                if "global_attn_every_n_layers" in config
                else ""
            )
        )
    return every


def layer_types(layers: int, every: object) -> list[str] | None:
    """Each layer's kind of attention, in transformers' words; None if `every` is no such number."""
    if not isinstance(every, int) or every < 1:
        return None
    return ["sliding_attention" if i % every else "full_attention" for i in range(layers)]


def write_config(
    config: ModelConfig, *, ids: dict[str, int], max_seq_len: int, transformers_version: str
) -> JsonObject:
    """A config.json that transformers 4 and 5 read alike.

    Args:
        config: the model.
        ids: the tokenizer's special ids: `cls`, `sep`, `pad`, `mask`, and `bos` and `eos` if any.
        max_seq_len: longest segment the model was trained on.
        transformers_version: of the transformers that verifies the export.
    """
    return {
        **_FIXED,
        "architectures": ["ModernBertForMaskedLM"],
        "model_type": "modernbert",
        "transformers_version": transformers_version,
        "dtype": "float32",
        **{key: getattr(config, key) for key in _REQUIRED},
        "local_attention": config.local_attention,
        "norm_eps": config.norm_eps,
        "initializer_range": config.initializer_range,
        "initializer_cutoff_factor": config.initializer_cutoff_factor,
        "max_position_embeddings": max_seq_len,
        # transformers 4
        "global_attn_every_n_layers": config.global_attn_every_n_layers,
        "global_rope_theta": config.global_rope_theta,
        "local_rope_theta": config.local_rope_theta,
        # transformers 5
        "layer_types": layer_types(config.num_hidden_layers, config.global_attn_every_n_layers),
        "rope_parameters": {
            "full_attention": {"rope_type": "default", "rope_theta": config.global_rope_theta},
            "sliding_attention": {"rope_type": "default", "rope_theta": config.local_rope_theta},
        },
        # transformers has no dropout after attention's output projection alone
        "attention_dropout": 0.0,
        "embedding_dropout": 0.0,
        "mlp_dropout": 0.0,
        "classifier_dropout": 0.0,
        "classifier_pooling": "mean",
        "sparse_prediction": False,
        "cls_token_id": ids["cls"],
        "sep_token_id": ids["sep"],
        "pad_token_id": ids["pad"],
        "bos_token_id": ids.get("bos", ids["cls"]),
        "eos_token_id": ids.get("eos", ids["sep"]),
    }
