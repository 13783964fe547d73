"""Reading a tokenizer: from a folder, from the Hub by its id, or from the files of a checkpoint.

Uses `tokenizers` alone; transformers is imported only for a tokenizer that does not say by itself
which token is which, or has no `tokenizer.json`.
"""

import hashlib
import json
import logging
import multiprocessing
import tempfile
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

from tessera import fetch
from tessera.files import JsonObject, as_json
from tessera.paths import is_remote
from tessera.tokenizer.coverage import Coverage, cure, probe
from tessera.tokenizer.template import template_difference, with_template
from tessera.tokenizer.words import word_starts

log = logging.getLogger(__name__)

TOKENIZER_FILES = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json")
NEEDED_ROLES = ("cls_token", "sep_token", "pad_token", "mask_token")
ROLES = (*NEEDED_ROLES, "unk_token", "bos_token", "eos_token")
_KEPT_SETTINGS = ("padding_side", "truncation_side", "added_tokens_decoder")
_OLDER_FILES = (
    *("tokenizer_config.json", "vocab.txt", "vocab.json", "spiece.model", "tokenizer.model"),
    "sentencepiece.bpe.model",
)
"""Of tokenizers that transformers can make a tokenizer.json of."""
_HUB_PATIENCE_SECONDS = 5.0
_MOST_UNUSED_IDS = 2**20
"""Some vocabularies leave ids out; one that leaves out more than this, and more than it has, is not
meant so."""
_said: set[str] = set()
"""Doubts that this process has logged."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest of uint16 and uint32 that holds every token id below `vocab_size`."""
    return np.dtype(np.uint16 if vocab_size <= 2**16 else np.uint32)


