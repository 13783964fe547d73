"""`tessera shapes`: shapes of a model for a budget of parameters that GPUs multiply well."""

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING

from tessera.cli.arguments import at_least
from tessera.config import ConfigError
from tessera.quantities import count

if TYPE_CHECKING:
    from tessera.planning.shapes import Shape

HELP = "Shapes of a model for a budget of parameters that GPUs multiply without waste."
_WIDTHS = (256, 384, 512, 640, 768, 1024, 1280, 1536)


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    parser.add_argument("parameters", metavar="PARAMETERS", help="such as 150M")
    add = parser.add_argument
    add("--hidden", type=int, nargs="+", default=list(_WIDTHS), metavar="N", help="hidden sizes")
    add("--vocab-size", type=int, default=50_368, metavar="N")
    add("--length", type=int, default=1024, metavar="N", help="tokens of a document")
    add("--slots", type=int, default=16_384, metavar="N", help="token slots of a microbatch")
    add("--gpu", nargs="+", default=["h100", "a100-80", "4090"], metavar="NAME")
    add("--top", type=int, default=20, metavar="N", help="lines to show; published ones besides")
    add(
        "--measure",
        action="store_true",
        help="time the layers of those shown on this machine, and rank by that",
    )


def run(options: argparse.Namespace) -> None:
    """Print the table, the deepest first or, measured, the fastest.

    Raises:
        ConfigError: an option makes no sense, or no shape is near the budget.
    """
    for option in ("vocab_size", "length", "slots", "top"):
        at_least(1, f"--{option.replace('_', '-')}", getattr(options, option))
    at_least(64, "--hidden", min(options.hidden))
    try:
        parameters = count(options.parameters)
    except ValueError as error:
        raise ConfigError(f"PARAMETERS: {error}") from None
    at_least(1, "PARAMETERS", int(parameters))

    from tessera.planning.gpus import gpu_of
    from tessera.planning.shapes import shapes

    gpus = {name.lower(): gpu_of(name) for name in options.gpu}
    found, rejected = shapes(
        parameters,
        options.hidden,
        vocab_size=options.vocab_size,
        length=options.length,
        gpus=gpus,
        slots=options.slots,
    )
    fitting = [shape for shape in found if not shape.name]
    if not fitting:
        raise ConfigError(
            f"no shape of hidden size {', '.join(map(str, options.hidden))} and a vocabulary of "
            f"{options.vocab_size:,} has about {parameters:g} parameters; multiples of 64 "
            "are considered, with at least two layers"
        )
    chosen = fitting[: options.top]
    shown = [shape for shape in found if shape.name or shape in chosen]
    seconds: list[float] | None = None
    if options.measure:
        from tessera.model.layer_speed import layers_seconds

        timed = {
            id(s): layers_seconds(s.config, slots=options.slots, length=options.length)
            for s in shown
        }
        shown.sort(key=lambda shape: timed[id(shape)] / shape.parameters)
        seconds = [timed[id(shape)] for shape in shown]
    print("\n".join(_lines(shown, options.slots, seconds)))
    if rejected:
        print(
            f"{rejected} shapes that waste 7 % more than the best on one of the GPUs are left out"
        )
    if left := len(fitting) - len(chosen):
        print(f"{left} shallower shapes are left out; --top {len(fitting)} shows them")


def _lines(shown: Sequence["Shape"], slots: int, seconds: Sequence[float] | None) -> list[str]:
    from tessera.planning.drawing import table
    from tessera.quantities import short_number

    gpus = list(shown[0].useful)
    head = ["layers", "width", "heads", "GeGLU", "parameters", *(f"useful {g}" for g in gpus)]
    rows = [[*head, "operations/token", "activations", *["measured"] * (seconds is not None), ""]]
    for number, shape in enumerate(shown):
        config = shape.config
        row = [
            *(str(n) for n in (config.num_hidden_layers, config.hidden_size)),
            *(str(n) for n in (config.num_attention_heads, config.intermediate_size)),
            short_number(shape.parameters),
            *(f"{shape.useful[gpu]:.1%}" for gpu in gpus),
            short_number(shape.flops_per_token),
            f"{shape.activation_bytes * slots / 2**30:.1f} GiB",
        ]
        if seconds is not None:
            row.append(f"{short_number(slots / seconds[number])} tokens/s")
        rows.append([*row, shape.name])
    ranked = (
        "a few percent between shapes are for --measure to rank"
        if seconds is None
        else "measured: layers alone, forward and backward, here; ranked by time for a parameter"
    )
    notes = [
        "",
        f"useful: of the products of a layer on {slots:,} tokens, what is not padding of tiles",
        "and waves (https://arxiv.org/abs/2401.14489). At equal size the deeper shape is better,",
        f"until speed falls (https://arxiv.org/abs/2412.13663); {ranked}.",
    ]
    return [*table(rows), *notes]
