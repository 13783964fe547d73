"""A model whose tokenizer gets more tokens: rows for them, and the optimizer's state beside."""

import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from tessera.checkpoints.checkpoint import DECODER, EMBEDDING, Checkpoint, CheckpointError
from tessera.files import write_whole
from tessera.tokenizer import Tokenizer, tokenizer_of
from tessera.tokenizer.extension import Addition, extended, pieces_of_new_tokens

log = logging.getLogger(__name__)

_BIAS = "decoder.bias"


def extend_vocabulary(checkpoint: Checkpoint, addition: Addition) -> tuple[Checkpoint, Tokenizer]:
    """The checkpoint with rows for new tokens, each the mean of those of its pieces until now.

    Old rows, and the optimizer's state of them, are unchanged bit for bit; that of new rows is
    zero. The vocabulary grows to a multiple of 64.

    Args:
        checkpoint: of any kind, with its tokenizer.
        addition: what `read_addition` read.

    Returns:
        The checkpoint, and its tokenizer.

    Raises:
        CheckpointError: it has no tokenizer, or that cannot be extended so.
    """
    if checkpoint.tokenizer_files is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no tokenizer, so nobody knows which ids it has; import a "
            "Hugging Face folder that has one"
        )
    try:
        old = tokenizer_of(checkpoint.tokenizer_files, f"in {checkpoint.path}")
        new = extended(old, addition)
        pieces = pieces_of_new_tokens(old, new)
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error
    before = checkpoint.model_config.vocab_size
    size = max(before, -(-new.size // 64) * 64)
    weights = dict(checkpoint.weights)
    weights[EMBEDDING] = _with_means(weights[EMBEDDING], pieces, old, size)
    weights[DECODER] = weights[EMBEDDING]
    weights[_BIAS] = _with_means(weights[_BIAS], pieces, old, size)
    optimizer = checkpoint.optimizer
    if optimizer is not None:
        optimizer = {
            name: {key: _with_zeros(value, pieces, before, size) for key, value in moment.items()}
            if name in (EMBEDDING, DECODER, _BIAS)
            else moment
            for name, moment in optimizer.items()
        }
    run_config = checkpoint.run_config
    if isinstance(run_config.get("model"), dict):
        run_config = {**run_config, "model": {**run_config["model"], "vocab_size": size}}
    log.info(
        "%d new tokens, ids %d to %d, begin as the mean of their pieces; vocabulary %d -> %d",
        *(len(pieces), min(pieces), max(pieces), before, size),
    )
    made = replace(
        checkpoint,
        model_config=replace(checkpoint.model_config, vocab_size=size),
        weights=weights,
        optimizer=optimizer,
        tokenizer_files=new.files,
        run_config=run_config,
        progress={**checkpoint.progress, "tokens_added": len(pieces)},
        data=None,  # its place in data of the old tokenizer means nothing now
    )
    return made, new


def write_tokenizer(tokenizer: Tokenizer, folder: Path) -> None:
    """Write a tokenizer's files into a folder that is new or empty.

    Raises:
        CheckpointError: it holds something.
    """
    if folder.exists() and any(folder.iterdir()):
        raise CheckpointError(f"{folder}: holds files already; remove it, or choose another --out")
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in tokenizer.files.items():
        write_whole(folder / name, text.encode())


def _with_means(rows: Tensor, pieces: dict[int, list[int]], old: Tokenizer, size: int) -> Tensor:
    """(old vocabulary, ...) -> (size, ...): rows of new ids from those of their pieces."""
    ordinary = torch.from_numpy(old.ordinary_ids)
    mean = rows[ordinary].mean(dim=0)
    made = mean.expand(size, *rows.shape[1:]).clone()  # ids that no token has, to fill up
    made[: len(rows)] = rows
    for number, parts in pieces.items():
        made[number] = rows[parts].mean(dim=0) if parts else mean
    return made


def _with_zeros(value: Any, pieces: dict[int, list[int]], before: int, size: int) -> Any:
    """An optimizer's value for each row, with zeros for new rows; other values as they are."""
    if not isinstance(value, Tensor) or not value.dim() or len(value) != before:
        return value
    made = value.new_zeros(size, *value.shape[1:])
    made[:before] = value
    made[list(pieces)] = 0
    return made
