"""`tessera train`: a phase on every GPU of this machine, or this machine's part of it."""

import argparse
import socket
import sys

from tessera.cli.arguments import add_config, at_least, load_config
from tessera.config import ConfigError

HELP = "Train a phase on every GPU of this machine; go on with it if it was interrupted."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    add_config(parser)
    parser.add_argument("-n", type=int, metavar="N", help="ranks here; default: one a GPU, or one")
    parser.add_argument("--world-size", type=int, metavar="N", help="ranks of all machines")
    parser.add_argument("--node-rank", type=int, default=0, metavar="N", help="of this machine")
    parser.add_argument("--base-rank", type=int, default=0, metavar="N", help="this one's first")
    parser.add_argument("--master-addr", default="127.0.0.1", metavar="HOST", help="the first")
    parser.add_argument("--master-port", type=int, metavar="PORT", help="where it listens")


def run(options: argparse.Namespace) -> None:
    """Check the YAML, train, and leave with the exit status of training.

    Raises:
        ConfigError: the YAML or the ranks are wrong.
    """
    if options.n is not None:
        at_least(1, "-n", options.n)
    config = load_config(options)
    ranks = options.n or _gpus() or 1
    world_size = options.world_size or ranks
    if world_size < options.base_rank + ranks:
        raise ConfigError(
            f"--world-size {world_size}: this machine alone has the ranks {options.base_rank} to "
            f"{options.base_rank + ranks - 1}"
        )
    if world_size > ranks and options.master_port is None:
        raise ConfigError("--master-port: machines have to be told the same one, such as 29500")
    config.check_world(world_size)

    from tessera.training.start.launch import Node, launch

    node = Node(
        ranks=ranks,
        world_size=world_size,
        base_rank=options.base_rank,
        node_rank=options.node_rank,
        master_addr=options.master_addr,
        master_port=options.master_port or _free_port(),
    )
    sys.exit(launch([options.config, *options.overrides], node))


def _gpus() -> int:
    import torch

    return torch.cuda.device_count()


def _free_port() -> int:
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        return listening.getsockname()[1]
