"""ONNX and OpenVINO graphs of a Hugging Face folder, checked against transformers.

The files lie where transformers.js, sentence-transformers and optimum look for them:
`onnx/model.onnx`, `onnx/model_int8.onnx`, `openvino/openvino_model.xml`. Needs `tessera[serve]`.
"""

import contextlib
import logging
import shutil
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from torch import Tensor, nn

from tessera.checkpoints.checkpoint import CheckpointError
from tessera.checkpoints.exporter import (
    LOGIT_TOLERANCE,
    replacing,
    sign,
    verify,
    write_folder,
)
from tessera.checkpoints.formats.huggingface import OWN_FILE
from tessera.checkpoints.reader import read_checkpoint
from tessera.checkpoints.safe_files import load_json

log = logging.getLogger(__name__)

Kind = Literal["onnx", "int8", "openvino"]

PLACES: dict[Kind, str] = {
    "onnx": "onnx/model.onnx",
    "int8": "onnx/model_int8.onnx",
    "openvino": "openvino/openvino_model.xml",
}
"""Where each graph lies in a folder."""

LEAST_AGREEMENT = 0.9
"""Cosine between the outputs of 8-bit and of 32-bit weights below which a graph is refused."""

_NEEDED: dict[Kind, Sequence[str]] = {
    "onnx": ("onnx", "onnxruntime"),
    "int8": ("onnx", "onnxruntime"),
    "openvino": ("onnx", "onnxruntime", "openvino"),
}
_INPUTS = ("input_ids", "attention_mask")
_NOT_COPIED = shutil.ignore_patterns(
    *("onnx", "openvino", "checkpoint-*", "training_args.bin", "optimizer.pt", "scheduler.pt")
)


@dataclass(frozen=True, kw_only=True)
class Graph:
    """A graph that was written and checked."""

    kind: Kind
    file: Path
    output: str
    """What it gives: `logits` or `last_hidden_state`."""
    difference: float
    """Largest absolute difference from transformers, over real tokens."""
    cosine: float
    """Of its outputs with transformers' outputs, over real tokens."""


def missing_packages(kinds: Sequence[Kind]) -> list[str]:
    """Packages that these graphs need and this environment has not."""
    wanted = dict.fromkeys(name for kind in kinds for name in _NEEDED[kind])
    return [name for name in wanted if find_spec(name) is None]


def export_with_graphs(
    source: Path, out: Path, kinds: Sequence[Kind], *, encoder_only: bool = False
) -> list[Graph]:
    """Export a checkpoint, or copy a Hugging Face folder, and write graphs into it.

    A folder is copied without a Trainer's state and without graphs that it had.

    Args:
        source: what `read_checkpoint` reads, or a folder of transformers or sentence-transformers.
        out: the folder to make; an earlier export there is replaced when all is checked.
        kinds: which graphs.
        encoder_only: see `write_graphs`.

    Raises:
        CheckpointError: see `export` and `write_graphs`. Nothing is left at `out`.
    """
    with replacing(out) as folder:
        if (source / "config.json").is_file():
            shutil.copytree(source, folder, ignore=_NOT_COPIED, dirs_exist_ok=True)
        else:
            checkpoint = read_checkpoint(source)
            write_folder(checkpoint, folder)
            verify(checkpoint, folder)
        try:
            graphs = write_graphs(folder, kinds, encoder_only=encoder_only)
        except CheckpointError as error:  # names the folder that is about to be thrown away
            raise CheckpointError(str(error).replace(str(folder), str(source))) from error
        sign(folder, load_json(folder / OWN_FILE) if (folder / OWN_FILE).is_file() else {})
    return [replace(graph, file=out / graph.file.relative_to(folder)) for graph in graphs]


