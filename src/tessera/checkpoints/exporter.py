"""Writing models as folders that transformers 4 and 5 load, verified before they appear."""

import contextlib
import logging
import os
import shutil
import tempfile
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch

from tessera.checkpoints.checkpoint import DECODER, Checkpoint, CheckpointError, build_model
from tessera.checkpoints.formats.huggingface import OWN_FILE
from tessera.checkpoints.formats.huggingface_config import write_config
from tessera.checkpoints.reader import read_checkpoint
from tessera.checkpoints.safe_files import load_json, sha256
from tessera.files import JsonObject, as_json
from tessera.tokenizer import Tokenizer, files_for_transformers, tokenizer_of

log = logging.getLogger(__name__)

FORMAT = "tessera-export"

LOGIT_TOLERANCE = 5e-5
"""Largest difference from transformers' logits, for logits up to 10 in size; larger ones may differ
in proportion. Rounding makes 4e-6; the smallest known misreading (tanh GELU) makes 2e-4."""


def export(
    checkpoint: Checkpoint | str | Path, out: str | Path, *, max_seq_len: int | None = None
) -> Path:
    """Write a Hugging Face folder, check it through transformers, and only then put it in place.

    An earlier export at `out` is replaced; anything else there is left alone and refused.

    Args:
        checkpoint: what `read_checkpoint` reads, or returned.
        out: the folder to make.
        max_seq_len: longest segment the model was trained on; the checkpoint's own if None.

    Returns:
        The folder.

    Raises:
        CheckpointError: transformers has no such model (`model.qk_norm`), the checkpoint has no
            tokenizer or no known length, `out` holds other
            things, or transformers does not compute our logits. Nothing is left at `out`.
    """
    out = Path(out)
    with replacing(out) as temporary:
        if not isinstance(checkpoint, Checkpoint):
            checkpoint = read_checkpoint(checkpoint)
        write_folder(checkpoint, temporary, max_seq_len=max_seq_len)
        verify(checkpoint, temporary)
    return out


@contextlib.contextmanager
def replacing(out: Path) -> Iterator[Path]:
    """A folder to fill, which is at `out` afterwards unless an error is raised in between.

    Raises:
        CheckpointError: something else than an earlier export is at `out`.
    """
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.exporting-", dir=out.parent))
    try:
        yield temporary
        temporary.chmod(0o777 & ~_umask())
        put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)


def write_folder(checkpoint: Checkpoint, folder: Path, *, max_seq_len: int | None = None) -> None:
    """Write config, tokenizer and weights into an existing folder, unverified.

    Raises:
        CheckpointError: see `export`.
    """
    check_exportable(checkpoint)
    import transformers

    tokenizer = _tokenizer(checkpoint)
    length = max_seq_len or checkpoint.max_seq_len
    if length is None:
        raise CheckpointError(
            f"{checkpoint.path}: does not say how long its training segments were; give the length"
        )
    if tokenizer.size > checkpoint.model_config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: its tokenizer has {tokenizer.size} tokens, its model only "
            f"{checkpoint.model_config.vocab_size}; they do not belong together"
        )
    config = write_config(
        checkpoint.model_config,
        ids=tokenizer.role_ids,
        max_seq_len=length,
        transformers_version=transformers.__version__,
    )
    if tokenizer.template_problem:
        log.warning(
            "%s: its tokenizer %s; the template of training is written into the exported "
            "tokenizer.json",
            *(checkpoint.path, tokenizer.template_problem),
        )
    files = files_for_transformers(tokenizer.framed_files(), length)
    texts = {"config.json": as_json(config), **files}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    weights = {
        name: tensor.contiguous() for name, tensor in checkpoint.weights.items() if name != DECODER
    }
    file = folder / "model.safetensors"
    safetensors.torch.save_file(weights, file, metadata={"format": "pt"})
    shutil.copymode(folder / "config.json", file)  # it was written for its owner alone
    own = {"model_config": asdict(checkpoint.model_config), "progress": checkpoint.progress}
    sign(folder, own)


def check_exportable(checkpoint: Checkpoint) -> None:
    """Raise CheckpointError, by key, if transformers has no such model."""
    why = checkpoint.model_config.not_in_transformers
    if why is not None:
        raise CheckpointError(
            f"{checkpoint.path}: {why}: there is no export, release, graph or fine-tuning of such "
            "a model. `tessera.checkpoints.load_model` loads it, and `tessera evaluate` gives its "
            "masked-LM loss; for an export, train with model.qk_norm=false"
        )


