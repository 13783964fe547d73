"""How text is framed: training lays every segment as `[CLS] text [SEP]`, whatever the tokenizer.

A tokenizer that frames text otherwise (GPT-2's adds nothing, Llama's only a beginning) would give
the model, once exported, what it was never trained on. Here the two are compared, and the template
that training uses is written into a `tokenizer.json`.
"""

import json
from typing import Any

import tokenizers
from tokenizers import processors

_TEXT = "a"


def template_difference(backend: tokenizers.Tokenizer, cls_id: int, sep_id: int) -> str | None:
    """How a tokenizer's own template differs from what training does; None if it does not."""
    content, framed = _content_and_framed(backend)
    if framed == [cls_id, *content, sep_id]:
        return None
    cls, sep = backend.id_to_token(cls_id), backend.id_to_token(sep_id)
    return f"frames a text x as '{_drawn(backend, content, framed)}', training as '{cls} x {sep}'"


def with_template(tokenizer_json: str, cls: tuple[str, int], sep: tuple[str, int]) -> str:
    """The text of a `tokenizer.json` that frames text as training does; nothing else changes.

    Args:
        tokenizer_json: the text as it is.
        cls: the token before a text, and its id.
        sep: the same of the token after it, and after a second text.
    """
    parts = json.loads(tokenizer_json)
    carrier = tokenizers.Tokenizer(tokenizers.models.BPE())
    carrier.post_processor = processors.TemplateProcessing(  # type: ignore[assignment]
        single=f"{cls[0]} $A {sep[0]}",
        pair=f"{cls[0]} $A {sep[0]} $B {sep[0]}",
        special_tokens=[cls, sep],
    )
    template = json.loads(carrier.to_str())["post_processor"]
    before = [step for step in _steps(parts.get("post_processor")) if step["type"] == "ByteLevel"]
    parts["post_processor"] = (
        {"type": "Sequence", "processors": [*before, template]} if before else template
    )
    return json.dumps(parts, indent=2, ensure_ascii=False)


def _content_and_framed(backend: tokenizers.Tokenizer) -> tuple[list[int], list[int]]:
    for text in (_TEXT, ""):
        try:
            return backend.encode(text, add_special_tokens=False).ids, backend.encode(text).ids
        except Exception:  # noqa: S112  # it has no token for the text; '' needs none
            continue
    return [], []


def _drawn(backend: tokenizers.Tokenizer, content: list[int], framed: list[int]) -> str:
    """The frame with `x` for the content, such as '<s> x'."""
    for start in range(len(framed) - len(content) + 1):
        if framed[start : start + len(content)] == content:
            before, after = framed[:start], framed[start + len(content) :]
            tokens = [backend.id_to_token(number) for number in before]
            tokens += ["x", *(backend.id_to_token(number) for number in after)]
            return " ".join(map(str, tokens))
    return " ".join(str(backend.id_to_token(number)) for number in framed)


def _steps(processor: dict[str, Any] | None) -> list[dict[str, Any]]:
    if processor is None:
        return []
    return processor["processors"] if processor["type"] == "Sequence" else [processor]
