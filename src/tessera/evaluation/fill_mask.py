"""What an exported model puts where a text says [MASK], through transformers alone."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from tessera.data.config import SourceConfig
from tessera.data.sources.source import open_source
from tessera.tokenizer import Tokenizer, load_tokenizer


@dataclass(frozen=True, kw_only=True)
class Filled:
    """A text and its likeliest completions."""

    text: str
    guesses: tuple[tuple[str, float], ...]
    """Tokens with their probabilities, likeliest first."""


def fill_masks(folder: str | Path, texts: Sequence[str], guesses: int = 4) -> list[Filled]:
    """Fill the first mask of each text with a Hugging Face folder's model.

    Raises:
        ValueError: for a text without a mask, or a folder that holds no model.
    """
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(
            f"{folder}: not a Hugging Face folder (no config.json); "
            "make one with: tessera export CHECKPOINT --out DIR"
        )
    from transformers import AutoModelForMaskedLM, AutoTokenizer, pipeline
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        # Said to be false: unsaid, transformers would ask on the terminal whether to run the code.
        tokenizer: Any = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        model = AutoModelForMaskedLM.from_pretrained(
            folder, attn_implementation="sdpa", trust_remote_code=False
        )
        fill: Any = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=guesses)
    except Exception as error:  # damaged files raise nearly anything
        raise _unreadable(folder, error) from error
    if tokenizer.mask_token is None:
        raise ValueError(f"{folder}: its tokenizer has no mask token")
    for text in texts:
        if tokenizer.mask_token not in text:
            raise ValueError(f"'{text}' has no {tokenizer.mask_token} to fill")
    try:
        return [Filled(text=text, guesses=_guesses(fill(text))) for text in texts]
    except Exception as error:  # a tokenizer and a model that do not fit one another
        raise _unreadable(folder, error) from error


def _guesses(answer: Any) -> tuple[tuple[str, float], ...]:
    first = answer[0] if isinstance(answer[0], list) else answer
    return tuple((guess["token_str"], float(guess["score"])) for guess in first)


def _unreadable(folder: str | Path, error: Exception) -> ValueError:
    said = " ".join(str(error).split())[:300]
    return ValueError(
        f"{folder}: transformers cannot use this model ({type(error).__name__}: {said}); copy it "
        "again, or make it again with: tessera export CHECKPOINT --out DIR"
    )


_WORDS_SHOWN = 24
_FEWEST = 8


def example_of(sources: Mapping[str, SourceConfig], tokenizer: str) -> tuple[str, str] | None:
    """The first words of a validation document that is on this machine, one of them masked.

    Args:
        sources: of a phase.
        tokenizer: that made their shards.

    Returns:
        The text, and the token in the place of the mask; None if no document can be read.

    Raises:
        ValueError: the tokenizer cannot be loaded, or shards not read.
    """
    loaded = load_tokenizer(tokenizer, quiet=True)
    for name, source in sources.items():
        if source.validation_split is None or not source.weight:
            continue
        here = replace(source, remote=None, cache_limit=None)
        documents = open_source(name, here, source.validation_split, None)
        try:
            for shard, count in enumerate(documents.samples[:1].tolist()):
                for sample in range(min(count, 50)):
                    if found := _masked(documents.document(shard, sample), loaded):
                        return found
        finally:
            documents.close()
    return None


def _masked(ids: np.ndarray, tokenizer: Tokenizer) -> tuple[str, str] | None:
    special = set(tokenizer.special_ids.tolist())
    shown = [number for number in ids[: _WORDS_SHOWN + 2].tolist() if number not in special]
    shown = shown[:_WORDS_SHOWN]
    middle = len(shown) // 2
    for place in range(middle, len(shown) - 1):
        answer = tokenizer.decode([shown[place]]).strip()
        if len(shown) >= _FEWEST and answer.isalnum() and len(answer) > 1:
            masked = [*shown[:place], tokenizer.mask_id, *shown[place + 1 :]]
            text = " ".join(tokenizer.decode(masked).split())
            return text, answer
    return None
