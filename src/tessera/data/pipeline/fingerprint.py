"""What the rows of a run depend on beside the lanes' states, and which of it may change."""

import ast
from collections.abc import Mapping, Sequence
from dataclasses import fields
from fractions import Fraction

from tessera.data.config import MAY_CHANGE, MIXTURE, DataConfig, MaskingConfig, SourceConfig
from tessera.data.pipeline.masking import WORD_TOKENS
from tessera.tokenizer import Tokenizer

Fingerprint = dict[str, str]
"""What the rows depend on beside the lanes' states: each value by its key in the YAML.

A key that a fingerprint lacks has the value of `DEFAULTS`: an option that was not there when a
checkpoint was written did what its default does now, so that new options break no resume.
"""

_REPEATED = "documents already trained on would come again, and others never"
_CONSEQUENCES = {
    "lanes": "saved positions belong to that number of lanes; " + _REPEATED,
    "canonical_nodes": "saved positions belong to that number of groups; " + _REPEATED,
    "seed": "documents come in another order: " + _REPEATED,
    "shuffle": "documents come in another order: " + _REPEATED,
    "block_documents": "documents come in another order: " + _REPEATED,
    "max_seq_len": "pieces of the documents now read may be lost or come again",
    "long_documents": "pieces of the documents now read may be lost or come again",
    "row_tokens": "rows after this one differ from those of the run so far; no document is lost",
    "waiting_pieces": "rows after this one differ from those of the run so far; "
    "no document is lost",
    "tokenizer": "token ids would mean other tokens than those trained on",
    "objective": "a phase has one objective, and its losses would be of two kinds",
    "masking": "masks differ from those the run would have had; no document is lost",
}
_OTHER_DOCUMENTS = (
    "its documents are others, or are counted otherwise: some may come again, or never"
)
_SOURCES = "sources."
_WEIGHT = ".weight"
_MASKING = "masking."
_WORD_TOKENS = "masking.most_word_tokens"
_NEVER_ALLOWED = ("lanes", "canonical_nodes", "objective")
_PLAIN_KEYS = [key for key in _CONSEQUENCES if key not in ("seed", "tokenizer", "masking")]
assert {MIXTURE, *_CONSEQUENCES} == {*_NEVER_ALLOWED, *MAY_CHANGE}


def fingerprint(
    config: DataConfig, indexes: Mapping[str, str], tokenizer: Tokenizer, seed: int
) -> Fingerprint:
    """What the rows of a run depend on, each part by its key in the YAML.

    Args:
        config: what is read.
        indexes: of each source that is read, what its documents are known by.
        tokenizer: the run's.
        seed: of the data.
    """
    found = _options(config)
    found |= {"seed": str(seed), "tokenizer": tokenizer.fingerprint}
    for name, index in indexes.items():
        source = config.sources[name]
        key = f"{_SOURCES}{name}"
        found[key] = f"index {index}"
        found[f"{key}{_WEIGHT}"] = str(source.weight)
        for option in ("min_document_tokens", "max_document_tokens"):
            if (value := getattr(source, option)) is not None:  # old checkpoints know no such key
                found[f"{key}.{option}"] = str(value)
    return found


def shares(found: Fingerprint) -> dict[str, Fraction]:
    """Each source's share of the tokens, exactly as the decimals of the YAML say."""
    weights = {
        key.removeprefix(_SOURCES).removesuffix(_WEIGHT): Fraction(value)
        for key, value in found.items()
        if key.startswith(_SOURCES) and key.endswith(_WEIGHT)
    }
    whole = sum(weights.values())
    return {name: weight / whole for name, weight in weights.items()}


def documents_of(found: Fingerprint, name: str) -> Fingerprint:
    """The part that says which documents a source has, whatever its weight."""
    key = f"{_SOURCES}{name}"
    parts = (key, f"{key}.min_document_tokens", f"{key}.max_document_tokens")
    return {part: found[part] for part in parts if part in found}