def sign(folder: Path, own: JsonObject) -> None:
    """Write what is ours about a folder, and which files are: a later export may replace them."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != OWN_FILE)
    sums = {path.relative_to(folder).as_posix(): sha256(path) for path in files}
    content = {"format": FORMAT, **own, "sha256": sums}
    (folder / OWN_FILE).write_text(as_json(content), encoding="utf-8")


def _tokenizer(checkpoint: Checkpoint) -> Tokenizer:
    if checkpoint.tokenizer_files is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no tokenizer, and a model without one cannot be used; "
            "give the folder of the tokenizer it was trained with"
        )
    try:
        return tokenizer_of(checkpoint.tokenizer_files, "in it")
    except ValueError as error:
        raise CheckpointError(f"{checkpoint.path}: {error}") from error


@torch.inference_mode()
def verify(checkpoint: Checkpoint, folder: Path) -> float:
    """Load a folder with transformers and compare its logits with our model's.

    Documents of random tokens, some longer than the attention window, go through transformers as
    one padded batch and one by one.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        CheckpointError: it does not load, its special ids are not the tokenizer's, it frames text
            otherwise than training did, or its logits are not finite or not ours.
    """
    config = checkpoint.model_config
    tokenizer, theirs = _load_with_transformers(folder)
    ours = build_model(checkpoint)
    trained_with = _tokenizer(checkpoint)
    _check_frame(folder, trained_with, tokenizer)
    for role, number in trained_with.role_ids.items():
        loaded = getattr(tokenizer, f"{role}_token_id")
        configured = getattr(theirs.config, f"{role}_token_id", number)
        if loaded != number or (role != "unk" and configured not in (number, None)):
            raise CheckpointError(
                f"{folder}: {role}_token_id is {number} in the tokenizer, {loaded} once loaded, "
                f"{configured} in config.json; the export is refused"
            )

    window = min(config.local_attention, 256)
    lengths = [2, window // 2 + 3, window + 9]
    generator = torch.Generator().manual_seed(0)
    documents = [torch.randint(config.vocab_size, (n,), generator=generator) for n in lengths]
    padded = torch.nn.utils.rnn.pad_sequence(
        documents, batch_first=True, padding_value=tokenizer.pad_token_id
    )
    real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
    batch_logits = theirs(input_ids=padded, attention_mask=real.long()).logits
    ends = [0, *torch.tensor(lengths).cumsum(0).tolist()]
    our_logits = ours(
        torch.cat(documents), cu_seqlens=torch.tensor(ends, dtype=torch.int32)
    ).logits.float()

    worst = 0.0
    for i, document in enumerate(documents):
        expected = our_logits[ends[i] : ends[i + 1]]
        single = theirs(input_ids=document[None]).logits[0].float()
        for how, found in (("padded", batch_logits[i, : len(document)].float()), ("alone", single)):
            if not (torch.isfinite(found).all() and torch.isfinite(expected).all()):
                raise CheckpointError(f"{folder}: logits are not finite ({how}); export refused")
            difference = float((found - expected).abs().max())
            allowed = LOGIT_TOLERANCE * max(1.0, float(expected.abs().max()) / 10)
            if difference > allowed:
                raise CheckpointError(
                    f"{folder}: transformers' logits differ from this model's by {difference:.2g} "
                    f"for a document of {len(document)} tokens ({how}), more than the "
                    f"{allowed:.2g} that rounding explains; the export is refused"
                )
            worst = max(worst, difference)
    return worst


def _check_frame(folder: Path, trained_with: Tokenizer, exported: Any) -> None:
    """Refuse a folder whose tokenizer does not give `[CLS] text [SEP]`, as training laid it."""
    text = trained_with.decode([int(n) for n in trained_with.ordinary_ids[:8]])
    try:
        content = trained_with.encode_batch([text])[0].tolist()
    except ValueError:  # it cannot encode its own tokens one after the other
        text, content = "", []
    expected = [trained_with.cls_id, *content, trained_with.sep_id]
    found = exported(text)["input_ids"]
    if found != expected:
        raise CheckpointError(
            f"{folder}: transformers turns {text!r} into {found}, training into {expected}; the "
            "export is refused: give the checkpoint a tokenizer whose tokenizer.json frames text "
            "as [CLS] text [SEP]"
        )


def _load_with_transformers(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM, AutoTokenizer
    from transformers.utils import logging

    logging.disable_progress_bar()
    try:
        tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
        model, loading = AutoModelForMaskedLM.from_pretrained(
            folder,
            local_files_only=True,
            attn_implementation="eager",
            dtype=torch.float32,
            output_loading_info=True,
        )
    except Exception as error:
        raise CheckpointError(f"{folder}: transformers cannot load the export ({error})") from error
    strays = {kind: keys for kind, keys in loading.items() if keys}
    if strays:
        raise CheckpointError(f"{folder}: transformers finds tensors amiss in the export: {strays}")
    return tokenizer, model.eval()


def check_replaceable(out: Path) -> None:
    """Raise CheckpointError unless `out` is free, empty, or an earlier export and no more."""
    if not out.exists() and not out.is_symlink():
        return
    if not out.is_dir() or out.is_symlink():
        raise CheckpointError(f"{out}: is no folder; choose another place for the export")
    names = {path.name for path in out.iterdir()}
    if not names:
        return
    own = load_json(out / OWN_FILE) if OWN_FILE in names else {}
    foreign = sorted(names - {name.split("/")[0] for name in own.get("sha256", {})} - {OWN_FILE})
    if own.get("format") != FORMAT or foreign:
        raise CheckpointError(
            f"{out}: already holds files that no export of ours wrote ({', '.join(foreign[:3])}); "
            "they are left alone. Choose another folder, or empty this one"
        )


def put_in_place(temporary: Path, out: Path) -> None:
    """Rename a finished folder to `out`, and delete the earlier one that was there."""
    if not out.exists():
        os.rename(temporary, out)
        return
    old = Path(tempfile.mkdtemp(prefix=f".{out.name}.replaced-", dir=out.parent)) / out.name
    os.rename(out, old)
    os.rename(temporary, out)
    shutil.rmtree(old.parent)


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
