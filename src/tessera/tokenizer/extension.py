"""Adding tokens to a tokenizer such that every id it had keeps its meaning."""

import json
from pathlib import Path

import tokenizers
from tokenizers import AddedToken

from tessera.files import as_json
from tessera.tokenizer.loading import NEEDED_ROLES, Tokenizer, load_tokenizer, tokenizer_of
from tessera.tokenizer.words import is_ideograph

Addition = Tokenizer | tuple[str, ...]
"""A tokenizer that has all the ids of another and more; or the tokens to add."""


def read_addition(path: str | Path) -> Addition:
    """What to add: a folder is a tokenizer, a file holds a token on each line.

    Raises:
        ValueError: there is no such file or folder, or nothing in it.
    """
    path = Path(path)
    if path.is_dir():
        return load_tokenizer(path, quiet=True)
    if not path.is_file():
        raise ValueError(f"{path}: no such file or folder; give a tokenizer, or tokens one a line")
    try:
        lines = path.read_text(encoding="utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: is not UTF-8 ({error}); save it as UTF-8") from error
    tokens = tuple(dict.fromkeys(line.strip() for line in lines if line.strip()))
    if not tokens:
        raise ValueError(f"{path}: holds no token; write one on each line")
    return tokens


def extended(old: Tokenizer, addition: Addition) -> Tokenizer:
    """The tokenizer with more tokens.

    Raises:
        ValueError: nothing is added, or a tokenizer gives an old id another meaning.
    """
    if isinstance(addition, Tokenizer):
        if problem := not_an_extension(old, addition):
            raise ValueError(f"{addition.name} does not extend {old.name}: {problem}")
        return addition
    backend = tokenizers.Tokenizer.from_str(old.files["tokenizer.json"])
    vocabulary = backend.get_vocab(with_added_tokens=True)
    new = [token for token in addition if token not in vocabulary]
    if not new:
        raise ValueError(f"{old.name} has all of the {len(addition)} tokens already")
    # Where case is dropped, a token is found however it is written.
    drops_case = backend.normalizer is not None and backend.normalizer.normalize_str("A") == "a"
    backend.add_tokens(
        [
            AddedToken(token, normalized=drops_case, single_word=_stands_alone(token))
            for token in new
        ]
    )
    settings = json.loads(old.files.get("tokenizer_config.json", "{}"))
    settings.pop("added_tokens_decoder", None)  # says again what tokenizer.json says, of fewer
    files = {
        **old.files,
        "tokenizer.json": backend.to_str(pretty=True),
        "tokenizer_config.json": as_json(settings),
    }
    return tokenizer_of(files, f"{old.name}, extended")


def not_an_extension(old: Tokenizer, new: Tokenizer) -> str | None:
    """Why a tokenizer is not another with more tokens; None if it is."""
    before, after = (one.backend.get_vocab(with_added_tokens=True) for one in (old, new))
    for token, number in sorted(before.items(), key=lambda item: item[1]):
        if after.get(token) != number:
            return f"id {number} is {token!r} in one and {new.backend.id_to_token(number)!r} in it"
    for role in NEEDED_ROLES:
        short = role.removesuffix("_token")
        if old.role_ids[short] != new.role_ids[short]:
            return f"its {role} is another"
    if new.size <= old.size:
        return "it has no more tokens"
    return None


def pieces_of_new_tokens(old: Tokenizer, new: Tokenizer) -> dict[int, list[int]]:
    """Each new id, and the ids that the old tokenizer gave to its text."""
    found = {}
    for number in sorted(set(new.backend.get_vocab(with_added_tokens=True).values())):
        if number >= old.size:
            text = new.decode([number]) or str(new.backend.id_to_token(number))
            found[number] = old.encode_batch([text])[0].tolist()
    return found


def _stands_alone(token: str) -> bool:
    """Whether to leave a token alone inside longer words: 'art' is no part of 'party'."""
    return token[0].isalnum() and token[-1].isalnum() and not any(map(is_ideograph, token))
