"""Models as folders of Hugging Face transformers, versions 4.48 to 5: read, and written.

An export is verified through transformers before it appears.
"""

import hashlib
import os
import shutil
import tempfile
from dataclasses import asdict
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from tessera.checkpoints.checkpoint import (
    DECODER,
    Checkpoint,
    CheckpointError,
    build_model,
    check_weights,
)
from tessera.checkpoints.config_json import build_config, read_config, write_config
from tessera.checkpoints.safe_files import load_json, load_pickled_tensors, load_safetensors
from tessera.checkpoints.tokenizer_files import (
    TOKENIZER_FILES,
    as_json,
    files_for_transformers,
    special_ids,
    vocabulary_size,
)
from tessera.model.config import ModelConfig

OWN_FILE = "tessera.json"
"""Beside config.json in our exports: what config.json has no room for."""

FORMAT = "tessera-export"

LOGIT_TOLERANCE = 5e-5
"""Largest difference from transformers' logits, for logits up to 10 in size; larger ones may differ
in proportion. Rounding makes 4e-6; the smallest known misreading (tanh GELU) makes 2e-4."""


def read_folder(folder: Path) -> Checkpoint:
    """Read a Hugging Face folder: config.json, safetensors (whole or sharded), tokenizer.

    Raises:
        CheckpointError: it is no ModernBERT with a masked-language-model head, or is damaged.
    """
    config_path = folder / "config.json"
    config = load_json(config_path)
    model_config = read_config(config_path, config)
    own = load_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {}
    model_config = _with_own_fields(folder / OWN_FILE, model_config, own)
    tokenizer_files = {
        name: (folder / name).read_text(encoding="utf-8")
        for name in TOKENIZER_FILES
        if (folder / name).is_file()
    }
    max_seq_len = config.get("max_position_embeddings")
    progress = own.get("progress")
    return Checkpoint(
        path=folder,
        kind="huggingface",
        model_config=model_config,
        weights=check_weights(folder, model_config, read_tensors(folder)),
        max_seq_len=max_seq_len if isinstance(max_seq_len, int) else None,
        tokenizer_files=tokenizer_files or None,
        progress=progress if isinstance(progress, dict) else {},
    )


def read_tensors(folder: Path) -> dict[str, Tensor]:
    """The tensors of a folder's safetensors files, or of `.bin` files read without unpickling.

    Raises:
        CheckpointError: there are none, or an index names files outside the folder.
    """
    for whole, load in (
        ("model.safetensors", load_safetensors),
        ("pytorch_model.bin", load_pickled_tensors),
    ):
        if (folder / whole).is_file():
            return load(folder / whole)
        index_path = folder / f"{whole}.index.json"
        if index_path.is_file():
            return _read_shards(index_path, load)
    raise CheckpointError(
        f"{folder}: has a config.json but no weights (model.safetensors); was the download whole?"
    )


def _read_shards(index_path: Path, load: Any) -> dict[str, Tensor]:
    weight_map = load_json(index_path).get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{index_path}: has no weight_map")
    tensors: dict[str, Tensor] = {}
    for name in sorted({str(name) for name in weight_map.values()}):
        if Path(name).name != name or not name.endswith((".safetensors", ".bin")):
            raise CheckpointError(f"{index_path}: names '{name}', which is no file of its folder")
        if not (index_path.parent / name).is_file():
            raise CheckpointError(f"{index_path}: {name} is missing; was the download whole?")
        shard = load(index_path.parent / name)
        tensors |= {key: shard[key] for key in shard if weight_map.get(key) == name}
    return tensors


def _with_own_fields(where: Path, config: ModelConfig, own: dict[str, Any]) -> ModelConfig:
    extra = own.get("model_config")
    if not isinstance(extra, dict):
        return config
    names = ("attention_output_dropout", "decoder_bias_init")
    fields = {**vars(config), **{name: extra[name] for name in names if name in extra}}
    return build_config(where, fields)


def export(checkpoint: Checkpoint, out: str | Path, *, max_seq_len: int | None = None) -> Path:
    """Write a Hugging Face folder, check it through transformers, and only then put it in place.

    An earlier export at `out` is replaced; anything else there is left alone and refused.

    Args:
        checkpoint: what `read_checkpoint` returned.
        out: the folder to make.
        max_seq_len: longest segment the model was trained on; the checkpoint's own if None.

    Returns:
        The folder.

    Raises:
        CheckpointError: the checkpoint has no tokenizer or no known length, `out` holds other
            things, or transformers does not compute our logits. Nothing is left at `out`.
    """
    out = Path(out)
    check_replaceable(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = Path(tempfile.mkdtemp(prefix=f".{out.name}.exporting-", dir=out.parent))
    try:
        write_folder(checkpoint, temporary, max_seq_len=max_seq_len)
        verify(checkpoint, temporary)
        temporary.chmod(0o777 & ~_umask())
        put_in_place(temporary, out)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return out


def write_folder(checkpoint: Checkpoint, folder: Path, *, max_seq_len: int | None = None) -> None:
    """Write config, tokenizer and weights into an existing folder, unverified."""
    import transformers

    files = checkpoint.tokenizer_files
    if files is None:
        raise CheckpointError(
            f"{checkpoint.path}: holds no tokenizer, and a model without one cannot be used; "
            "give the folder of the tokenizer it was trained with"
        )
    length = max_seq_len or checkpoint.max_seq_len
    if length is None:
        raise CheckpointError(
            f"{checkpoint.path}: does not say how long its training segments were; give the length"
        )
    ids = special_ids(files)
    vocabulary = vocabulary_size(files)
    if vocabulary > checkpoint.model_config.vocab_size:
        raise CheckpointError(
            f"{checkpoint.path}: its tokenizer has {vocabulary} tokens, its model only "
            f"{checkpoint.model_config.vocab_size}; they do not belong together"
        )
    config = write_config(
        checkpoint.model_config,
        ids=ids,
        max_seq_len=length,
        transformers_version=transformers.__version__,
    )
    texts = {"config.json": as_json(config), **files_for_transformers(files, length)}
    for name, text in texts.items():
        (folder / name).write_text(text, encoding="utf-8")
    weights = {
        name: tensor.contiguous() for name, tensor in checkpoint.weights.items() if name != DECODER
    }
    safetensors.torch.save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    own = {
        "format": FORMAT,
        "model_config": asdict(checkpoint.model_config),
        "progress": checkpoint.progress,
        "sha256": {path.name: sha256(path) for path in sorted(folder.iterdir())},
    }
    (folder / OWN_FILE).write_text(as_json(own), encoding="utf-8")


@torch.inference_mode()
def verify(checkpoint: Checkpoint, folder: Path) -> float:
    """Load a folder with transformers and compare its logits with our model's.

    Documents of random tokens, some longer than the attention window, go through transformers as
    one padded batch and one by one.

    Returns:
        The largest absolute difference of a logit.

    Raises:
        CheckpointError: it does not load, its special ids are not the tokenizer's, or its logits
            are not finite or not ours.
    """
    config = checkpoint.model_config
    tokenizer, theirs = _load_with_transformers(folder)
    ours = build_model(checkpoint)
    for role, number in special_ids(checkpoint.tokenizer_files or {}).items():
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


def _load_with_transformers(folder: Path) -> tuple[Any, Any]:
    from transformers import AutoModelForMaskedLM, AutoTokenizer

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
    foreign = sorted(names - set(own.get("sha256", {})) - {OWN_FILE})
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


def sha256(path: Path) -> str:
    """Hex digest of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _umask() -> int:
    current = os.umask(0)
    os.umask(current)
    return current
