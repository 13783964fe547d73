"""Turning anyone's checkpoint, or tiles of it, into one that `start_from` accepts."""

import re
from dataclasses import replace
from pathlib import Path

from tessera.checkpoints.checkpoint import Checkpoint, CheckpointError
from tessera.checkpoints.extension import extend_vocabulary, write_tokenizer
from tessera.checkpoints.formats import composer
from tessera.checkpoints.reader import read_checkpoint
from tessera.checkpoints.safe_files import one_line
from tessera.model.config import ModelConfig
from tessera.model.tiling import TilingMode, tile_weights
from tessera.tokenizer import Tokenizer
from tessera.tokenizer.extension import Addition

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[\w.-]+(@[\w./-]+)?")
_WANTED = ["*.json", "*.safetensors", "restart/*"]


def import_checkpoint(
    source: str | Path,
    out: str | Path,
    model: ModelConfig | None = None,
    *,
    tile: TilingMode | None = None,
    extend_tokenizer: Addition | None = None,
) -> Path:
    """Write a checkpoint of any kind as one of ours, in the layout of `formats.composer`.

    Weights, optimizer moments, tokenizer and progress are carried over bit for bit; tiles carry
    over weights and tokenizer.

    Args:
        source: what `read_checkpoint` reads, or the id of a Hugging Face repository
            (`org/name`, or `org/name@revision`), which is downloaded.
        out: the `.pt` file to write.
        model: the model to expect, needed for bare weights; or the larger one to lay from tiles.
        tile: lay `model` from tiles of the source, `default` or as `published`.
        extend_tokenizer: tokens to add to its tokenizer, with rows for them in the model. Where
            they are words, the tokenizer is also written into a folder beside the file.

    Returns:
        The file.

    Raises:
        CheckpointError: the source cannot be read or is of another model, or `out` exists.
    """
    out = Path(out)
    if out.suffix != ".pt":
        raise CheckpointError(f"{out}: give the checkpoint a name that ends in .pt")
    if out.exists():
        raise CheckpointError(f"{out}: exists already; choose another name, or remove it")
    path = Path(source)
    if not path.exists() and _HUB_ID.fullmatch(str(source)):
        path = _download(str(source))
    if extend_tokenizer is not None:
        if tile is not None:
            raise CheckpointError("extend the tokenizer first, then tile what that made")
        made, tokenizer = extend_vocabulary(
            read_checkpoint(path, model_config=model), extend_tokenizer
        )
        if not isinstance(extend_tokenizer, Tokenizer):
            write_tokenizer(tokenizer, out.with_name(f"{out.stem}-tokenizer"))
        return composer.write(made, out)
    if tile is None:
        return composer.write(read_checkpoint(path, model_config=model), out)
    if model is None:
        raise CheckpointError("tiles need the larger model they are laid to: name its YAML")
    return composer.write(tiled(path, model, tile), out)


def tiled(source: str | Path, model: ModelConfig, mode: TilingMode = "default") -> Checkpoint:
    """A larger model laid from tiles of the one at `source`; its optimizer starts afresh.

    Args:
        source: what `read_checkpoint` reads.
        model: the larger model.
        mode: `default`, or `published` for what the published code does, bit for bit.

    Raises:
        CheckpointError: the source cannot be read, or cannot tile such a model.
    """
    small = read_checkpoint(source)
    try:
        weights = tile_weights(small.weights, small.model_config, model, mode)
    except ValueError as error:
        raise CheckpointError(f"{small.path}: {error}") from error
    return replace(
        small,
        kind="tessera",
        model_config=model,
        weights=weights,
        optimizer_name=None,
        optimizer=None,
        hyperparameters=[],
        run_config={},
        progress={"tiled_from": small.path.name, "tiling": mode},
        data=None,
    )


def _download(repository: str) -> Path:
    import huggingface_hub

    name, _, revision = repository.partition("@")
    try:
        folder = huggingface_hub.snapshot_download(
            name, revision=revision or None, allow_patterns=_WANTED
        )
    except Exception as error:  # whatever the network or the Hub came up with
        raise CheckpointError(
            f"{repository}: no such file or folder here, and the Hugging Face Hub does not give "
            f"it: {one_line(error)}"
        ) from error
    return Path(folder)
