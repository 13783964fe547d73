"""Adopting shards that others made: saying in a manifest which tokenizer made them."""

from pathlib import Path
from typing import Any

from tessera.data.inspection import Shards
from tessera.data.sources.mds_shard import SUMMARY
from tessera.data.sources.special_tokens import INCLUDED, KEY, NONE, Framing
from tessera.files import as_json, write_whole
from tessera.tokenizer import Tokenizer


def doubts(shards: Shards, tokenizer: Tokenizer | None) -> list[str]:
    """What speaks against a tokenizer as the one that made the shards."""
    if tokenizer is None:
        return []
    found = []
    made_with = shards.source.tokenizer_fingerprint
    if made_with not in (None, tokenizer.fingerprint):
        found.append(
            f"{SUMMARY} says that tokenizer {made_with} made these shards; {tokenizer.name} is "
            f"{tokenizer.fingerprint}"
        )
    documents = [tokens for *_, tokens in shards.first_documents(64) if len(tokens)]
    largest = max(int(tokens.max()) for tokens in documents)
    if largest >= tokenizer.size:
        found.append(
            f"they hold token id {largest}; {tokenizer.name} has only {tokenizer.size} ids"
        )
        return found
    first, last = ({int(tokens[n]) for tokens in documents} for n in (0, -1))
    if len(documents) >= 8 and len(first) == len(last) == 1:
        begins, ends = first.pop(), last.pop()
        if (begins, ends) != (tokenizer.cls_id, tokenizer.sep_id):
            found.append(
                f"all begin with id {begins}, which is {_token(tokenizer, begins)} in "
                f"{tokenizer.name}, and end with {ends}, {_token(tokenizer, ends)}: the [CLS] and "
                "[SEP] of another tokenizer?"
            )
    return found


def adopt(shards: Shards, tokenizer: Tokenizer) -> Path:
    """Write the manifest that says which tokenizer made these shards, and what they hold.

    Raises:
        ValueError: there is a manifest, the folder is remote, or the tokenizer cannot be the one.
    """
    if "://" in shards.path:
        raise ValueError(
            f"{shards.path}: a manifest is written into a folder on this machine only; copy the "
            "shards here, or adopt the folder that caches them"
        )
    target = Path(shards.path) / SUMMARY
    if shards.source.summary:
        raise ValueError(f"{target} exists already; remove it to have it written anew")
    if found := doubts(shards, tokenizer):
        raise ValueError(
            f"{shards.path} is not adopted: {'; '.join(found)}; name the tokenizer that made it"
        )
    framing = Framing("inspected", {}, tokenizer.cls_id, tokenizer.sep_id)
    framed = [any(framing.of_shard(n, shards.source)) for n in shards.looked_at]
    if any(framed) != all(framed):
        raise ValueError(
            f"{shards.path} is not adopted: some of its shards hold [CLS] and [SEP], others do "
            "not; it can be trained on as it is, without a manifest"
        )
    manifest: dict[str, Any] = {
        "tokenizer": tokenizer.fingerprint,
        "vocab_size": tokenizer.size,
        KEY: INCLUDED if all(framed) else NONE,
        "documents": int(shards.source.samples.sum()),
        "shards": len(shards.index.shards),
        "adopted": {"tokenizer_name": tokenizer.name},
    }
    if shards.all_read:
        manifest["tokens"] = int(shards.lengths.sum())
    write_whole(target, as_json(manifest).encode())
    return target


def _token(tokenizer: Tokenizer, number: int) -> str:
    return repr(tokenizer.backend.id_to_token(number))