def check_fingerprint(
    saved: Fingerprint, now: Fingerprint, allowed: Sequence[str], mixture: Sequence[str] = ()
) -> None:
    """Refuse to continue a stream that would silently become another.

    Args:
        saved: of the checkpoint.
        now: of the present configuration.
        allowed: `train_data.allow_changed`.
        mixture: how the mixture would change, in lines for people.

    Raises:
        ValueError: Naming each difference, what it would lose or repeat, and the way out.
    """
    before, after = DEFAULTS | saved, DEFAULTS | now
    changed = [
        key for key in sorted(before.keys() | after.keys()) if before.get(key) != after.get(key)
    ]
    of_mixture = {key for key in changed if _is_of_mixture(key, saved, now)}
    if shares(saved) == shares(now):  # weights of the same ratios are the same mixture
        changed = [key for key in changed if key not in of_mixture]
    refused = [
        key
        for key in changed
        if key in _NEVER_ALLOWED
        or not {key, _section(key), MIXTURE if key in of_mixture else key} & set(allowed)
    ]
    if not refused:
        return
    lines = ["the data differ from those of the checkpoint:"]
    for key in refused:
        if key not in of_mixture:
            was, is_now = before.get(key, "absent"), after.get(key, "absent")
            lines.append(f"  train_data.{key}: was {was}, now {is_now}; {_consequence(key)}")
    lines += [f"  {line}" for line in mixture if of_mixture & set(refused)]
    lines.append("Set them back to continue exactly. Or start a new phase with `start_from`, whose")
    lines.append("data begin anew.")
    fixed = [key for key in refused if key in _NEVER_ALLOWED]
    if overridable := [key for key in refused if key not in fixed]:
        asked = [MIXTURE if key in of_mixture else _section(key) for key in overridable]
        lines.append(
            f"Or accept this with train_data.allow_changed: [{', '.join(dict.fromkeys(asked))}]"
            + (f", which cannot excuse {', '.join(fixed)}." if fixed else "")
        )
    raise ValueError("\n".join(lines))


def _is_of_mixture(key: str, saved: Fingerprint, now: Fingerprint) -> bool:
    """Whether a key is about shares alone, or about a source that only one of the two has."""
    if not key.startswith(_SOURCES):
        return False
    comes_or_goes = shares(saved).keys() ^ shares(now).keys()
    names = [name for name in comes_or_goes if key in documents_of(saved | now, name)]
    return key.endswith(_WEIGHT) or bool(names)


def _options(config: DataConfig) -> Fingerprint:
    """The part of a fingerprint that is written in the YAML and has defaults."""
    found = {key: str(getattr(config, key)) for key in _PLAIN_KEYS}
    found |= {
        f"{_MASKING}{f.name}": str(getattr(config.masking, f.name)) for f in fields(MaskingConfig)
    }
    if config.masking.whole_words:
        found[_WORD_TOKENS] = str(WORD_TOKENS)
    return found


DEFAULTS = _options(DataConfig(sources={"any": SourceConfig(local="")}))
DEFAULTS[_WORD_TOKENS] = "any"
"""What each option of a fingerprint is if nobody says otherwise.

Words of any length were masked whole before they were cut: runs that did so are not continued with
other masks unasked.
"""


def by_named_values(saved: Fingerprint) -> Fingerprint:
    """A fingerprint whose masking is one text, as the first checkpoints have it, in today's form.

    The text is `str(MaskingConfig)`, such as "MaskingConfig(rate=0.3, over=Duration(value=5,
    unit='tok'))". It is taken apart as Python's grammar would, and nothing of it is evaluated.
    """
    text = saved.get("masking")
    if text is None:
        return saved
    named = {key: value for key, value in saved.items() if key != "masking"}
    call = ast.parse(text, mode="eval").body
    assert isinstance(call, ast.Call), text
    for keyword in call.keywords:
        value = keyword.value
        parts = value.keywords if isinstance(value, ast.Call) else [keyword]
        named[f"{_MASKING}{keyword.arg}"] = "".join(str(ast.literal_eval(p.value)) for p in parts)
    return named


def _section(key: str) -> str:
    """What `allow_changed` calls a key: masking's options change together."""
    return "masking" if key.startswith(_MASKING) else key


def _consequence(key: str) -> str:
    return _OTHER_DOCUMENTS if key.startswith(_SOURCES) else _CONSEQUENCES[_section(key)]
