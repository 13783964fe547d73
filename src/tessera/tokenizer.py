"""The tokenizer as pretraining needs it: text to ids, the special ids by name, a fingerprint.

Uses `tokenizers` alone; transformers is imported only for a tokenizer that does not say by itself
which token is which, or has no `tokenizer.json`.
"""

import hashlib
import json
import urllib.error
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from http.client import HTTPException
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

ROLES = ("cls_token", "sep_token", "pad_token", "mask_token")
_HUB_PATIENCE_SECONDS = 5.0
_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every token id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A loaded tokenizer."""

    name: str
    """The folder or Hugging Face id it was loaded from."""
    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    special_ids: np.ndarray
    """(n,) int64, sorted: ids that are never masked, nor drawn as a replacement."""
    size: int
    """The largest token id plus one."""
    fingerprint: str
    """Changes with anything that changes the ids of a text; the same for every library version."""
    files: dict[str, str]
    """The texts of its files by name, for checkpoints and export."""
    backend: tokenizers.Tokenizer

    def encode_batch(self, texts: Sequence[str]) -> list[np.ndarray]:
        """Token ids of each text, without special tokens: '[MASK]' in a text is six characters.

        Returns:
            Arrays of uint16 or uint32, whichever holds the vocabulary.
        """
        dtype = token_dtype(self.size)
        encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    @cached_property
    def word_starts(self) -> np.ndarray | None:
        """(size,) bool: whether a token begins a word; None if the tokenizer does not show it.

        Byte-level and Metaspace tokens begin one with their space marker, or with a character that
        no word has inside (so that punctuation stands alone); WordPiece's if without its prefix.
        """
        return _word_starts(self.backend, self.size)


def load_tokenizer(path_or_id: str | Path) -> Tokenizer:
    """Load a Hugging Face tokenizer from a folder, or by its id on the Hub.

    Raises:
        ValueError: there is none, or it lacks one of the four special tokens we need.
    """
    name = str(path_or_id)
    files = _read_files(name)
    try:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
        parsed = {file: json.loads(text) for file, text in files.items()}
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"tokenizer {name} is damaged: {error}; save or train it again") from error
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    tokens = _special_tokens(parsed, name)
    found = {role: backend.token_to_id(token) for role, token in tokens.items()}
    ids = {role: number for role, number in found.items() if number is not None}
    missing = [role for role in ROLES if role not in ids]
    if missing:
        raise ValueError(
            f"tokenizer {name} has no {', '.join(missing)}, which masked-language modelling needs; "
            "add them with `add_special_tokens` of transformers and save it, or train one with "
            "data_prep/train_tokenizer.py"
        )
    added = backend.get_added_tokens_decoder()
    special = {number for number, token in added.items() if token.special} | set(ids.values())
    return Tokenizer(
        name=name,
        cls_id=ids["cls_token"],
        sep_id=ids["sep_token"],
        pad_id=ids["pad_token"],
        mask_id=ids["mask_token"],
        special_ids=np.array(sorted(special), np.int64),
        size=max(backend.get_vocab(with_added_tokens=True).values()) + 1,
        fingerprint=_fingerprint(backend, ids),
        files=files,
        backend=backend,
    )


def _read_files(name: str) -> dict[str, str]:
    folder = Path(name)
    if not folder.is_dir():
        names_a_place = "/" in name and folder.parent.is_dir()  # an id has no folder before it
        if folder.exists() or name.startswith((".", "/")) or name.count("/") > 1 or names_a_place:
            raise ValueError(f"tokenizer {name}: no such folder; train one, or correct the path")
        return _files_from_transformers(name)
    files = {file: (folder / file).read_text() for file in _FILES if (folder / file).is_file()}
    if not any(folder.iterdir()):
        raise ValueError(f"tokenizer {name}: the folder is empty; train one, or correct the path")
    return files if "tokenizer.json" in files else _files_from_transformers(name)


def _files_from_transformers(name: str) -> dict[str, str]:
    """What transformers would save for a tokenizer that is on the Hub or has no tokenizer.json."""
    import tempfile

    import transformers

    # Where the Hub is out of reach, only its local cache is looked at: transformers would try for
    # a minute, file by file.
    silent = None if Path(name).is_dir() else _hub_silence()
    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            name, use_fast=True, local_files_only=silent is not None
        )
    except Exception as error:  # transformers raises whatever the Hub or a parser raised
        if silent is not None:
            raise ValueError(
                f"tokenizer {name} is no folder here, and {silent}; correct the path, or download "
                f"it where there is a network (hf download {name} --local-dir FOLDER), and name "
                "that folder"
            ) from error
        raise ValueError(f"tokenizer {name} cannot be loaded: {error}") from error
    with tempfile.TemporaryDirectory() as folder:
        loaded.save_pretrained(folder)
        files = {f: (Path(folder) / f).read_text() for f in _FILES if (Path(folder) / f).is_file()}
    if "tokenizer.json" not in files:
        raise ValueError(f"tokenizer {name} has no fast version (tokenizer.json); convert it first")
    # transformers names every role in memory even where the files leave it to a class's default
    named = {role: str(token) for role in ROLES if (token := getattr(loaded, role, None))}
    files["special_tokens_map.json"] = json.dumps(named, indent=2)
    return files


def _hub_silence() -> str | None:
    """Why nothing can be had from the Hugging Face Hub, asked once; None if it answers."""
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "the Hugging Face Hub is not asked (HF_HUB_OFFLINE)"
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_HUB_PATIENCE_SECONDS).close()
    except urllib.error.HTTPError:
        return None  # an answer, if not a friendly one: transformers will say more
    except (OSError, HTTPException) as error:
        reason = getattr(error, "reason", error)
        return f"the Hugging Face Hub did not answer ({constants.ENDPOINT}: {reason})"
    return None


def _special_tokens(files: dict[str, Any], name: str) -> dict[str, str]:
    """Which token plays each role: from the files, else by the defaults of transformers' class."""
    tokens: dict[str, str] = {}
    for file in ("special_tokens_map.json", "tokenizer_config.json"):
        for role, token in files.get(file, {}).items():
            if role in ROLES and token:
                tokens[role] = token["content"] if isinstance(token, dict) else token
    if all(role in tokens for role in ROLES):
        return tokens
    named = files.get("tokenizer_config.json", {}).get("tokenizer_class")
    if named in (None, "PreTrainedTokenizerFast", "TokenizersBackend"):
        return tokens  # these have no defaults
    rest = json.loads(_files_from_transformers(name)["special_tokens_map.json"])
    return rest | tokens


