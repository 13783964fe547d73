"""What an exported model puts where a text says [MASK], through transformers alone."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any


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
