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
    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    for text in texts:
        if tokenizer.mask_token not in text:
            raise ValueError(f"'{text}' has no {tokenizer.mask_token} to fill")
    model = AutoModelForMaskedLM.from_pretrained(folder, attn_implementation="sdpa")
    fill: Any = pipeline("fill-mask", model=model, tokenizer=tokenizer, top_k=guesses)
    filled = []
    for text in texts:
        answer = fill(text)
        first = answer[0] if isinstance(answer[0], list) else answer
        filled.append(
            Filled(
                text=text,
                guesses=tuple((guess["token_str"], float(guess["score"])) for guess in first),
            )
        )
    return filled