def _fingerprint(backend: tokenizers.Tokenizer, ids: dict[str, int]) -> str:
    """Hash what decides the ids of a text, in a form that all versions of `tokenizers` agree on."""
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if "merges" in model:  # older versions join the two halves by a space
        model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    content = {key: parts.get(key) for key in ("model", "normalizer", "pre_tokenizer")}
    content["added_tokens"] = sorted(parts["added_tokens"], key=lambda token: token["id"])
    content["roles"] = {role: ids[role] for role in ROLES}
    text = json.dumps(_without_defaults(content), sort_keys=True, ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def _without_defaults(value: Any) -> Any:
    """Drop absent and false entries, which some versions write and others leave out."""
    if isinstance(value, dict):
        kept = {key: _without_defaults(item) for key, item in value.items()}
        return {key: item for key, item in kept.items() if item is not None and item is not False}
    if isinstance(value, list):
        return [_without_defaults(item) for item in value]
    return value


def _word_starts(backend: tokenizers.Tokenizer, size: int) -> np.ndarray | None:
    model = json.loads(backend.to_str())["model"]
    prefix = model.get("continuing_subword_prefix")
    vocabulary = backend.get_vocab(with_added_tokens=True)
    tokens = [""] * size
    for token, number in vocabulary.items():
        tokens[number] = token
    if model["type"] == "WordPiece" and prefix:
        return np.array([not token.startswith(prefix) for token in tokens])
    if not any(token[:1] in ("\u0120", "\u2581") for token in tokens):
        return None
    # U+0120 is a byte-level space, U+2581 Metaspace's. A byte-level continuation of a letter beyond
    # ASCII is shown as some other letter or sign above U+007F, so only ASCII signs can be told.
    return np.array(
        [
            token[:1] in ("\u0120", "\u010a", "\u0109", "\u2581")
            or (token[:1].isascii() and not token[:1].isalnum() and token[:1] != "_")
            for token in tokens
        ]
    )
