"""A FlexBERT training checkpoint, laid out as Composer 0.24 writes it, and FlexBERT's forward pass.

Written from the published description of both: plain dense attention in float64, one document at a
time, by FlexBERT's own parameter names.
"""

import datetime
import math
from collections import OrderedDict

import numpy as np
import tokenizers
import torch

SPECIAL = ["[UNK]", "[CLS]", "[SEP]", "[PAD]", "[MASK]"]
ROLES = {"unk": "[UNK]", "cls": "[CLS]", "sep": "[SEP]", "pad": "[PAD]", "mask": "[MASK]"}


def config_content(**changes):
    """The configuration that a FlexBERT checkpoint embeds; theta -1 means the global one."""
    content = {
        "model_type": "bert",
        "vocab_size": 160,
        "hidden_size": 48,
        "intermediate_size": 40,
        "num_hidden_layers": 4,
        "num_attention_heads": 3,
        "attention_layer": "rope",
        "attention_probs_dropout_prob": 0.0,
        "attn_out_bias": False,
        "attn_out_dropout_prob": 0.1,
        "attn_qkv_bias": False,
        "bert_layer": "prenorm",
        "decoder_bias": True,
        "embed_dropout_prob": 0.0,
        "embed_norm": True,
        "embedding_layer": "sans_pos",
        "encoder_layer": "base",
        "final_norm": True,
        "global_attn_every_n_layers": 3,
        "head_class_act": "silu",
        "head_pred_act": "gelu",
        "head_pred_bias": False,
        "head_pred_dropout": 0.0,
        "head_pred_norm": True,
        "hidden_act": "gelu",
        "hidden_dropout_prob": 0.1,
        "init_cutoff_factor": 2.0,
        "init_method": "full_megatron",
        "init_std": 0.02,
        "initial_attention_layer": None,
        "initial_bert_layer": None,
        "initial_mlp_layer": None,
        "layer_norm_eps": 1e-12,
        "local_attn_rotary_emb_base": -1,
        "local_attn_rotary_emb_dim": None,
        "max_position_embeddings": 512,
        "mlp_dropout_prob": 0.0,
        "mlp_in_bias": False,
        "mlp_layer": "glu",
        "mlp_out_bias": False,
        "norm_kwargs": {"bias": False, "eps": 1e-05},
        "normalization": "layernorm",
        "pad_logits": False,
        "pad_token_id": 0,
        "rotary_emb_base": 10000.0,
        "rotary_emb_dim": 16,
        "rotary_emb_interleaved": False,
        "rotary_emb_scale_base": None,
        "skip_first_prenorm": True,
        "sliding_window": 16,
        **changes,
    }
    if "rotary_emb_dim" not in changes:
        content["rotary_emb_dim"] = content["hidden_size"] // content["num_attention_heads"]
    return content


def weights(content, seed=0):
    """Random tensors by FlexBERT's names, norms included, so that each is told from the others."""
    generator = torch.Generator().manual_seed(seed)
    d, inner, vocab = (content[k] for k in ("hidden_size", "intermediate_size", "vocab_size"))

    def matrix(rows, columns):
        return torch.randn(rows, columns, generator=generator) / math.sqrt(columns)

    def norm():
        return 1 + 0.2 * torch.randn(d, generator=generator)

    found = OrderedDict()
    found["bert.embeddings.tok_embeddings.weight"] = matrix(vocab, d)
    found["bert.embeddings.norm.weight"] = norm()
    for i in range(content["num_hidden_layers"]):
        layer = f"bert.encoder.layers.{i}."
        if i > 0:
            found[layer + "attn_norm.weight"] = norm()
        found[layer + "attn.Wqkv.weight"] = matrix(3 * d, d)
        found[layer + "attn.Wo.weight"] = matrix(d, d)
        found[layer + "mlp_norm.weight"] = norm()
        found[layer + "mlp.Wi.weight"] = matrix(2 * inner, d)
        found[layer + "mlp.Wo.weight"] = matrix(d, inner)
    found["bert.final_norm.weight"] = norm()
    found["head.dense.weight"] = matrix(d, d)
    found["head.norm.weight"] = norm()
    found["decoder.weight"] = found["bert.embeddings.tok_embeddings.weight"]
    found["decoder.bias"] = 0.1 * torch.randn(vocab, generator=generator)
    return found


def tokenizer(vocab_size=160):
    """A word-level tokenizer with BERT's special tokens at ids of its own."""
    words = {word: i for i, word in enumerate(["the", *SPECIAL])}
    words |= {f"w{i}": i for i in range(len(words), vocab_size)}
    made = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="[UNK]"))
    made.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    made.add_special_tokens([tokenizers.AddedToken(token, special=True) for token in SPECIAL])
    made.post_processor = tokenizers.processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        special_tokens=[("[CLS]", words["[CLS]"]), ("[SEP]", words["[SEP]"])],
    )
    return made


def tokenizer_entries(vocab_size=160):
    """The tokenizer as Composer stores it: each file as parsed JSON."""
    import json

    named = {f"{role}_token": token for role, token in ROLES.items()}
    contents = {
        "tokenizer.json": json.loads(tokenizer(vocab_size).to_str()),
        "tokenizer_config.json": {"tokenizer_class": "PreTrainedTokenizerFast", **named},
        "special_tokens_map.json": {role: {"content": token} for role, token in named.items()},
    }
    return {name: {"file_extension": ".json", "content": value} for name, value in contents.items()}


