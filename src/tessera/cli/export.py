"""`tessera export`: a checkpoint to a Hugging Face folder, verified before it is left there."""

import argparse
from typing import TYPE_CHECKING

from tessera.cli.arguments import existing, written
from tessera.config import ConfigError

if TYPE_CHECKING:
    from tessera.checkpoints.graphs import Kind

HELP = "A checkpoint to a Hugging Face folder, verified; with graphs for serving."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument(
        "checkpoint",
        help="a .pt file or a run folder; with a graph asked for also a folder of transformers or "
        "sentence-transformers, a fine-tuned one for example",
    )
    parser.add_argument("--out", required=True, metavar="DIR")
    parser.add_argument("--onnx", action="store_true", help="also onnx/model.onnx")
    parser.add_argument(
        "--int8", action="store_true", help="also onnx/model_int8.onnx, with weights of 8 bits"
    )
    parser.add_argument(
        "--openvino", action="store_true", help="also openvino/openvino_model.xml and .bin"
    )
    parser.add_argument(
        "--encoder-only", action="store_true", help="graphs without the head, to embed texts"
    )


def run(options: argparse.Namespace) -> None:
    """Export, and print where to."""
    out, checkpoint = written("--out", options.out), existing(options.checkpoint)
    kinds: tuple[Kind, ...] = ("onnx", "int8", "openvino")
    asked = [kind for kind in kinds if getattr(options, kind)]
    if options.encoder_only and not asked:
        raise ConfigError(
            "--encoder-only: is about graphs; add --onnx, --int8 or --openvino. The folder holds "
            "the whole model"
        )
    if not asked:
        from tessera.checkpoints.exporter import export
        from tessera.checkpoints.reader import read_checkpoint

        folder = export(read_checkpoint(checkpoint), out)
        print(f"{folder}: a Hugging Face folder; transformers gives the logits of the checkpoint")
        return

    from tessera.checkpoints.graphs import export_with_graphs, missing_packages

    if missing := missing_packages(asked):
        raise ConfigError(
            f"{', '.join(f'--{kind}' for kind in asked)}: {', '.join(missing)} not installed; "
            "pip install 'tessera[serve]'"
        )
    graphs = export_with_graphs(checkpoint, out, asked, encoder_only=options.encoder_only)
    print(f"{out}: a Hugging Face folder")
    for graph in graphs:
        size = graph.file.with_suffix(".bin") if graph.kind == "openvino" else graph.file
        print(
            f"{graph.file}: {graph.output}, {size.stat().st_size / 2**20:.1f} MiB; differs from "
            f"transformers by {graph.difference:.2g} at most, cosine {graph.cosine:.6f}"
        )