def write_graphs(folder: Path, kinds: Sequence[Kind], *, encoder_only: bool = False) -> list[Graph]:
    """Write graphs of a model into its folder; each gives what transformers gives, or is refused.

    Inputs are `input_ids` and `attention_mask`, (texts, tokens) int64, of any size; the output is
    what the architecture named in config.json computes, or the encoder's vectors.

    Args:
        folder: of transformers or sentence-transformers.
        kinds: which graphs; all begin as ONNX.
        encoder_only: leave the head out: (texts, tokens, hidden size) float32. Always so for
            sentence-transformers, which pools by itself.

    Raises:
        CheckpointError: the model cannot be loaded or traced, or a graph gives something else.
            Files that were written before remain in the folder, which the caller throws away.
    """
    model, output = _load(folder, encoder_only or (folder / "modules.json").is_file())
    batches = _batches(model.config)
    expected = [_run(model, *batch) for batch in batches]
    onnx = folder / PLACES["onnx"]
    onnx.parent.mkdir(parents=True, exist_ok=True)
    _trace(model, output, batches[0], onnx)
    graphs = [_checked("onnx", onnx, output, batches, expected)]
    if "int8" in kinds:
        file = folder / PLACES["int8"]
        folded = file.with_name("folded.onnx")
        # Only what is a constant gets 8 bits: the transposed embedding must be one.
        _trace(model, output, batches[0], folded, fold=True)
        with _silent():
            from onnxruntime.quantization import QuantType, quantize_dynamic

            quantize_dynamic(folded, file, weight_type=QuantType.QInt8)
        folded.unlink()
        graphs.append(_checked("int8", file, output, batches, expected))
    if "openvino" in kinds:
        file = folder / PLACES["openvino"]
        file.parent.mkdir(exist_ok=True)
        import openvino

        openvino.save_model(openvino.convert_model(onnx), file, compress_to_fp16=False)
        graphs.append(_checked("openvino", file, output, batches, expected))
    if "onnx" not in kinds:
        onnx.unlink()
        with contextlib.suppress(OSError):  # int8 lies there too
            onnx.parent.rmdir()
    return [graph for graph in graphs if graph.kind in kinds]