@dataclass(frozen=True, kw_only=True)
class Tokenizer:
    """A loaded tokenizer, and what pretraining must know of it."""

    name: str
    """The folder or Hugging Face id it was loaded from."""
    cls_id: int
    sep_id: int
    pad_id: int
    mask_id: int
    role_ids: dict[str, int]
    """The id of each special token that it names: `cls`, `sep`, `pad`, `mask`, perhaps `unk`..."""
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

        Raises:
            ValueError: a text has characters that this tokenizer cannot encode; names them.
        """
        dtype = token_dtype(self.size)
        try:
            encodings = self.backend.encode_batch_fast(list(texts), add_special_tokens=False)
        except Exception as error:  # tokenizers raises no narrower one
            raise ValueError(self._why_not(texts, error)) from error
        return [np.array(encoding.ids, dtype) for encoding in encodings]

    def decode(self, ids: Sequence[int] | np.ndarray, *, skip_special_tokens: bool = False) -> str:
        """The text of token ids."""
        return self.backend.decode([int(i) for i in ids], skip_special_tokens=skip_special_tokens)

    @property
    def ordinary_ids(self) -> np.ndarray:
        """Ids that are no special tokens, ascending."""
        return np.setdiff1d(np.arange(self.size), self.special_ids)

    @cached_property
    def word_starts(self) -> np.ndarray | None:
        """(size,) bool: whether a token begins a word; None if the tokenizer does not show it."""
        return word_starts(self.backend, self.size)

    @cached_property
    def coverage(self) -> Coverage:
        """What it cannot encode of a few characters of many scripts."""
        return probe(self.backend, self.role_ids.get("unk"))

    @cached_property
    def template_problem(self) -> str | None:
        """How it frames text otherwise than training does; None if it does not."""
        return template_difference(self.backend, self.cls_id, self.sep_id)

    @property
    def doubts(self) -> list[str]:
        """What one should know before preparing or training with it; each may be meant."""
        found = []
        if lost := self.coverage.problem:
            found.append(f"{self.name} {lost}: {self._cure()}")
        if self.template_problem:
            found.append(
                f"{self.name} {self.template_problem}; an export gets the template of training"
            )
        return found

    def framed_files(self) -> dict[str, str]:
        """Its files, with the template of training in them if its own is another."""
        if self.template_problem is None:
            return self.files
        cls, sep = (
            (str(self.backend.id_to_token(number)), number) for number in (self.cls_id, self.sep_id)
        )
        framed = with_template(self.files["tokenizer.json"], cls, sep)
        return {**self.files, "tokenizer.json": framed}

    def _cure(self) -> str:
        return cure(self.backend, special_tokens(self.files).get("unk_token"))

    def _why_not(self, texts: Sequence[str], error: Exception) -> str:
        """The message for texts that cannot be encoded: which characters of the first of them."""
        for text in texts:
            try:
                self.backend.encode(text, add_special_tokens=False)
            except Exception:  # tokenizers raises no narrower one
                bad = [c for c in dict.fromkeys(text) if self._refuses(c)]
                where = f"{''.join(bad[:12])!r}" if bad else "some of its words"
                return (
                    f"tokenizer {self.name} cannot encode {where} in the text that begins "
                    f"{text[:40]!r} ({error}); {self._cure()}"
                )
        return f"tokenizer {self.name}: {error}"

    def _refuses(self, text: str) -> bool:
        try:
            self.backend.encode(text, add_special_tokens=False)
        except Exception:  # tokenizers raises no narrower one
            return True
        return False


def load_tokenizer(path_or_id: str | Path, *, quiet: bool = False) -> Tokenizer:
    """Load a Hugging Face tokenizer from a folder, or by its id on the Hub.

    What it loses of text, and a template that is not training's, are logged as a warning: once a
    process, and not by the workers of a pool, whose parent has said it.

    Args:
        path_or_id: the folder or the id.
        quiet: for callers that show `doubts` themselves.

    Raises:
        ValueError: there is none, or it lacks one of the four special tokens we need.
    """
    name = str(path_or_id)
    loaded = tokenizer_of(_read_files(name), name)
    if not quiet and multiprocessing.parent_process() is None:
        for doubt in loaded.doubts:
            if doubt not in _said:
                _said.add(doubt)
                log.warning("tokenizer %s", doubt)
    return loaded


def tokenizer_of(files: dict[str, str], name: str) -> Tokenizer:
    """The tokenizer that is stored in files of these texts, such as a checkpoint's.

    Args:
        files: texts by the names of `TOKENIZER_FILES`.
        name: what to call it in messages.

    Raises:
        ValueError: it is damaged, or lacks one of the four special tokens we need.
    """
    if "tokenizer.json" not in files:
        raise ValueError(f"tokenizer {name} has no tokenizer.json; save it as a fast tokenizer")
    try:
        backend = tokenizers.Tokenizer.from_str(files["tokenizer.json"])
        tokens = special_tokens(files)
    except Exception as error:  # tokenizers raises no narrower one
        raise ValueError(f"tokenizer {name} is damaged: {error}; save or train it again") from error
    backend.no_truncation()
    backend.no_padding()
    backend.encode_special_tokens = True
    if not set(NEEDED_ROLES) <= tokens.keys() and _class_has_defaults(files):
        tokens = special_tokens(_with_the_defaults_of_its_class(files, name)) | tokens
    found = {role: backend.token_to_id(token) for role, token in tokens.items()}
    ids = {role: number for role, number in found.items() if number is not None}
    missing = [role for role in NEEDED_ROLES if role not in ids]
    if missing:
        raise ValueError(
            f"tokenizer {name} has no {', '.join(missing)}, which masked-language modelling needs; "
            "add them with `add_special_tokens` of transformers and save it, or train one with "
            "data_prep/train_tokenizer.py"
        )
    vocabulary = backend.get_vocab(with_added_tokens=True)
    size = max(vocabulary.values()) + 1
    if size > 2 * len(vocabulary) + _MOST_UNUSED_IDS:
        raise ValueError(
            f"tokenizer {name} has {len(vocabulary):,} tokens, but ids up to {size - 1:,}, for "
            "each of which a model would have a row; its tokenizer.json is damaged: save it again"
        )
    added = backend.get_added_tokens_decoder()
    needed = {ids[role] for role in NEEDED_ROLES}
    return Tokenizer(
        name=name,
        cls_id=ids["cls_token"],
        sep_id=ids["sep_token"],
        pad_id=ids["pad_token"],
        mask_id=ids["mask_token"],
        role_ids={role.removesuffix("_token"): number for role, number in ids.items()},
        special_ids=np.array(sorted(needed | {n for n, t in added.items() if t.special}), np.int64),
        size=size,
        fingerprint=_fingerprint(backend, ids),
        files=files,
        backend=backend,
    )


def special_tokens(files: dict[str, str]) -> dict[str, str]:
    """The text of each special token that the files name, by role (`cls_token`, `mask_token`...).

    Raises:
        ValueError: a file is no JSON object.
    """
    found: dict[str, str] = {}
    for name in ("special_tokens_map.json", "tokenizer_config.json"):
        for role, token in _object(files, name).items():
            token = token.get("content") if isinstance(token, dict) else token
            if role in ROLES and isinstance(token, str) and token:
                found[role] = token
    return found


def files_for_transformers(files: dict[str, str], max_seq_len: int) -> dict[str, str]:
    """The tokenizer's files such that transformers 4 and 5 both load them, and alike.

    `tokenizer.json`, which decides every token, stays as it is; the settings beside it are reduced
    to what both versions understand.
    """
    given = _object(files, "tokenizer_config.json")
    tokens = special_tokens(files)
    settings: JsonObject = {
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


def _object(files: dict[str, str], name: str) -> JsonObject:
    parsed = json.loads(files.get(name, "{}"))
    if not isinstance(parsed, dict):
        raise ValueError(f"{name}: expected a JSON object, not a {type(parsed).__name__}")
    return parsed


def _read_files(name: str) -> dict[str, str]:
    folder = fetch.local(name) if is_remote(name) else Path(name)
    if not folder.is_dir():
        names_a_place = "/" in name and folder.parent.is_dir()  # an id has no folder before it
        if folder.exists() or name.startswith((".", "/")) or name.count("/") > 1 or names_a_place:
            raise ValueError(f"tokenizer {name}: no such folder; train one, or correct the path")
        return _files_from_hub(name)
    files = _texts(folder)
    if not any(folder.iterdir()):
        raise ValueError(f"tokenizer {name}: the folder is empty; train one, or correct the path")
    if "tokenizer.json" in files:
        return files
    if not any((folder / name).is_file() for name in _OLDER_FILES):
        raise ValueError(
            f"tokenizer {name}: no tokenizer.json there; name the folder of a tokenizer, or train "
            "one with data_prep/train_tokenizer.py"
        )
    return _files_from_transformers(str(folder), name)


def _texts(folder: Path) -> dict[str, str]:
    found = {}
    for path in (folder / name for name in TOKENIZER_FILES):
        if path.is_file():
            try:
                found[path.name] = path.read_text(encoding="utf-8")
            except UnicodeDecodeError as error:
                raise ValueError(f"{path} is damaged: {error}; save the tokenizer again") from error
    return found


def _files_from_hub(name: str) -> dict[str, str]:
    """The files as the Hub has them, or its cache on this machine where it is out of reach.

    transformers would try for a minute, file by file, and takes ten seconds to be imported: it is
    asked only where there is no tokenizer.json.
    """
    from huggingface_hub import snapshot_download

    silent = _hub_silence()
    offline = silent is not None
    try:
        folder = snapshot_download(
            name, allow_patterns=list(TOKENIZER_FILES), local_files_only=offline
        )
    except Exception as error:  # the Hub and its client raise of many kinds
        if silent is not None:
            raise ValueError(
                f"tokenizer {name} is no folder here, and {silent}; correct the path, or download "
                f"it where there is a network (hf download {name} --local-dir FOLDER), and name "
                "that folder"
            ) from error
        raise ValueError(f"tokenizer {name} cannot be loaded: {error}") from error
    files = _texts(Path(folder))
    return files if "tokenizer.json" in files else _files_from_transformers(name, name, offline)


def _files_from_transformers(place: str, name: str, offline: bool = False) -> dict[str, str]:
    """What transformers would save for a tokenizer that has no tokenizer.json."""
    import transformers

    try:
        loaded = transformers.AutoTokenizer.from_pretrained(
            place, use_fast=True, local_files_only=offline, trust_remote_code=False
        )
    except Exception as error:  # transformers raises whatever the Hub or a parser raised
        said = str(error).strip().partition("\n")[0]
        raise ValueError(f"tokenizer {name} cannot be loaded: {said}") from error
    with tempfile.TemporaryDirectory() as folder:
        loaded.save_pretrained(folder)
        files = {
            f: (Path(folder) / f).read_text()
            for f in TOKENIZER_FILES
            if (Path(folder) / f).is_file()
        }
    if "tokenizer.json" not in files:
        raise ValueError(f"tokenizer {name} has no fast version (tokenizer.json); convert it first")
    # transformers names every role in memory even where the files leave it to a class's default
    named = {role: str(token) for role in NEEDED_ROLES if (token := getattr(loaded, role, None))}
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


def _class_has_defaults(files: dict[str, str]) -> bool:
    """Whether the tokenizer is of a class of transformers that knows its special tokens by name."""
    named = _object(files, "tokenizer_config.json").get("tokenizer_class")
    return named not in (None, "PreTrainedTokenizerFast", "TokenizersBackend")


def _with_the_defaults_of_its_class(files: dict[str, str], name: str) -> dict[str, str]:
    with tempfile.TemporaryDirectory() as folder:
        for file, text in files.items():
            (Path(folder) / file).write_text(text)
        return _files_from_transformers(folder, name)


def _fingerprint(backend: tokenizers.Tokenizer, ids: dict[str, int]) -> str:
    """Hash what decides the ids of a text, in a form that all versions of `tokenizers` agree on."""
    parts = json.loads(backend.to_str())
    model = parts["model"]
    if "merges" in model:  # older versions join the two halves by a space
        model["merges"] = [m if isinstance(m, str) else " ".join(m) for m in model["merges"]]
    content = {key: parts.get(key) for key in ("model", "normalizer", "pre_tokenizer")}
    content["added_tokens"] = sorted(parts["added_tokens"], key=lambda token: token["id"])
    content["roles"] = {role: ids[role] for role in NEEDED_ROLES}
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
