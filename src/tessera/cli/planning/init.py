"""`tessera init`: a YAML for one's own shards, size and hardware, ready to check and run."""

import argparse
import os
from pathlib import Path

from tessera.cli.arguments import at_least, existing, placed, written
from tessera.config import ConfigError
from tessera.paths import RUN, SOURCE

HELP = "Write a YAML for your own shards, size and hardware, ready to check and run."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="what data_prep/tokenize.py wrote (its --out)")
    add("--out", required=True, metavar="FILE.yaml", help="the YAML to write")
    add("--tokenizer", metavar="T", help="default: FOLDER/tokenizer")
    add("--size", choices=["tiny", "base", "large"], help="default: what the text is enough for")
    add("--gpu", metavar="NAME", help="h100, 4090 ...; default: a CPU")
    add("--world-size", type=int, default=1, metavar="N", help="GPUs in all")
    add(
        "--run-folder",
        metavar="FOLDER",
        help="default: runs/NAME/phase1, NAME of the YAML",
    )


def run(options: argparse.Namespace) -> None:
    """Write the YAML, and say what was chosen and what to do next.

    Raises:
        ConfigError: the file exists, or there is nothing to train on.
    """
    world_size = at_least(1, "--world-size", options.world_size)
    out = written("--out", options.out)
    if out.suffix not in {".yaml", ".yml"}:
        raise ConfigError(f"--out {out}: name a file that ends with .yaml")
    if out.exists():
        raise ConfigError(f"--out {out}: exists already; remove it, or name another file")
    if not out.parent.is_dir():
        raise ConfigError(f"--out {out}: there is no folder {out.parent}")
    folder = existing(options.folder)
    tokenizer = options.tokenizer or os.path.join(options.folder, "tokenizer")
    run_folder = options.run_folder or str(Path("runs") / out.stem / "phase1")

    import yaml

    from tessera.files import write_whole
    from tessera.planning.first_yaml import first_yaml
    from tessera.planning.gpus import gpu_of

    plain, reasons = first_yaml(
        folder,
        placed("--tokenizer", tokenizer, SOURCE),
        size=options.size,
        gpu=None if options.gpu is None else gpu_of(options.gpu),
        world_size=world_size,
        run_folder=placed("--run-folder", run_folder, RUN),
    )
    text = "".join(f"# {reason}.\n" for reason in reasons)
    write_whole(out, (text + yaml.safe_dump(plain, sort_keys=False)).encode())
    for reason in reasons:
        print(reason)
    ranks = f" --world-size {world_size}" if world_size > 1 else ""
    print(f"\n{out}: now\n  tessera check {out}{ranks}\n  tessera train {out}")