def session(file: Path, *, threads: int | None = None) -> Any:
    """A graph ready to run: called with (input_ids, attention_mask) arrays, it gives an array.

    Args:
        file: `.onnx` or OpenVINO's `.xml`.
        threads: of the CPU; None leaves it to the runtime.
    """
    if file.suffix == ".xml":
        import openvino

        options: dict[str, Any] = {"INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            options["INFERENCE_NUM_THREADS"] = threads
        compiled = openvino.Core().compile_model(file, "CPU", options)
        return lambda ids, mask: compiled(dict(zip(_INPUTS, (ids, mask), strict=True)))[0]
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.log_severity_level = 3
    if threads is not None:
        settings.intra_op_num_threads = threads
    found = onnxruntime.InferenceSession(file, settings, providers=["CPUExecutionProvider"])
    return lambda ids, mask: found.run(None, dict(zip(_INPUTS, (ids, mask), strict=True)))[0]


# ---- the model


class _Traced(nn.Module):
    """A model of transformers with its two inputs and one output by position."""

    def __init__(self, model: Any, output: str) -> None:
        super().__init__()
        self.model = model
        self.output = output

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        found: Tensor = self.model(input_ids=input_ids, attention_mask=attention_mask)[self.output]
        return found


def _load(folder: Path, encoder_only: bool) -> tuple[Any, str]:
    import transformers
    from transformers.utils import logging as theirs

    theirs.set_verbosity_error()
    theirs.disable_progress_bar()
    config = load_json(folder / "config.json")
    named = config.get("architectures") or []
    if config.get("is_decoder") or any(str(n).endswith(("CausalLM", "LMHeadModel")) for n in named):
        raise CheckpointError(f"{folder}: is a decoder ({', '.join(map(str, named))}), no encoder")
    if not any((folder / name).is_file() for name in ("tokenizer.json", "vocab.txt", "vocab.json")):
        log.warning("%s: holds no tokenizer; whoever serves the graph needs it", folder)
    auto: Any = transformers.AutoModel
    if named and not encoder_only:
        auto = getattr(transformers, str(named[0]), None)
        if auto is None:
            raise CheckpointError(
                f"{folder}/config.json: transformers has no architecture '{named[0]}'"
            )
    try:
        # Eager attention alone is traced without a branch on the lengths of the example.
        model = auto.from_pretrained(
            folder,
            attn_implementation="eager",
            dtype=torch.float32,
            local_files_only=True,
            trust_remote_code=False,
        ).eval()
    except Exception as error:
        raise CheckpointError(f"{folder}: transformers cannot load it ({error})") from error
    for name, tensor in model.named_parameters():
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(f"{folder}: its weights hold NaN or infinity, first in {name}")
    return model, "last_hidden_state" if auto is transformers.AutoModel else "logits"


def _batches(config: Any) -> list[tuple[Tensor, Tensor]]:
    """Random texts in padded batches, shorter and longer than a sliding window; one text alone."""
    window = min(getattr(config, "local_attention", None) or 128, 256)
    most = getattr(config, "max_position_embeddings", None) or 512
    generator = torch.Generator().manual_seed(0)
    batches = []
    for lengths in ([window // 2 + 3, 2, window // 3], [window + 9, 1], [3 * window + 1]):
        lengths = [min(length, most - 2) for length in lengths]
        real = torch.arange(max(lengths)) < torch.tensor(lengths)[:, None]
        drawn = torch.randint(config.vocab_size, tuple(real.shape), generator=generator)
        batches.append((drawn.masked_fill(~real, config.pad_token_id or 0), real.long()))
    return batches


def _run(model: Any, ids: Tensor, mask: Tensor) -> np.ndarray:
    with torch.inference_mode():
        found = model(input_ids=ids, attention_mask=mask)
    return np.asarray((found.logits if "logits" in found else found.last_hidden_state).float())


def _trace(
    model: Any, output: str, example: tuple[Tensor, Tensor], file: Path, *, fold: bool = False
) -> None:
    """Write a model's graph; `fold` computes constants, and so writes tied embeddings twice."""
    axes = {0: "texts", 1: "tokens"}
    pooled = output == "logits" and _run(model, *example).ndim == 2
    try:
        with _silent(), torch.no_grad():
            # The exporter by torch.export gives the same graph after twenty times as long: it
            # reasons about every size symbolically, and 22 layers take many minutes.
            torch.onnx.export(
                _Traced(model, output).eval(),
                example,
                file,
                input_names=list(_INPUTS),
                output_names=[output],
                dynamic_axes={
                    **{name: axes for name in _INPUTS},
                    output: {0: "texts"} if pooled else axes,
                },
                opset_version=17,
                do_constant_folding=fold,
                dynamo=False,
            )
    except Exception as error:
        raise CheckpointError(f"{file.parent.parent}: torch cannot trace it ({error})") from error


# ---- the gate


def _checked(
    kind: Kind,
    file: Path,
    output: str,
    batches: Sequence[tuple[Tensor, Tensor]],
    expected: Sequence[np.ndarray],
) -> Graph:
    serve = session(file)
    found, wanted = [], []
    for (ids, mask), theirs in zip(batches, expected, strict=True):
        ours = np.asarray(serve(ids.numpy(), mask.numpy()))
        if ours.shape != theirs.shape:
            raise CheckpointError(f"{file}: gives {ours.shape}, transformers {theirs.shape}")
        # What a padded slot gives is nobody's business; a class is for a whole text.
        kept = mask.bool().numpy() if ours.ndim == 3 else slice(None)
        found.append(ours[kept].reshape(-1, ours.shape[-1]))
        wanted.append(theirs[kept].reshape(-1, ours.shape[-1]))
    a, b = np.concatenate(found).ravel(), np.concatenate(wanted).ravel()
    if not np.isfinite(a).all():
        raise CheckpointError(f"{file}: gives values that are not finite; refused")
    difference = float(np.abs(a - b).max())
    cosine = float(a @ b / max(float(np.linalg.norm(a) * np.linalg.norm(b)), 1e-12))
    allowed = LOGIT_TOLERANCE * max(1.0, float(np.abs(b).max()) / 10)
    if kind == "int8":
        if cosine < LEAST_AGREEMENT:
            raise CheckpointError(
                f"{file}: with weights of 8 bits the cosine with transformers' outputs is "
                f"{cosine:.3f}, less than {LEAST_AGREEMENT}; serve it without --int8"
            )
    elif difference > allowed:
        raise CheckpointError(
            f"{file}: differs from transformers by {difference:.2g}, more than the {allowed:.2g} "
            "that rounding explains; refused"
        )
    return Graph(kind=kind, file=file, output=output, difference=difference, cosine=cosine)


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Nothing of torch's tracing warnings, which the gate answers, and of the runtimes' logging."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
