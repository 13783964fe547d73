"""Models and tokenizers of Hugging Face folders, as tasks need them; nobody's code is run."""

from typing import Any, Literal

from tessera.evaluation.jobs.models import Model


def load_tokenizer(folder: str) -> Any:
    """The fast tokenizer of a folder.

    Raises:
        ValueError: it cannot be loaded.
    """
    from transformers import AutoTokenizer

    try:
        tokenizer = AutoTokenizer.from_pretrained(folder)
    except Exception as error:  # of many kinds, from many tokenizers
        raise ValueError(
            f"{folder}: its tokenizer cannot be loaded: {_first_line(error)}"
        ) from error
    if not getattr(tokenizer, "is_fast", False):
        raise ValueError(f"{folder}: its tokenizer is not a fast one (tokenizer.json)")
    if tokenizer.pad_token is None:
        raise ValueError(f"{folder}: its tokenizer has no padding token; name one in its files")
    return tokenizer


def load_with_head(model: Model, kind: Literal["sequence", "token"], labels: int) -> Any:
    """The encoder of a folder with a new head.

    A classification head of another number of classes, as a start from another task has, is
    replaced; everything else must fit.

    Raises:
        ValueError: it cannot be loaded, or its weights are not finite.
    """
    import transformers

    auto: Any = (
        transformers.AutoModelForSequenceClassification
        if kind == "sequence"
        else transformers.AutoModelForTokenClassification
    )
    try:
        found = auto.from_pretrained(
            model.folder,
            num_labels=labels,
            problem_type=None if labels > 1 else "regression",
            ignore_mismatched_sizes=True,
        )
    except (ValueError, OSError, RuntimeError) as error:
        raise ValueError(f"{model.source}: cannot be loaded: {_first_line(error)}") from error
    check_finite(model, found)
    return found


def check_finite(model: Model, module: Any) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        ValueError: naming the first tensor that does.
    """
    for name, tensor in module.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise ValueError(
                f"{model.source}: its weights hold NaN or infinity, first in {name}; take an "
                "earlier checkpoint"
            )


def _first_line(error: Exception) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
