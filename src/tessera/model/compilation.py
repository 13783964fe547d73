"""torch.compile, layer by layer, and how to notice that it compiles again."""

import sys

import torch
from torch import nn

_GRAPHS_PER_LAYER = 64
"""More than training, evaluation and rare shapes need. Past torch's own 8 it stops compiling."""


def compile_modules(modules: list[nn.Module], *, backend: str = "inductor") -> None:
    """Compile each module in place, for shapes that stay the same.

    Modules of a class share their graphs, so that depth costs nothing: a model has one for its
    first layer, its global layers, its local layers and its last. Names of parameters stay.
    Compiled graphs are kept on disk between runs, where TORCHINDUCTOR_CACHE_DIR says.
    """
    torch._dynamo.config.recompile_limit = _GRAPHS_PER_LAYER
    for module in modules:
        module.compile(backend=backend, dynamic=False)


def graphs_compiled() -> int:
    """Graphs compiled by this process so far: a count that must stand still after warm-up."""
    return int(_counters("stats").get("unique_graphs", 0))


def graph_breaks() -> int:
    """Graph breaks so far: where compiled code falls back to Python."""
    return sum(_counters("graph_break").values())


def _counters(kind: str) -> dict[str, int]:
    """What torch's compiler counted; nothing where nobody has imported it, which takes seconds."""
    if "torch._dynamo" not in sys.modules:
        return {}
    from torch._dynamo.utils import counters

    return counters[kind]