def optimizer_entry(named, seed=1, steps=59):
    """State of optimi's StableAdamW, by name, in two groups: norms and biases, and the rest."""
    generator = torch.Generator().manual_seed(seed)
    groups = [[], []]
    state = {}
    for name, tensor in named.items():
        if name == "decoder.weight":
            continue
        groups[tensor.dim() > 1].append(f"model.{name}")
        state[f"model.{name}"] = {
            "exp_avg": 1e-3 * torch.randn(tensor.shape, generator=generator),
            "exp_avg_sq": 1e-6 * torch.rand(tensor.shape, generator=generator),
            "eps_sq": torch.tensor(1e-12),
            "kahan_comp": None,
        }
    common = {
        "lr": 3e-4,
        "beta1": 0.9,
        "beta2": 0.98,
        "eps": 1e-6,
        "decouple_lr": True,
        "max_lr": 8e-4,
        "kahan_sum": None,
        "foreach": True,
        "gradient_release": False,
        "setup": True,
        "initial_lr": 8e-4,
    }
    entry = [
        {
            "weight_decay": decay,
            **common,
            "step": torch.tensor(steps, dtype=torch.int32),
            "params": params,
        }
        for decay, params in zip((0.0, 1e-5), groups, strict=True)
    ]
    return {"StableAdamW": {"state": state, "param_groups": entry}}


def checkpoint(content=None, named=None, **state_changes):
    """Everything that Composer saves of a FlexBERT run."""
    content = content or config_content()
    named = named if named is not None else weights(content)
    wall = datetime.timedelta(seconds=14, microseconds=671196)
    stamp = {
        **{"iteration": 0, "epoch": 0, "batch": 59, "sample": 3683, "token": 120_392},
        **{"batch_in_epoch": 59, "sample_in_epoch": 3683, "token_in_epoch": 120_392},
        **{"total_wct": wall, "iteration_wct": wall, "epoch_wct": wall, "batch_wct": wall},
    }
    state = {
        "model": OrderedDict((f"model.{name}", tensor) for name, tensor in named.items()),
        "optimizers": optimizer_entry(named),
        "schedulers": {"LambdaLR": {"last_epoch": 59, "_last_lr": [3e-4, 3e-4]}},
        "algorithms": [],
        "callbacks": {"SpeedMonitor": {"total_eval_wct": 0.0}},
        "scaler": {"ClosureGradScaler": {}},
        "timestamp": {"Timestamp": stamp},
        "rank_zero_seed": 17,
        "run_name": "pretrain",
        "dataset_state": {"train": None},
        "integrations": {
            "huggingface": {
                "model": {
                    "config": {
                        "file_extension": ".json",
                        "content": content,
                        "class": "src.bert_layers.model.FlexBertForMaskedLM",
                    }
                },
                "tokenizer": tokenizer_entries(content["vocab_size"]),
            }
        },
        "metadata": {"torch_version": torch.torch_version.TorchVersion("2.4.0"), "world_size": 1},
        **state_changes,
    }
    numpy_state = ("MT19937", np.arange(624, dtype=np.uint32), 624, 0, 0.0)
    rng = {"python": (3, tuple(range(625)), None), "numpy": numpy_state, "torch": torch.arange(8)}
    return {"state": state, "rng": [rng]}


def save(path, **kwargs):
    """Write such a checkpoint; returns its path."""
    torch.save(checkpoint(**kwargs), path)
    return path


def logits(content, named, document):
    """(length, vocabulary) float64: FlexBERT's prediction at every token of one document."""
    w = {name: tensor.double() for name, tensor in named.items()}
    heads = content["num_attention_heads"]
    size = content["hidden_size"] // heads
    eps = content["norm_kwargs"]["eps"]
    position = torch.arange(len(document))
    distance = (position[:, None] - position[None, :]).abs()

    def norm(x, name):
        centred = x - x.mean(-1, keepdim=True)
        return centred / (centred.square().mean(-1, keepdim=True) + eps).sqrt() * w[name]

    def gelu(x):
        return x * 0.5 * (1 + torch.erf(x / math.sqrt(2)))

    def turned(x, theta):  # (length, size)
        out = torch.empty_like(x)
        for pair in range(size // 2):
            angle = position.double() * theta ** (-2 * pair / size)
            a, b = x[:, pair], x[:, pair + size // 2]
            out[:, pair] = a * angle.cos() - b * angle.sin()
            out[:, pair + size // 2] = b * angle.cos() + a * angle.sin()
        return out

    x = norm(w["bert.embeddings.tok_embeddings.weight"][document], "bert.embeddings.norm.weight")
    for i in range(content["num_hidden_layers"]):
        layer = f"bert.encoder.layers.{i}."
        is_global = i % content["global_attn_every_n_layers"] == 0
        theta = content["rotary_emb_base"]
        if not is_global and content["local_attn_rotary_emb_base"] != -1:
            theta = content["local_attn_rotary_emb_base"]
        h = norm(x, layer + "attn_norm.weight") if i else x
        qkv = h @ w[layer + "attn.Wqkv.weight"].T
        mixed = []
        for head in range(heads):
            q, k, v = (qkv[:, part * heads * size + head * size :][:, :size] for part in range(3))
            score = turned(q, theta) @ turned(k, theta).T / math.sqrt(size)
            if not is_global:
                score = score.masked_fill(distance > content["sliding_window"] // 2, -torch.inf)
            mixed.append(score.softmax(-1) @ v)
        x = x + torch.cat(mixed, dim=-1) @ w[layer + "attn.Wo.weight"].T
        h = norm(x, layer + "mlp_norm.weight") @ w[layer + "mlp.Wi.weight"].T
        gated, linear = h.chunk(2, dim=-1)
        x = x + (gelu(gated) * linear) @ w[layer + "mlp.Wo.weight"].T
    x = norm(x, "bert.final_norm.weight")
    x = norm(gelu(x @ w["head.dense.weight"].T), "head.norm.weight")
    return x @ w["bert.embeddings.tok_embeddings.weight"].T + w["decoder.bias"]
