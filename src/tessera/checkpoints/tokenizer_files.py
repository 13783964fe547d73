"""A tokenizer as the files it is stored in: which tokens are special, and what an export writes."""

import json
from typing import Any

from tokenizers import Tokenizer

from tessera.checkpoints.checkpoint import CheckpointError
from tessera.checkpoints.safe_files import parse_json

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
NEEDED_ROLES = ("cls_token", "sep_token", "pad_token", "mask_token")
ROLES = (*NEEDED_ROLES, "unk_token", "bos_token", "eos_token")

_KEPT_SETTINGS = ("padding_side", "truncation_side", "added_tokens_decoder")


def special_tokens(files: dict[str, str]) -> dict[str, str]:
    """The text of each special token, by role (`cls_token`, `mask_token`...).

    Raises:
        CheckpointError: a role that the model needs is not filled.
    """
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        settings = parse_json(name, files.get(name, "{}"))
        for role in ROLES:
            token = settings.get(role)
            token = token.get("content") if isinstance(token, dict) else token
            if isinstance(token, str):
                found[role] = token
    missing = [role for role in NEEDED_ROLES if role not in found]
    if missing:
        raise CheckpointError(
            f"the tokenizer names no {', '.join(missing)}; add to its tokenizer_config.json which "
            "tokens these are"
        )
    return found


def special_ids(files: dict[str, str]) -> dict[str, int]:
    """The id of each special token, by role without `_token` (`cls`, `mask`...).

    Raises:
        CheckpointError: the tokenizer cannot be read, or lacks one of its own special tokens.
    """
    if "tokenizer.json" not in files:
        raise CheckpointError("the tokenizer has no tokenizer.json; save it as a fast tokenizer")
    try:
        tokenizer = Tokenizer.from_str(files["tokenizer.json"])
    except Exception as error:  # the tokenizers library raises bare Exception
        raise CheckpointError(f"tokenizer.json: not a tokenizer ({error})") from error
    ids: dict[str, int] = {}
    for role, token in special_tokens(files).items():
        number = tokenizer.token_to_id(token)
        if number is None:
            raise CheckpointError(f"tokenizer.json: has no token '{token}', named as {role}")
        ids[role.removesuffix("_token")] = number
    return ids


def vocabulary_size(files: dict[str, str]) -> int:
    """One more than the largest token id."""
    return max(Tokenizer.from_str(files["tokenizer.json"]).get_vocab().values()) + 1


def files_for_transformers(files: dict[str, str], max_seq_len: int) -> dict[str, str]:
    """The tokenizer's files such that transformers 4 and 5 both load them, and alike.

    `tokenizer.json`, which decides every token, stays as it is; the settings beside it are reduced
    to what both versions understand.
    """
    given = parse_json("tokenizer_config.json", files.get("tokenizer_config.json", "{}"))
    tokens = special_tokens(files)
    settings: dict[str, Any] = {
        # Version 5 writes a name for this class that version 4 does not know; both know this one.
        "tokenizer_class": "PreTrainedTokenizerFast",
        "model_max_length": max_seq_len,
        "model_input_names": ["input_ids", "attention_mask"],
        "clean_up_tokenization_spaces": False,
        **tokens,
        **{name: given[name] for name in _KEPT_SETTINGS if name in given},
    }
    return {
        "tokenizer.json": files["tokenizer.json"],
        "tokenizer_config.json": as_json(settings),
        "special_tokens_map.json": as_json(tokens),
    }


def as_json(value: dict[str, Any]) -> str:
    """A JSON file's text: indented, keys in order, ending with a newline."""
    return json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
